"""Endings, refusals, probes, randomness: what happens at the edges of the engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from models_for_tests import MASK, denoiser, prompt

from unmask import testing as t
from unmask.core.errors import RequestError
from unmask.core.events import Accepted, Event, Failed, Finished, Opened, Probed, Stepped, fold, from_dict, to_dict
from unmask.core.types import EDIT, FILL, REMASK, Candidates, Commit, Head, Probe, Request, Sampling, Sequence, Strategy
from unmask.decode.guidance import ClassifierFree
from unmask.engine.engine import Engine
from unmask.engine.noise import PositionNoise
from unmask.ops import attention
from unmask.ops.score import score


def finish(events: list[Event] | tuple[Event, ...], id: str = "a") -> Finished:
    return next(e for e in events if isinstance(e, Finished) and e.id == id)


# ---- cancelling ------------------------------------------------------------------------------------------------------


def test_cancel_a_running_request_frees_its_slot_for_the_next() -> None:
    engine = Engine(t.FakeDenoiser(t.TRAITS["full"]), 1)
    for name in "ab":
        engine.submit(t.request([1, 2], 12, t.strategy("blocks(4)", "left_to_right"), name))
    events = engine.step() + engine.step()
    engine.cancel("a")
    assert not engine.idle
    events += list(engine.run())
    assert finish(events, "a") == Finished("a", "cancelled", 2, 14)
    assert finish(events, "b").reason == "length"
    assert sum(i >= 0 for i in fold(events)["a"].ids) == 4


def test_cancel_a_waiting_request_before_it_costs_anything() -> None:
    engine = Engine(t.FakeDenoiser(t.TRAITS["full"]), 1)
    for name in "ab":
        engine.submit(t.request([1, 2], 4, t.strategy(), name))
    engine.cancel("b")
    events = list(engine.run())
    assert finish(events, "b") == Finished("b", "cancelled", 0, 2)
    assert finish(events, "a").reason == "length"
    engine.cancel("nobody")
    assert engine.idle
    engine.submit(t.request([1, 2], 4, t.strategy(), "b"))
    assert finish(list(engine.run()), "b").reason == "length"


# ---- refusals --------------------------------------------------------------------------------------------------------


def _odd(**changes: Any) -> Request:
    return replace(t.request([1, 2], 4, t.strategy()), **changes)


@pytest.mark.parametrize(
    "bad",
    [
        _odd(canvas=torch.zeros(3, dtype=torch.long)),
        _odd(canvas=torch.zeros(0, dtype=torch.long), fixed=torch.zeros(0, dtype=torch.bool), prompt_len=0),
        _odd(canvas=torch.zeros(6)),
        _odd(fixed=torch.zeros(6, dtype=torch.long)),
        _odd(prompt_len=7),
        _odd(probes=(Probe("hidden", 2),)),
        _odd(probes=(Probe("kv_cosine", -3),)),
    ],
    ids=["lengths", "empty", "float ids", "int mask", "prompt_len", "layer", "negative layer"],
)
def test_submit_refuses_what_does_not_fit(bad: Request) -> None:
    engine = Engine(t.FakeDenoiser(t.TRAITS["full"]))
    with pytest.raises(RequestError):
        engine.submit(bad)
    assert engine.idle


def test_submit_refuses_an_id_in_use_and_more_lanes_than_slots() -> None:
    engine = Engine(t.FakeDenoiser(t.TRAITS["full"]), 1)
    engine.submit(t.request([1], 2, t.strategy()))
    with pytest.raises(RequestError, match="id"):
        engine.submit(t.request([1], 2, t.strategy()))
    with pytest.raises(RequestError, match="lanes"):
        engine.submit(t.request([1], 2, t.strategy(guidance=ClassifierFree(2.0)), "b"))


def test_an_autoregressive_model_needs_a_first_token() -> None:
    with pytest.raises(RequestError, match="first token"):
        Engine(denoiser("causal")).submit(t.request([], 3, t.strategy("growing(1)", "left_to_right", "block")))


def test_a_cache_that_does_not_fit_the_model_fails_its_request_alone() -> None:
    engine = Engine(t.FakeDenoiser(t.TRAITS["full"]), 1)
    engine.submit(t.request([1, 2], 4, t.strategy(cache="block")))
    engine.submit(t.request([1, 2], 4, t.strategy(), "b"))
    events = list(engine.run())
    assert "causal" in next(e for e in events if isinstance(e, Failed) and e.id == "a").error
    assert finish(events, "b").reason == "length"


# ---- policies that misbehave -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scripted:
    """Commits what a script says: (positions among the wanted ones, tokens, kind)."""

    script: Callable[[Sequence, torch.Tensor, Candidates], Commit]
    every_position: bool = False
    scores = ()

    def init(self, seq: Sequence) -> None:
        return None

    def wants(self, seq: Sequence, open: Any, state: None) -> torch.Tensor:
        return torch.arange(seq.length) if self.every_position else seq.holes(0, seq.length)

    def decide(self, seq: Sequence, want: torch.Tensor, candidates: Candidates, state: None, noise: Any) -> Any:
        return self.script(seq, want, candidates), state


def _fill(slots: list[int], tokens: list[int], **more: Any) -> Commit:
    return Commit(torch.tensor(slots, dtype=torch.long), torch.tensor(tokens), torch.ones(len(slots)), **more)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Scripted(lambda s, w, c: _fill([0], [t.MASK])), "mask id"),
        (Scripted(lambda s, w, c: _fill([0], [5]), every_position=True), "fixed"),
        (Scripted(lambda s, w, c: _fill([0], [5], kind=REMASK), every_position=True), "fixed"),
    ],
    ids=["mask id", "fill a fixed position", "remask a fixed position"],
)
def test_a_policy_that_breaks_a_rule_fails_its_request_and_the_others_go_on(policy: Scripted, words: str) -> None:
    engine = Engine(t.FakeDenoiser(t.TRAITS["full"]), 2)
    engine.submit(t.request([1, 2], 4, Strategy(t.strategy().schedule, policy, t.strategy().cache)))
    engine.submit(t.request([1, 2], 4, t.strategy(), "b"))
    events = list(engine.run())
    assert words in next(e for e in events if isinstance(e, Failed)).error
    assert fold(events)["a"].error is not None
    assert finish(events, "b").reason == "length"


def test_edits_and_remasks_are_folded_and_can_end_an_answer() -> None:
    """First all holes become 5, then one is masked again, then filled, then position 3 is edited into EOS."""

    def script(seq: Sequence, want: torch.Tensor, candidates: Candidates) -> Commit:
        if seq.step == 1:
            return _fill([2, 3, 4, 5], [5] * 4, busy=True)
        if seq.step == 2:
            return _fill([4], [0], kind=REMASK, busy=True)
        if seq.step == 3:
            return _fill([4], [7], busy=True)
        return _fill([3], [t.EOS], kind=EDIT, busy=True)

    fake = t.FakeDenoiser(replace(t.TRAITS["full"], eos_ids=(t.EOS,)))
    base = t.strategy("whole")
    strategy = Strategy(base.schedule, Scripted(script, every_position=True), base.cache)
    events = _run(fake, strategy)
    kinds = [w[3] for e in events if isinstance(e, Stepped) for w in e.writes]
    assert kinds == [FILL] * 4 + [REMASK, FILL, EDIT]
    assert finish(events) == Finished("a", "stop", 4, 3)
    assert fold(events)["a"].ids == [1, 2, 5, t.EOS, 7, 5]


def _run(model: Any, strategy: Strategy, **more: Any) -> list[Event]:
    engine = Engine(model)
    engine.submit(t.request([1, 2], 4, strategy, **more))
    return list(engine.run())


# ---- constraints and mask ids ----------------------------------------------------------------------------------------


def test_nothing_to_do_is_done_without_a_forward() -> None:
    found = t.decode(t.FakeDenoiser(t.TRAITS["full"]), [t.request([1, 2], 2, t.strategy(), fixed={0: 4, 1: 5})])
    assert (found.calls, found.answers["a"], finish(found.events).reason) == (0, [4, 5], "length")


def test_a_mask_id_typed_in_the_prompt_stays_text() -> None:
    model = denoiser("llada")
    found = t.decode(model, [t.request([3, MASK, 5, MASK], 6, t.strategy("blocks(3)"))])
    assert fold(found.events)["a"].ids[:4] == [3, MASK, 5, MASK]
    assert found.answers["a"] != t.decode(model, [t.request([3, 4, 5, 4], 6, t.strategy("blocks(3)"))]).answers["a"]


def test_given_tokens_stand_under_every_policy_and_blocks_full_of_them_are_skipped() -> None:
    fixed = {0: 9, 4: 8, 5: 8, 6: 8, 7: 8, 10: 3}
    for policy in ("threshold(0.6)", "random(steps=4)", "dream_block", "dream('entropy', steps=4)", "left_to_right"):
        found = t.decode(
            t.FakeDenoiser(t.TRAITS["full"]), [t.request([1], 12, t.strategy("blocks(4)", policy), fixed=fixed)]
        )
        assert {i: found.answers["a"][i] for i in fixed} == fixed


# ---- growing canvas and early stop -----------------------------------------------------------------------------------


def test_a_growing_canvas_computes_only_rows_that_exist() -> None:
    found = t.decode(
        t.FakeDenoiser(t.TRAITS["full"]), [t.request([1, 2], 9, t.strategy("growing(3)", "threshold(0.0)"))]
    )
    steps = [e for e in found.events if isinstance(e, Stepped)]
    assert [e.work.row_layers // 2 for e in steps] == [5, 8, 11]
    opened = [(e.start, e.stop) for e in found.events if isinstance(e, Opened)]
    assert opened == [(2, 5), (5, 8), (8, 11)]


def test_a_growing_canvas_ends_at_eos_before_later_blocks_exist() -> None:
    fake = t.FakeDenoiser(replace(t.TRAITS["full"], eos_ids=(0,)), gain=0.0)
    found = t.decode(fake, [t.request([1, 2], 90, t.strategy("growing(3)", "threshold(0.0)"))])
    assert found.calls == 1
    assert finish(found.events) == Finished("a", "stop", 1, 2)


@pytest.mark.parametrize(("early", "calls"), [(True, 2), (False, 10)])
def test_a_stop_rule_ends_an_answer_inside_its_settled_part(early: bool, calls: int) -> None:
    seen: list[list[int]] = []

    def stop(answer: list[int]) -> int | None:
        seen.append(answer)
        return 1 if len(answer) >= 2 else None

    chosen = t.strategy("blocks(5)", "left_to_right", early_stop=early)
    found = t.decode(t.FakeDenoiser(t.TRAITS["full"]), [t.request([1, 2], 10, chosen, stop=stop)], settled=False)
    assert found.calls == calls
    assert finish(found.events) == Finished("a", "stop", calls, 3)
    assert all(-1 not in a and t.MASK not in a for a in seen)


def test_a_given_eos_is_text() -> None:
    fake = t.FakeDenoiser(replace(t.TRAITS["full"], eos_ids=(21,)))
    found = t.decode(fake, [t.request([21, 2], 6, t.strategy("blocks(2)"), fixed={5: 21})])
    assert 21 not in found.answers["a"][:5], "this model writes none itself"
    assert (finish(found.events).reason, finish(found.events).end) == ("length", 8)


def test_holes_after_the_end_are_told_apart_from_tokens() -> None:
    fake = t.FakeDenoiser(replace(t.TRAITS["full"], eos_ids=(0,)), gain=0.0)
    found = t.decode(fake, [t.request([1], 8, t.strategy("blocks(4)", "left_to_right"))])
    assert found.answers["a"] == [0] + [-1] * 7


# ---- probes ----------------------------------------------------------------------------------------------------------


def _probed(model: Any, request: Request) -> tuple[list[Probed], list[Event], Engine]:
    engine = Engine(model)
    engine.submit(request)
    events = list(engine.run())
    return [e for e in events if isinstance(e, Probed)], events, engine


@pytest.mark.parametrize("kind", ["llada", "dream"])
def test_probe_values_equal_direct_computation(kind: str) -> None:
    model = denoiser(kind)
    one = t.request(
        prompt(2, 4), 6, t.strategy("blocks(3)"), probes=(Probe("logits"), Probe("hidden", -1), Probe("hidden", 0))
    )
    probed, events, _ = _probed(model, one)
    ids = torch.where(one.fixed, one.canvas, MASK)[None]
    with torch.inference_mode():
        hidden = model.model(ids)
        logits = model.model.logits(hidden)[0]
        states = [model.model.embed_ids(ids)]
        rope = model.model.rope(torch.arange(10), torch.float32)
        for layer in model.model.layers:
            states.append(layer(states[-1], rope, lambda q, k, v: attention.dense(q, k, v, None, False)))
    first = {(e.kind, e.layer): e for e in probed if e.nfe == 1}
    want = torch.arange(4, 7) - model.traits.shift
    at = first["logits", -1]
    assert at.positions == (4, 5, 6)
    assert torch.allclose(torch.tensor(at.values), logits[want], atol=1e-4)
    for layer in (0, 2):
        found = first["hidden", layer]
        assert found.positions == tuple(range(10))
        assert torch.allclose(torch.tensor(found.values), states[layer + 1][0], atol=1e-4)
    again = [from_dict(to_dict(e)) for e in events]
    assert again == events


def test_similarity_probe_compares_only_rows_that_were_stored() -> None:
    model = denoiser("llada")
    one = t.request(prompt(2, 4), 8, t.strategy("blocks(4)", "left_to_right", "dual"), probes=(Probe("kv_cosine", 1),))
    probed, _, _ = _probed(model, one)
    assert probed[0].positions == (), "nothing was stored before the first forward"
    second = torch.tensor(probed[1].values)
    assert probed[1].positions == (4, 5, 6, 7)
    assert second.shape == (4, 2)
    assert bool((second <= 1 + 1e-5).all()) and bool((second > -1).all())
    assert not torch.allclose(second[0], torch.ones(2)), "position 4 was filled, so its row moved"
    assert len(next(p for p in probed if p.nfe == 5).positions) == 12, "the second block's entry compares every row"


def test_probes_cost_no_forward_and_change_no_token() -> None:
    model, chosen = denoiser("llada"), t.strategy("blocks(4)", cache="dual")
    plain = t.request(prompt(3, 5), 12, chosen)
    watched = replace(plain, probes=(Probe("hidden", 1), Probe("logits"), Probe("kv_cosine", 0)))
    probed, events, engine = _probed(model, watched)
    none, bare, other = _probed(model, plain)
    assert probed and not none
    assert engine.stats.model_calls == other.stats.model_calls
    assert engine.stats.rows == other.stats.rows
    assert fold(events)["a"].ids == fold(bare)["a"].ids


def test_probes_of_one_request_show_only_its_own_rows() -> None:
    model = denoiser("llada")
    engine = Engine(model)
    engine.submit(t.request(prompt(1, 7), 6, t.strategy(), "other"))
    one = t.request(prompt(2, 4), 6, t.strategy("blocks(3)"), probes=(Probe("hidden", 1),))
    engine.submit(one)
    crowd = [e for e in engine.run() if isinstance(e, Probed)]
    alone, _, _ = _probed(model, one)
    assert [e.positions for e in crowd] == [e.positions for e in alone]
    gap = max(
        float((torch.tensor(a.values) - torch.tensor(b.values)).abs().max()) for a, b in zip(crowd, alone, strict=True)
    )
    assert gap < 1e-4


# ---- randomness ------------------------------------------------------------------------------------------------------


def test_uniforms_are_uniform_and_independent_of_one_another() -> None:
    u = PositionNoise(3).uniform("token", 1, torch.arange(20_000), 0)
    assert float(u.min()) > 0 and float(u.max()) < 1
    counts = torch.histc(u, 20, 0, 1)
    chi = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi < 45, "19 degrees of freedom, p < 0.001 above 43.8"
    others = [
        PositionNoise(4).uniform("token", 1, torch.arange(20_000), 0),
        PositionNoise(3).uniform("token", 2, torch.arange(20_000), 0),
        PositionNoise(3).uniform("canvas", 1, torch.arange(20_000), 0),
        PositionNoise(3).uniform("token", 1, torch.arange(1, 20_001), 0),
    ]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([u, other]))[0, 1])) < 0.03


def test_a_uniform_depends_on_nothing_but_seed_step_and_position() -> None:
    noise = PositionNoise(9)
    whole = noise.uniform("token", 5, torch.arange(50), 50)
    some = torch.tensor([31, 2, 17])
    assert torch.equal(noise.uniform("token", 5, some, 999), whole[some])


def test_drawn_tokens_follow_the_tempered_distribution() -> None:
    """4000 holes of one forward, all with the same logits: frequencies against softmax(logits / T)."""
    n, temperature = 4000, 0.7
    logits = torch.randn(t.VOCAB, generator=torch.Generator().manual_seed(1))
    hidden = torch.zeros(n, 16, dtype=torch.float64)
    hidden[:, 0] = 1.0
    weight = torch.zeros(t.VOCAB, 16, dtype=torch.float64)
    weight[:, 0] = logits
    u = PositionNoise(1).uniform("token", 1, torch.arange(n), n)
    found = score([hidden], Head(weight), Sampling(temperature), mask_id=t.MASK, uniforms=lambda a, b: u[a:b])
    kept = logits.clone()
    kept[t.MASK] = -math.inf
    expected = (kept / temperature).softmax(0) * n
    seen = torch.bincount(found.token, minlength=t.VOCAB)
    used = expected > 5
    chi = float(((seen - expected) ** 2 / expected)[used].sum())
    assert chi < int(used.sum()) + 4 * (2 * int(used.sum())) ** 0.5
    assert seen[t.MASK] == 0


@pytest.mark.parametrize("temperature", [1e-40, 1e-8, 1e-3])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    model, ids = denoiser("llada"), prompt(1, 4)
    greedy = t.decode(model, [t.request(ids, 8, t.strategy("blocks(4)", "left_to_right"))]).answers
    cold = t.strategy("blocks(4)", "left_to_right", sampling=Sampling(temperature))
    assert t.decode(model, [t.request(ids, 8, cold)]).answers == greedy


# ---- endings that published samplers have ----------------------------------------------------------------------------


def test_a_strategy_without_early_stop_fills_what_nobody_reads() -> None:
    fake = t.FakeDenoiser(replace(t.TRAITS["full"], eos_ids=(0,)), gain=0.0)
    found = t.decode(fake, [t.request([1], 8, t.strategy("blocks(4)", "left_to_right", early_stop=False))])
    assert found.answers["a"] == [0] * 8
    assert finish(found.events) == Finished("a", "stop", 8, 1)


def test_a_carry_policy_with_more_steps_than_tokens_ends() -> None:
    found = t.decode(t.FakeDenoiser(t.TRAITS["full"]), [t.request([1], 6, t.strategy("whole", "dream_carry(steps=9)"))])
    assert -1 not in found.answers["a"]


def test_accepted_tells_holes_fixed_tokens_and_blocks() -> None:
    found = t.decode(t.FakeDenoiser(t.TRAITS["full"]), [t.request([1, 2], 5, t.strategy("blocks(2)"), fixed={4: 9})])
    first = found.events[0]
    assert isinstance(first, Accepted)
    assert first.canvas == (1, 2, -1, -1, -1, -1, 9)
    assert first.fixed == (True, True, False, False, False, False, True)
    assert first.blocks == ((2, 4), (4, 6))
