"""Likelihoods against sums written out: known distributions, every mask, every family, any company."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from likelihood_models import (
    AR,
    BLOCK,
    CAUSAL_CONTEXT,
    EOS,
    FULL,
    KINDS,
    MASK,
    ONE,
    PLAIN_BLOCK,
    SHIFTED,
    VOCAB,
    Wrapped,
    bound_over_masks,
    dense_log_p,
    from_joint,
    joint,
    mean_over_orders,
    parts_of,
    scorer,
    transformer,
)

from unmask.core import catalog
from unmask.core.errors import ConfigError, InputError, RequestError, RunError
from unmask.core.types import Strategy, Traits
from unmask.evals.likelihood import DenseDenoiser, Likelihood, log_likelihood, log_likelihoods, strata, student_t
from unmask.evals.likelihood.draws import counts, noisy_rows
from unmask.evals.likelihood.draws import masks as drawn_masks

PROMPT, ANSWER = [4, 5, 6], [7, 8, 9, 10, 11, 12]


def strategy(policy: str = "left_to_right", cache: str = "none", schedule: str = "whole") -> Strategy:
    return Strategy(catalog.parse("schedule", schedule), catalog.parse("policy", policy), catalog.parse("cache", cache))


# ---- known distributions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_an_explicit_joint_gives_its_log_probability(seed: int) -> None:
    p = joint(seed)
    answer = [seed % 3, 1, 2, (seed + 1) % 3]
    found = log_likelihood(from_joint(p), [0], answer, mc_num=2048, seed=seed)
    assert abs(found.value - math.log(p[tuple(answer)])) <= 3 * found.error
    assert 0 < found.error < 0.05 and not found.exact and found.method == "bound" and found.rounds == 128


@pytest.mark.parametrize("method", ["all_masks", "left_to_right"])
def test_true_conditionals_need_no_draws(method: str) -> None:
    p = joint(5, 2.0)
    found = log_likelihood(from_joint(p), [], [2, 0, 1, 1], method=method)
    assert found.value == pytest.approx(math.log(p[2, 0, 1, 1]), abs=1e-9)
    assert found.error == 0.0


@pytest.mark.parametrize(("which", "answer"), [(1, [2, 2, 1, 0]), (7, [0, 1, 1, 2])])
def test_the_interval_covers_the_truth_as_often_as_it_says(which: int, answer: list[int]) -> None:
    p = joint(which)
    denoiser, truth, covered = from_joint(p), math.log(p[tuple(answer)]), 0
    for seed in range(200):
        low, high = log_likelihood(denoiser, [], answer, seed=seed).interval()
        covered += low <= truth <= high
    assert 180 <= covered <= 198, covered


def test_the_interval_still_covers_after_adaptive_stopping() -> None:
    p = joint(1)
    denoiser, truth = from_joint(p), math.log(p[2, 2, 1, 0])
    found = [log_likelihood(denoiser, [], [2, 2, 1, 0], seed=seed, error=0.05) for seed in range(100)]
    covered = sum(f.interval()[0] <= truth <= f.interval()[1] for f in found)
    assert 86 <= covered <= 100, covered
    assert all(f.error <= 0.05 for f in found) and len({f.rounds for f in found}) > 3


def test_the_published_counts_are_biased_and_ours_are_not() -> None:
    published, ours = torch.zeros(8), torch.zeros(8)
    for first in range(1, 9):
        published += torch.bincount(strata(first, 16, 8) - 1, minlength=8)
    rng = torch.Generator().manual_seed(0)
    for _ in range(500):
        ours += torch.bincount(counts(16, 8, rng) - 1, minlength=8)
    assert published.tolist() == [8.0, 24.0] * 4
    assert torch.equal(ours, torch.full((8,), 1000.0))


@pytest.mark.parametrize(("rows", "length"), [(16, 5), (8, 12), (1, 3), (7, 7)])
def test_every_count_is_as_likely_as_any_other(rows: int, length: int) -> None:
    rng, seen, rounds = torch.Generator().manual_seed(1), torch.zeros(length), 4000
    for _ in range(rounds):
        count = counts(rows, length, rng)
        assert int(count.min()) >= 1 and int(count.max()) <= length
        seen += torch.bincount(count - 1, minlength=length)
    share = seen / seen.sum()
    assert float((share * length - 1).abs().max()) < 0.1


def test_masks_hide_as_many_places_as_they_say() -> None:
    count = torch.tensor([1, 3, 5, 2])
    assert torch.equal(drawn_masks(count, 5, torch.Generator().manual_seed(0)).sum(1), count)


# ---- families --------------------------------------------------------------------------------------------------------


def truth_of(traits: Traits, prompt: Sequence[int], answer: Sequence[int]) -> float:
    found, ids = transformer(traits), [*prompt, *answer]
    parts = parts_of(traits, len(prompt), len(ids))
    return sum(bound_over_masks(holes, scorer(found, ids, a, b)) for a, b, holes in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_the_sum_over_every_mask(kind: str) -> None:
    traits = KINDS[kind]
    truth = truth_of(traits, PROMPT, ANSWER)
    for denoiser in (transformer(traits), Wrapped(transformer(traits))):
        assert log_likelihood(denoiser, PROMPT, ANSWER, method="all_masks").value == pytest.approx(truth, abs=1e-5)
        drawn = log_likelihood(denoiser, PROMPT, ANSWER, method="bound", mc_num=2048)
        assert abs(drawn.value - truth) <= 3 * drawn.error + 1e-5
        assert drawn.error < 0.3 and drawn.tokens == 6


def test_the_bound_is_the_mean_over_all_orders() -> None:
    found, ids = transformer(FULL), [*PROMPT, 7, 8, 9]
    orders = mean_over_orders([3, 4, 5], scorer(found, ids, 0, 6))
    assert log_likelihood(found, PROMPT, [7, 8, 9], method="all_masks").value == pytest.approx(orders, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_left_to_right_is_the_chain_rule(kind: str) -> None:
    traits, ids = KINDS[kind], [*PROMPT, *ANSWER]
    found, total = transformer(traits), 0.0
    for start, stop, holes in parts_of(traits, 3, len(ids)):
        score = scorer(found, ids, start, stop)
        total += sum(score(holes[i:])[p] for i, p in enumerate(holes))
    for denoiser in (found, Wrapped(found)):
        value = log_likelihood(denoiser, PROMPT, ANSWER, method="left_to_right")
        assert value.value == pytest.approx(total, abs=1e-5)
        assert value.exact and value.error == 0.0 and value.interval() == (value.value, value.value)


def test_block_size_one_is_autoregressive() -> None:
    ar, one = transformer(AR), transformer(ONE)
    log_p = dense_log_p(ar, [*PROMPT, *ANSWER], [], 0)
    total = sum(float(log_p[3 + i, t]) for i, t in enumerate(ANSWER))
    for denoiser in (ar, one, Wrapped(ar), Wrapped(one)):
        for method in ("auto", "exact", "left_to_right"):
            found = log_likelihood(denoiser, PROMPT, ANSWER, method=method)
            assert found.value == pytest.approx(total, abs=1e-5)
            assert (found.exact, found.method, found.forwards) == (True, "exact", 1)
    bound = log_likelihood(one, PROMPT, ANSWER, method="bound")
    assert bound.value == pytest.approx(total, abs=1e-5) and bound.exact and bound.rounds == 1


@pytest.mark.parametrize("traits", [FULL, BLOCK])
def test_a_lone_token_needs_one_draw(traits: Traits) -> None:
    found = transformer(traits)
    value = log_likelihood(found, PROMPT, [7], greedy=True)
    log_p = dense_log_p(found, [*PROMPT, 7], [3], 0)[3]
    assert value.value == pytest.approx(float(log_p[7]), abs=1e-5)
    assert (value.error, value.rounds, value.exact, value.forwards) == (0.0, 1, True, 2)
    assert value.greedy is bool(log_p.argmax() == 7)


def test_guidance_mixes_in_a_forward_without_the_prompt() -> None:
    found, ids = transformer(FULL), [*PROMPT, 7, 8]
    total = 0.0
    for hidden, weight in (([3, 4], 1 / 2), ([3], 1 / 2), ([4], 1 / 2)):
        with torch.no_grad():
            logits = []
            for prompt in (PROMPT, [MASK] * 3):
                row = torch.tensor([*prompt, 7, 8])
                row[hidden] = MASK
                logits.append(found.model.logits(found.model(row[None]))[0])
            mixed = (logits[1] + 1.7 * (logits[0] - logits[1])).log_softmax(-1)
        total += weight * sum(float(mixed[p, ids[p]]) for p in hidden)
    for denoiser in (found, Wrapped(found)):
        value = log_likelihood(denoiser, PROMPT, [7, 8], method="all_masks", cfg_scale=0.7)
        assert value.value == pytest.approx(total, abs=1e-5)


# ---- published estimates ---------------------------------------------------------------------------------------------


def test_the_published_estimate_is_its_formula() -> None:
    found, rng = transformer(FULL), torch.Generator().manual_seed(4)
    noisy, ratio = noisy_rows(torch.tensor(PROMPT), torch.tensor(ANSWER), 64, MASK, rng)
    score = scorer(found, [*PROMPT, *ANSWER], 0, 9)
    terms = torch.zeros(7, dtype=torch.float64)
    for first in range(1, 7):
        for count in strata(first, 16, 6).tolist():
            terms[count] += 1 / 6 / 16
    truth = 0.0
    for k in range(1, 7):
        sums = [sum(score(h).values()) for h in combinations(range(3, 9), k)]
        truth += float(terms[k]) * 6 / k * sum(sums) / len(sums)
    value = log_likelihood(found, PROMPT, ANSWER, method="llada", mc_num=1024)
    assert abs(value.value - truth) <= 3.5 * value.error
    assert torch.allclose(ratio, (noisy == MASK).sum(1) / 6)


def test_dream_appends_eos_and_never_masks_the_ends() -> None:
    found = transformer(SHIFTED)
    eos_seen = scorer(found, [*PROMPT, 7, 8, EOS], 0, 6)
    score = {h: sum(eos_seen(list(h)).values()) for h in ((3,), (4,), (3, 4))}
    # p is uniform in [eps, 1]: E[p^m (1-p)^(n-m) / p] over the masks of two tokens
    eps = 1e-3
    alone = ((1 - eps) - (1 - eps**2) / 2) / (1 - eps)
    both = (1 - eps**2) / 2 / (1 - eps)
    truth = alone * (score[3,] + score[4,]) + both * score[3, 4]
    value = log_likelihood(found, PROMPT, [7, 8], method="dream", mc_num=4096)
    assert abs(value.value - truth) <= 3.5 * value.error
    assert value.tokens == 2
    lone = log_likelihood(found, [], [7], method="dream")
    assert (lone.value, lone.error, lone.tokens) == (0.0, 0.0, 0)
    assert math.isnan(lone.perplexity) and lone.to_dict()["perplexity"] is None
    assert log_likelihood(found, [], [7, 8], method="dream").tokens == 1


# ---- the error, and when to stop -------------------------------------------------------------------------------------


def test_the_estimate_repeats_and_the_seed_matters() -> None:
    found = transformer(FULL)
    first = log_likelihood(found, PROMPT, ANSWER, mc_num=32, batch=8, seed=5)
    assert first == log_likelihood(found, PROMPT, ANSWER, mc_num=32, batch=8, seed=5)
    assert first != log_likelihood(found, PROMPT, ANSWER, mc_num=32, batch=8, seed=6)
    assert first.rounds == 4 and first.value < 0 < first.error


def test_adaptive_stopping() -> None:
    found = transformer(FULL)
    base = log_likelihood(found, PROMPT, ANSWER, batch=4, mc_num=32)
    wanted = base.error / 3
    value = log_likelihood(found, PROMPT, ANSWER, batch=4, error=wanted)
    assert value.error <= wanted and value.rounds > 8
    loose = log_likelihood(found, PROMPT, ANSWER, batch=4, error=100.0)
    assert (loose.rounds, loose.value) == (8, base.value)
    capped = log_likelihood(found, PROMPT, ANSWER, batch=4, error=1e-9, mc_num=64)
    assert capped.rounds == 16 and capped.error > 1e-9
    assert log_likelihood(found, PROMPT, ANSWER, batch=4, error=100.0, min_rounds=3).rounds == 3


def test_one_round_has_no_known_error() -> None:
    value = log_likelihood(transformer(FULL), PROMPT, ANSWER, mc_num=16)
    assert value.error == math.inf and value.interval() == (-math.inf, math.inf)
    assert value.to_dict()["error"] is None and value.to_dict()["low"] is None


def test_students_interval() -> None:
    table = {(0.95, 1): 12.7062, (0.95, 2): 4.3027, (0.95, 7): 2.3646, (0.99, 4): 4.6041, (0.9, 30): 1.6973}
    for (level, freedom), expected in table.items():
        assert student_t(level, freedom) == pytest.approx(expected, abs=1e-4)
    assert student_t(0.95, 5000) == pytest.approx(1.9604, abs=1e-3)
    value = Likelihood(-10.0, 0.5, 8, False, "bound", 4)
    assert value.interval() == pytest.approx((-10 - 2.3646 * 0.5, -10 + 2.3646 * 0.5), abs=1e-3)
    assert value.bits_per_token == pytest.approx(2.5 / math.log(2)) and value.perplexity == pytest.approx(math.exp(2.5))


def test_draws_that_mask_the_same_places_are_computed_once() -> None:
    rows = 0

    def uniform(ids: torch.Tensor) -> torch.Tensor:
        nonlocal rows
        rows += len(ids)
        return torch.zeros(*ids.shape, 4)

    found = log_likelihood(DenseDenoiser(uniform, Traits(3), 4), [], [0, 1], mc_num=1024)
    assert rows == 3 and found.value == pytest.approx(-2 * math.log(4)) and found.forwards == 1


# ---- company ---------------------------------------------------------------------------------------------------------

CROWD = [(PROMPT, ANSWER), ([4], [9]), ([5, 5, 5, 5, 5], [8, 9]), (PROMPT, ANSWER[:3]), ([9, 8], list(range(1, 14)))]


@pytest.mark.parametrize("kind", [*KINDS, "ar"])
@pytest.mark.parametrize("given", [{}, {"forward_tokens": 20}, {"error": 0.5, "batch": 4}])
def test_no_value_depends_on_its_company(kind: str, given: dict[str, Any]) -> None:
    found = transformer({**KINDS, "ar": AR}[kind])
    if kind in ("ar", "one"):
        given = {k: v for k, v in given.items() if k == "forward_tokens"}
    together = log_likelihoods(found, CROWD, greedy=True, **given)
    for (prompt, answer), one in zip(CROWD, together, strict=True):
        alone = log_likelihood(found, prompt, answer, greedy=True, **given)
        assert one.value == pytest.approx(alone.value, abs=1e-5)
        assert one.error == pytest.approx(alone.error, abs=1e-5)
        assert (one.rounds, one.greedy, one.tokens) == (alone.rounds, alone.greedy, alone.tokens)
    backwards = log_likelihoods(found, CROWD[::-1], greedy=True, **given)
    assert [v.value for v in backwards[::-1]] == pytest.approx([v.value for v in together], abs=1e-5)


def test_a_crowd_shares_forwards() -> None:
    found = Wrapped(transformer(FULL))
    log_likelihoods(found, CROWD, forward_tokens=1 << 20)
    assert found.calls == 1


def test_small_forwards_give_the_same() -> None:
    for kind in ("full", "block", "context"):
        found = transformer(KINDS[kind])
        small = log_likelihood(found, PROMPT, ANSWER, forward_tokens=1)
        large = log_likelihood(found, PROMPT, ANSWER)
        assert small.value == pytest.approx(large.value, abs=1e-5)
        assert small.forwards > 10 > large.forwards


# ---- greedy ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy_answer(traits: Traits, prompt: Sequence[int], length: int) -> list[int]:
    """The most confident best token first, part by part."""
    found, ids = transformer(traits), [*prompt, *[MASK] * length]
    for start, stop, holes in parts_of(traits, len(prompt), len(ids)):
        left = list(holes)
        while left:
            canvas = [*ids, *[MASK] * (stop - len(ids))][:stop]
            log_p = dense_log_p(found, canvas, left, start)[left]
            place = int(log_p.max(-1).values.argmax())
            ids[left[place]] = int(log_p[place].argmax())
            del left[place]
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_knows_its_own_answer(kind: str) -> None:
    traits = KINDS[kind]
    own = greedy_answer(traits, PROMPT, 5)
    other = [*own[:-1], (own[-1] + 1) % VOCAB]
    found = transformer(traits)
    assert [v.greedy for v in log_likelihoods(found, [(PROMPT, own), (PROMPT, other)], greedy=True)] == [True, False]
    assert log_likelihood(found, PROMPT, own).greedy is None


# ---- strategies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["block", "plain", "context"])
def test_left_to_right_under_an_exact_cache(kind: str) -> None:
    found, answer = transformer(KINDS[kind]), [7, 8, 9, 10, 11]  # ends with a block
    plain = log_likelihood(found, PROMPT, answer, method="left_to_right")
    for cache in ("none", "block"):
        under = log_likelihood(found, PROMPT, answer, strategy=strategy(cache=cache, schedule="blocks(4)"))
        assert under.value == pytest.approx(plain.value, abs=1e-5)
        assert (under.method, under.approximate, under.exact) == ("strategy", False, True)


def test_autoregressive_under_its_cache() -> None:
    found = transformer(AR)
    plain = log_likelihood(found, PROMPT, ANSWER, greedy=True)
    under = log_likelihood(found, PROMPT, ANSWER, strategy=strategy(cache="block", schedule="growing(1)"))
    assert under.value == pytest.approx(plain.value, abs=1e-5) and under.greedy is plain.greedy


def test_tokens_committed_together_are_independent() -> None:
    found = transformer(FULL)
    once = log_likelihood(found, PROMPT, ANSWER, strategy=strategy("low_confidence(steps=1)"))
    log_p = dense_log_p(found, [*PROMPT, *ANSWER], range(3, 9), 0)
    assert once.value == pytest.approx(sum(float(log_p[3 + i, t]) for i, t in enumerate(ANSWER)), abs=1e-5)
    assert once.forwards == 1


def test_an_approximate_cache_says_so() -> None:
    found = transformer(FULL)
    stale = log_likelihood(found, PROMPT, ANSWER, strategy=strategy(cache="dual", schedule="blocks(3)"))
    fresh = log_likelihood(found, PROMPT, ANSWER, strategy=strategy(cache="none", schedule="blocks(3)"))
    assert stale.approximate and not stale.exact and not fresh.approximate
    assert stale.value != pytest.approx(fresh.value, abs=1e-4)


class Undefined:
    """A cache without a likelihood."""

    spec_name = "layer_reuse"
    scoring = "undefined"

    def __init__(self) -> None:
        self.inner = catalog.parse("cache", "none")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_an_undefined_cache_is_refused_by_name() -> None:
    bad = replace(strategy(), cache=Undefined())
    with pytest.raises(ConfigError, match="layer_reuse"):
        log_likelihood(transformer(FULL), PROMPT, ANSWER, strategy=bad)


@pytest.mark.parametrize("method", ["bound", "llada", "dream", "left_to_right", "all_masks", "exact"])
def test_a_bound_has_no_cache(method: str) -> None:
    with pytest.raises(ConfigError, match=f"method {method} with a strategy"):
        log_likelihood(transformer(FULL), PROMPT, ANSWER, method=method, strategy=strategy(cache="dual"))


def test_strategies_without_a_likelihood() -> None:
    found = transformer(FULL)
    plain = strategy()
    hot = replace(plain, sampling=replace(plain.sampling, temperature=0.5))
    with pytest.raises(ConfigError, match="temperature"):
        log_likelihood(found, PROMPT, ANSWER, strategy=hot)
    with pytest.raises(ConfigError, match="guidance"):
        log_likelihood(found, PROMPT, ANSWER, strategy=replace(plain, guidance=catalog_guidance()))
    with pytest.raises(ConfigError, match="expected a strategy"):
        log_likelihood(found, PROMPT, ANSWER, method="strategy")
    with pytest.raises(ConfigError, match="error"):
        log_likelihood(found, PROMPT, ANSWER, strategy=plain, error=0.1)


def catalog_guidance() -> Any:
    from unmask.decode.guidance import ClassifierFree

    return ClassifierFree(2.0)


class Unfinished:
    """A policy that never writes the last token."""

    scores = ()

    def __init__(self) -> None:
        self.inner = catalog.parse("policy", "left_to_right")

    def init(self, seq: Any) -> None:
        return None

    def wants(self, seq: Any, open: Any, state: None) -> torch.Tensor:
        return self.inner.wants(seq, open, state)

    def decide(self, seq: Any, want: Any, candidates: Any, state: None, noise: Any) -> tuple[Any, None]:
        commit, state = self.inner.decide(seq, want, candidates, state, noise)
        return replace(commit, close=seq.open_holes == 2), state


def test_a_strategy_that_leaves_holes_fails() -> None:
    with pytest.raises(RunError, match="5 of 6"):
        log_likelihood(transformer(FULL), PROMPT, ANSWER, strategy=replace(strategy(), policy=Unfinished()))


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("traits", "prompt", "answer", "given", "words"),
    [
        (FULL, PROMPT, [], {}, "answer; expected at least one token"),
        (FULL, PROMPT, [40], {}, "ids from 0 to 31"),
        (FULL, PROMPT, [-1], {}, "ids from 0 to 31"),
        (replace(FULL, max_len=8), PROMPT, ANSWER, {}, "at most 8 tokens"),
        (FULL, PROMPT, ANSWER, {"mc_num": 10, "batch": 4}, "multiple of batch"),
        (FULL, PROMPT, ANSWER, {"batch": 0}, "batch"),
        (FULL, PROMPT, ANSWER, {"method": "bond"}, "one of: auto"),
        (FULL, PROMPT, ANSWER, {"mcnum": 4}, "mc_num"),
        (FULL, PROMPT, ANSWER, {"cfg_scale": -1.0}, "cfg_scale"),
        (FULL, PROMPT, ANSWER, {"error": 0.0}, "above 0"),
        (FULL, PROMPT, ANSWER, {"error": 0.1, "mc_num": 16}, "min_rounds"),
        (FULL, PROMPT, ANSWER, {"method": "exact"}, "autoregressive"),
        (FULL, PROMPT, ANSWER, {"method": "left_to_right", "error": 0.1}, "without noise"),
        (FULL, PROMPT, list(range(13)), {"method": "all_masks"}, "at most 12 tokens"),
        (BLOCK, PROMPT, ANSWER, {"method": "llada"}, "full attention"),
        (BLOCK, PROMPT, ANSWER, {"method": "dream"}, "full attention"),
        (BLOCK, [], ANSWER, {}, "nothing predicts the first"),
        (AR, [], ANSWER, {}, "nothing predicts the first"),
        (AR, PROMPT, ANSWER, {"method": "bound"}, "masked diffusion"),
        (AR, PROMPT, ANSWER, {"cfg_scale": 1.0}, "masked diffusion"),
        (AR, PROMPT, ANSWER, {"error": 0.1}, "without noise"),
        (replace(FULL, eos_ids=()), PROMPT, ANSWER, {"method": "dream"}, "EOS"),
    ],
)  # fmt: skip
def test_refusals(traits: Traits, prompt: list[int], answer: list[int], given: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, RequestError, InputError), match=words):
        log_likelihood(transformer(traits), prompt, answer, **given)


def test_block_models_without_a_shift_may_have_no_prompt() -> None:
    assert math.isfinite(log_likelihood(transformer(PLAIN_BLOCK), [], ANSWER).value)
    assert math.isfinite(log_likelihood(transformer(CAUSAL_CONTEXT), [4], ANSWER).value)


@pytest.mark.parametrize("method", ["bound", "all_masks", "left_to_right"])
def test_scores_that_are_not_numbers_fail(method: str) -> None:
    broken = DenseDenoiser(lambda ids: torch.full((*ids.shape, 4), float("nan")), Traits(3), 4)
    with pytest.raises(RunError, match="not numbers"):
        log_likelihood(broken, [0], [1, 2], method=method)
