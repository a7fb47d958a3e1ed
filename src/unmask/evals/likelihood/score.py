"""The front door: pairs of prompt and answer in, one `Likelihood` each out.

Every pair keeps its own noise and its own stopping rule; the pairs of a call share forwards. What a draw gives depends
only on the places it masks, so draws that mask the same places are computed once.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from unmask.core.errors import ConfigError, RequestError
from unmask.core.protocols import Denoiser
from unmask.core.types import Full, Strategy, Traits
from unmask.evals.likelihood import draws, greedy
from unmask.evals.likelihood import strategy as by_strategy
from unmask.evals.likelihood.canvas import Canvas, Pair, is_causal, lay_out
from unmask.evals.likelihood.draws import Draw
from unmask.evals.likelihood.forwards import Speaker, Spoken
from unmask.evals.likelihood.options import FEW, STILL, Scoring
from unmask.evals.likelihood.result import Likelihood

Ids = Sequence[int]
WAITING = 1 << 22
"""Token rows of draws that may wait for their forwards at the same time: pairs beyond come later."""


class HasDenoiser(Protocol):
    """A loaded `unmask.pipeline.Model`, or anything else that carries a denoiser."""

    @property
    def denoiser(self) -> Denoiser: ...


def log_likelihood(
    model: HasDenoiser | Denoiser,
    prompt_ids: Ids,
    answer_ids: Ids,
    *,
    scoring: Scoring | None = None,
    strategy: Strategy | None = None,
    **given: Any,
) -> Likelihood:
    """log p(answer | prompt) by a model of any family; see `Scoring` for the methods and what their values are.

    Args:
        model: a loaded model or a denoiser. prompt_ids, answer_ids: ids; the prompt may be empty where the model can
            speak for a first token.
        strategy: score under this decoding strategy (method "strategy") instead of the model's own distribution.
        scoring: all options at once. given: fields of `Scoring`, which go first: method, mc_num, batch, error, seed,
            cfg_scale, greedy ...

    Raises:
        InputError: ids, options or a strategy that have no likelihood on this model.
    """
    return log_likelihoods(model, [(prompt_ids, answer_ids)], scoring=scoring, strategy=strategy, **given)[0]


def log_likelihoods(
    model: HasDenoiser | Denoiser,
    pairs: Sequence[tuple[Ids, Ids]],
    *,
    scoring: Scoring | None = None,
    strategy: Strategy | None = None,
    **given: Any,
) -> list[Likelihood]:
    """The same for many pairs in shared forwards; no value depends on its company. Arguments as in `log_likelihood`."""
    scoring, denoiser = Scoring.of(given, scoring), _denoiser(model)
    method = resolve_method(scoring, denoiser.traits, strategy)
    vocab = int(denoiser.head.weight.shape[0])
    laid = [lay_out(denoiser.traits, prompt, answer, vocab, method) for prompt, answer in pairs]
    if method == "all_masks":
        _check_few(laid)
    if method == "strategy":
        assert strategy is not None
        return [_under(strategy, denoiser, pair) for pair in laid]
    speaker = Speaker(denoiser, scoring.cfg_scale, scoring.forward_tokens)
    out: list[Likelihood] = []
    for window in _windows(laid, scoring, method):
        out += _score(speaker, window, scoring, method)
    return out


def _check_few(laid: Sequence[Pair]) -> None:
    most = max((len(part.holes) for pair in laid for part in pair.parts), default=0)
    if most > FEW:
        raise RequestError(
            "method all_masks",
            expected=f"answers (on a block model: blocks) of at most {FEW} tokens",
            got=f"{most} tokens, {2.0**most:.2g} sets of masks",
            remedy="Use bound.",
        )


def _denoiser(model: HasDenoiser | Denoiser) -> Denoiser:
    return model.denoiser if hasattr(model, "denoiser") else model


# ---- the method ------------------------------------------------------------------------------------------------------


def resolve_method(scoring: Scoring, traits: Traits, strategy: Strategy | None = None) -> str:
    """The method that runs on a model of these traits.

    Raises:
        ConfigError: a method that has no meaning there, or options that would have no effect.
    """
    method = scoring.method
    if strategy is not None or method == "strategy":
        return _of_strategy(scoring, strategy)
    if method == "auto":
        method = "exact" if is_causal(traits) else "bound"
    if method in ("exact", "left_to_right") and is_causal(traits):
        method = "exact"
    _check_model(method, traits)
    if method in STILL and scoring.error is not None:
        raise ConfigError(f"error with method {method}", expected="a Monte-Carlo method", got="a value without noise")
    if method == "exact" and scoring.cfg_scale:
        raise ConfigError("cfg_scale", expected="a masked diffusion model", got="an autoregressive one")
    return method


def _of_strategy(scoring: Scoring, strategy: Strategy | None) -> str:
    if scoring.method not in ("auto", "strategy"):
        raise ConfigError(
            f"method {scoring.method} with a strategy",
            expected="method strategy (a bound computes every canvas anew: no cache or order has a meaning)",
            got=f"method {scoring.method}",
            remedy="Leave out the strategy, or the method.",
        )
    if strategy is None:
        raise ConfigError("method strategy", expected="a strategy (policy, schedule, cache)", got="none")
    if scoring.cfg_scale or scoring.error is not None:
        raise ConfigError("cfg_scale and error", expected="a Monte-Carlo method", got="method strategy")
    by_strategy.check(strategy)
    return "strategy"


def _check_model(method: str, traits: Traits) -> None:
    if method == "exact" and not is_causal(traits):
        raise ConfigError(
            "method exact",
            expected="an autoregressive model (blocks of one token, read from the row before)",
            got="a model whose likelihood is a sum over orders of writing",
            remedy="Use bound, or left_to_right for one order.",
        )
    if method != "exact" and traits.mask_id is None:
        raise ConfigError(f"method {method}", expected="a masked diffusion model", got="an autoregressive one")
    if method in ("llada", "dream") and not isinstance(traits.attention, Full):
        remedy = "Use bound: block by block, as the model decodes."
        raise ConfigError(f"method {method}", expected="full attention", got="a block model", remedy=remedy)


# ---- rounds ----------------------------------------------------------------------------------------------------------


@dataclass
class _Task:
    """A pair on its way. known: log p sums by what is masked and what is asked; rounds: the value of each."""

    pair: Pair
    rng: torch.Generator
    known: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Spoken] = field(default_factory=dict)
    rounds: list[float] = field(default_factory=list)
    calls: set[int] = field(default_factory=set)
    done: bool = False
    greedy: bool | None = None


def _windows(laid: Sequence[Pair], scoring: Scoring, method: str) -> Iterator[list[Pair]]:
    """Runs of pairs whose draws may wait together."""
    drawn = scoring.draws if scoring.error is None else scoring.min_rounds * scoring.batch
    window: list[Pair] = []
    waiting = 0
    for pair in laid:
        one = {"exact": 1, "left_to_right": len(pair.answer), "all_masks": 1 << FEW}
        cost = len(pair.ids) * one.get(method, drawn)
        if window and waiting + cost > WAITING:
            yield window
            window, waiting = [], 0
        window.append(pair)
        waiting += cost
    if window:
        yield window


def _score(speaker: Speaker, window: list[Pair], scoring: Scoring, method: str) -> list[Likelihood]:
    tasks = [_Task(pair, torch.Generator().manual_seed(_seed(scoring.seed, pair))) for pair in window]
    if method == "exact":
        _causal(speaker, tasks)
    while waiting := [t for t in tasks if not t.done]:
        wave = [(t, [_round(t, scoring, method) for _ in range(_more(t, scoring, method))]) for t in waiting]
        _compute(speaker, wave)
        for task, rounds in wave:
            task.rounds += [math.fsum(d.weight * _known(task, d).total for d in r) for r in rounds]
            task.done = _settled(task, scoring, method)
    if scoring.greedy:
        _check_greedy(speaker, tasks, method)
    return [_result(task, method) for task in tasks]


def _seed(seed: int, pair: Pair) -> int:
    """Of a pair's noise: a function of the seed and the ids, not of the pair's place or company."""
    text = repr((seed, pair.prompt_len, pair.ids[: pair.length].tolist()))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _round(task: _Task, scoring: Scoring, method: str) -> list[Draw]:
    if method == "left_to_right":
        return draws.left_to_right(task.pair)
    if method == "all_masks":
        return draws.every_mask(task.pair)
    if method == "dream":
        return draws.dream_round(task.pair, scoring.batch, task.rng)
    return draws.counted_round(task.pair, scoring.batch, task.rng, published=method == "llada")


def _settled_at_once(pair: Pair, method: str) -> bool:
    """Whether nothing is random: a method without noise, one token per part, or no token at all."""
    return method in STILL or not pair.answer or (method != "dream" and _lone(pair))


def _lone(pair: Pair) -> bool:
    return all(len(part.holes) == 1 for part in pair.parts)


def _more(task: _Task, scoring: Scoring, method: str) -> int:
    """Rounds to draw now: all of them, or as many as the error so far asks for, at most doubling."""
    if _settled_at_once(task.pair, method):
        return 1
    if scoring.error is None:
        return scoring.rounds
    done = len(task.rounds)
    if not done:
        return scoring.min_rounds
    wanted = math.ceil(done * (_error(task.rounds) / scoring.error) ** 2) - done
    return max(1, min(wanted, done, scoring.rounds - done))


def _settled(task: _Task, scoring: Scoring, method: str) -> bool:
    if scoring.error is None or _settled_at_once(task.pair, method) or len(task.rounds) >= scoring.rounds:
        return True
    return _error(task.rounds) <= scoring.error


def _error(rounds: Sequence[float]) -> float:
    """Standard error of the mean; infinite for a single round."""
    return statistics.stdev(rounds) / len(rounds) ** 0.5 if len(rounds) > 1 else math.inf


def _known(task: _Task, draw: Draw) -> Spoken:
    return task.known[draw.part, draw.hidden, draw.asked]


def _compute(speaker: Speaker, wave: list[tuple[_Task, list[list[Draw]]]]) -> None:
    """Runs every canvas of the wave that is not known yet."""
    new: dict[tuple[int, tuple[int, tuple[int, ...], tuple[int, ...]]], tuple[_Task, Canvas]] = {}
    for i, (task, rounds) in enumerate(wave):
        for draw in (d for r in rounds for d in r):
            key = draw.part, draw.hidden, draw.asked
            if not draw.asked:
                task.known[key] = NOTHING
            elif key not in task.known and (i, key) not in new:
                new[i, key] = task, task.pair.canvas(task.pair.parts[draw.part], draw.hidden, draw.asked)
    found = speaker([canvas for _, canvas in new.values()])
    for (_, key), (task, _), spoken in zip(new, new.values(), found, strict=True):
        task.known[key] = spoken
        task.calls.add(spoken.call)


NOTHING = Spoken(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0), 0)


def _causal(speaker: Speaker, tasks: Sequence[_Task]) -> None:
    for task, spoken in zip(tasks, speaker([t.pair.causal() for t in tasks]), strict=True):
        task.rounds, task.done, task.calls = [spoken.total], True, {spoken.call}
        task.known[0, (), ()] = spoken


# ---- results ---------------------------------------------------------------------------------------------------------


def _check_greedy(speaker: Speaker, tasks: Sequence[_Task], method: str) -> None:
    """One order: the best tokens met on the way; else a decoding of its own."""
    if method in ("exact", "left_to_right"):
        for task in tasks:
            best = torch.cat([spoken.best for spoken in task.known.values()])
            task.greedy = best.tolist() == task.pair.ids[list(task.pair.answer)].tolist()
        return
    for task, (found, calls) in zip(tasks, greedy.check(speaker, [t.pair for t in tasks]), strict=True):
        task.greedy = found
        task.calls |= calls


def _result(task: _Task, method: str) -> Likelihood:
    pair, rounds = task.pair, task.rounds
    still = _settled_at_once(pair, method)
    return Likelihood(
        value=statistics.fmean(rounds),
        error=0.0 if still else _error(rounds),
        rounds=len(rounds),
        exact=still and (method != "all_masks" or _lone(pair)),
        method=method,
        tokens=len(pair.answer),
        greedy=task.greedy,
        forwards=len(task.calls),
    )


def _under(strategy: Strategy, denoiser: Denoiser, pair: Pair) -> Likelihood:
    value, best, calls = by_strategy.forced(denoiser, pair, strategy)
    approximate = by_strategy.is_approximate(strategy, denoiser)
    return Likelihood(value, 0.0, 1, not approximate, "strategy", len(pair.answer), best, calls, approximate)
