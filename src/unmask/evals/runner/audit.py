"""How far an approximate strategy has drifted from what it approximates, on a share of the items.

Enters: a plan and its records. Leaves: the same items decoded once more with an exact cache (or by the same model in
another dtype), with the same seeds, and how the two answers compare, token by token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, fsum
from typing import Any

from unmask.core import catalog
from unmask.core.errors import ConfigError
from unmask.core.types import Strategy
from unmask.evals.intervals import wilson
from unmask.evals.runner.plan import Asked, Plan
from unmask.pipeline import Model

V2 = "v2_cache"


def exact(strategy: Strategy, model: Model) -> Strategy | None:
    """The same strategy with nothing stale, or None if it has nothing stale already."""
    cache: Any = strategy.cache
    if cache.spec_name == V2:
        return replace(strategy, cache=replace(cache, sub_blocks=False)) if cache.sub_blocks else None
    if cache.exact_for(model.traits):
        return None
    return replace(strategy, cache=catalog.parse("cache", "none"))


def audited(plan: Plan, other: Model | None) -> list[list[Asked]]:
    """Groups of the answers to be decoded again: the same items for everyone with this seed.

    Args:
        other: the same model in another dtype; None compares with an exact cache.

    Raises:
        ConfigError: a strategy that is exact already.
    """
    assert plan.setup.audit is not None
    count = max(1, ceil(plan.setup.audit * len(plan.items)))
    ranked = sorted(range(len(plan.items)), key=lambda i: _rank(plan, i))
    chosen = set(ranked[:count])
    answers = [_again(a, plan, other) for a in plan.asked if a.index in chosen and a.sample == 0]
    size = plan.setup.batch
    return [answers[i : i + size] for i in range(0, len(answers), size)]


def _rank(plan: Plan, index: int) -> str:
    return hashlib.sha256(f"audit\0{plan.setup.seed}\0{plan.items[index].id}".encode()).hexdigest()


def _again(asked: Asked, plan: Plan, other: Model | None) -> Asked:
    assert asked.prepared is not None
    request = asked.prepared.request
    if other is not None:
        return asked
    strategy = exact(request.strategy, plan.model)
    if strategy is None:
        raise ConfigError(
            "--audit is pointless here",
            expected="an approximate strategy (a cache with stale rows)",
            got=f"{request.strategy.cache!r}, which is exact for this model",
            remedy="Leave it out, or compare dtypes with --audit-dtype fp32.",
        )
    return replace(asked, prepared=replace(asked.prepared, request=replace(request, strategy=strategy)))


def compare(record: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, Any]:
    """One item, as it was answered and as it is answered exactly."""
    a, b = record["ids"], again["ids"]
    length, same = max(len(a), len(b)), sum(x == y for x, y in zip(a, b))
    first = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
    if first is None and len(a) != len(b):
        first = min(len(a), len(b))
    return {
        "index": record["index"],
        "id": record["id"],
        "tokens_equal": same / length if length else 1.0,
        "first_difference": first,
        "answer_equal": _answer(record) == _answer(again),
        "scores": dict(record["scores"]),
        "scores_exact": dict(again["scores"]),
        "nfe": record["nfe"],
        "nfe_exact": again["nfe"],
        "text_exact": again["text"],
    }


def _answer(record: Mapping[str, Any]) -> Any:
    """What a task read out of an answer; the text where it reads nothing."""
    return record["extracted"] if record["extracted"] is not None else record["text"].strip()


def drift(compared: Sequence[Mapping[str, Any]], against: str, metric: str) -> dict[str, Any]:
    """The audit's part of results.json.

    Args:
        against: what the answers were compared with.
    """
    n = len(compared)
    flipped, differing = (
        sum(c["first_difference"] is not None for c in compared),
        sum(not c["answer_equal"] for c in compared),
    )
    firsts = sorted(c["first_difference"] for c in compared if c["first_difference"] is not None)
    return {
        "against": against,
        "n": n,
        "token_agreement": fsum(c["tokens_equal"] for c in compared) / n,
        "texts_that_differ": {"share": flipped / n, "interval_95": wilson(flipped, n)},
        "answers_that_differ": {"share": differing / n, "interval_95": wilson(differing, n)},
        "first_difference": {"median": firsts[len(firsts) // 2], "least": firsts[0]} if firsts else None,
        "score": fsum(c["scores"][metric] for c in compared) / n,
        "score_exact": fsum(c["scores_exact"][metric] for c in compared) / n,
    }
