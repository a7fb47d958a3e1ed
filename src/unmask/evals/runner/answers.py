"""One group of answers: decoded together, judged, and turned into records.

Enters: `Asked`s. Leaves: one record per answer, with nothing in it that a second run would not repeat (no time, no
path), and what the group cost. Kind "code" sends its programs through the sandbox, kind "choice" scores likelihoods.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from unmask.core.errors import RunError
from unmask.core.events import Event, Stepped, tee
from unmask.engine.engine import Engine
from unmask.evals.likelihood import log_likelihoods
from unmask.evals.likelihood.text import encode_pair
from unmask.evals.runner.plan import Asked, Plan
from unmask.evals.sandbox import run_many
from unmask.evals.task import Verdict
from unmask.pipeline import Generation, Model

DIGITS = 6
"""Decimals of a confidence in a record."""

Record = dict[str, Any]
Cost = dict[str, Any]


@dataclass
class Work:
    """What one answer cost in counters that a second run repeats."""

    row_layers: int = 0
    head_rows: int = 0
    forwards: Counter[str] = field(default_factory=Counter)

    def add(self, step: Stepped) -> None:
        self.row_layers += step.work.row_layers
        self.head_rows += step.work.head_rows
        self.forwards[step.work.kind] += 1


@dataclass
class _Rows:
    """A sink that adds up what was computed, request by request: rows x layers, head rows, forwards by kind."""

    of: dict[str, Work] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self.of.setdefault(event.id, Work()).add(event)

    def close(self) -> None:
        """Nothing to release."""


def answer_group(plan: Plan, group: Sequence[Asked], model: Model) -> tuple[list[Record], Cost]:
    """Records of a group in its order, and its cost: seconds of decoding, visible tokens, model calls.

    Args:
        model: who answers: the plan's model, or for an audit the same one in another dtype.
    """
    if plan.task.kind == "choice":
        return _choose(plan, group)
    records, cost = decode(model, group)
    verdicts = [_verdict(plan, a, r["text"]) for a, r in zip(group, records)]
    judged = _executed(plan, verdicts) if plan.task.kind == "code" else [_judged(v) for v in verdicts]
    return [{**r, **j} for r, j in zip(records, judged)], cost


def decode(model: Model, group: Sequence[Asked]) -> tuple[list[Record], Cost]:
    """The answers of a group, without a verdict."""
    prepared = [a.prepared for a in group if a.prepared is not None]
    lanes = max(1 if (g := p.request.strategy.guidance) is None else g.lanes for p in prepared)
    engine, rows, collect = Engine(model.denoiser, len(prepared) * lanes), _Rows(), model.collector(prepared)
    begun = time.perf_counter()
    try:
        for event in tee(model.events(prepared, engine), rows):
            collect(event)
    except RunError as error:
        raise RunError(f"{error} (items {group[0].item.id} to {group[-1].item.id})") from None
    seconds = time.perf_counter() - begun
    found = [collect.generations[p.request.id] for p in prepared]
    records = [_record(a, g, rows.of.get(f"{a.index}.{a.sample}", Work())) for a, g in zip(group, found)]
    tokens = sum(g.completion_tokens for g in found)
    return records, {"seconds": seconds, "tokens": tokens, "model_calls": engine.stats.model_calls}


def _record(asked: Asked, found: Generation, work: Work) -> Record:
    return {
        **_begin(asked),
        "seed": asked.seed,
        "text": found.text,
        "ids": list(found.ids),
        "prompt_tokens": found.prompt_tokens,
        "tokens": found.completion_tokens,
        "nfe": found.nfe,
        "forwards": dict(sorted(work.forwards.items())),
        "row_layers": work.row_layers,
        "head_rows": work.head_rows,
        "finish_reason": found.finish_reason,
        "confidence": _confidence(found),
    }


def _begin(asked: Asked) -> Record:
    head = {"index": asked.index, "id": asked.item.id, "sample": asked.sample}
    return {**head, "prompt_sha256": asked.prompt_sha256}


def _confidence(found: Generation) -> dict[str, float | None]:
    """Least and mean confidence of the answer's tokens as they were committed; a policy may have none."""
    start = found.prompt_tokens
    values = [c for c in found.canvas.confidence[start : start + len(found.ids)] if math.isfinite(c)]
    if not values:
        return {"min": None, "mean": None}
    return {"min": round(min(values), DIGITS), "mean": round(math.fsum(values) / len(values), DIGITS)}


def _verdict(plan: Plan, asked: Asked, text: str) -> Verdict:
    with _judging(asked):
        return plan.task.judge(asked.item, text)


@contextmanager
def _judging(asked: Asked) -> Iterator[None]:
    """Whatever breaks in a task's judge (it may be another package's) says on which item."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"while item {asked.item.id} was judged")
        raise


def _judged(verdict: Verdict) -> Record:
    return {"scores": dict(verdict.scores), "extracted": verdict.extracted}


# ---- programs --------------------------------------------------------------------------------------------------------


def _executed(plan: Plan, verdicts: Sequence[Verdict]) -> list[Record]:
    """Verdicts with the sandbox's word; an answer without a program has failed."""
    programs = [v.program for v in verdicts if v.program is not None]
    outcomes = run_many(programs, workers=plan.setup.workers, timeout=plan.setup.timeout, weak=plan.setup.weak)
    out = []
    for verdict in verdicts:
        status = "no program" if verdict.program is None else next(outcomes).status
        passed = {plan.task.metric: float(status == "passed")}
        out.append({"scores": {**verdict.scores, **passed}, "extracted": verdict.extracted, "status": status})
    return out


# ---- likelihoods -----------------------------------------------------------------------------------------------------


def _choose(plan: Plan, group: Sequence[Asked]) -> tuple[list[Record], Cost]:
    pairs = [encode_pair(plan.model, context, c) for a in group for context, c in a.question.pairs()]
    begun = time.perf_counter()
    found = log_likelihoods(plan.model, pairs, scoring=replace(plan.setup.scoring, seed=plan.setup.seed))
    seconds, at, records = time.perf_counter() - begun, 0, []
    for asked in group:
        own = found[at : at + len(asked.question.choices)]
        at += len(own)
        values = [v.value for v in own]
        with _judging(asked):
            verdict = plan.task.judge_choice(asked.item, values)
        records.append(
            {
                **_begin(asked),
                "values": [round(v, DIGITS) for v in values],
                "errors": [round(v.error, DIGITS) if math.isfinite(v.error) else None for v in own],
                "tokens": sum(v.tokens for v in own),
                "nfe": sum(v.forwards for v in own),
                "method": own[0].method,
                **_judged(verdict),
            }
        )
    return records, {"seconds": seconds, "tokens": sum(r["tokens"] for r in records), "model_calls": 0}
