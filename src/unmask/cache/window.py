"""Suffix window: masks far behind the open block are left out of the forward, or thinned.

Rows that are nothing but masks say little more than how long the answer may become, and cost like any other. Given
tokens there (constraints) always stay. Their positions are kept, so the distance to the end is what it was. Under
schedule `whole` nothing lies behind the open block, and nothing is left out. Source: the idea of suffix dropout, DPad,
arXiv 2508.14148.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmask.cache.plans import marked, must_be_full, spans_of
from unmask.core.errors import SpecError
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Full, Peers, Plan, Sequence, Spans, Traits, rows_in


@dataclass(frozen=True)
class Seen:
    """The open block, the forwards since its full one, and the rows that exist for it."""

    block: int = -1
    age: int = 0
    spans: Spans = ()


@component("window")
class Window:
    """Forwards without the far masks; inside a block the rest is recomputed, or what `prefix` or `dual` would."""

    ahead: int | None = option(32, low=0, help="masks behind the open block that stay; None: all (exact)")
    every: int | None = option(None, low=2, help="of the masks behind those, one in so many stays; None: none")
    inside: Literal["all", "prefix", "dual"] = option("all", help="what is recomputed inside a block")
    refresh: int | None = option(None, low=1, help="a full forward every so many steps; 1 is as exact as inside='all'")
    scoring = "approximate"

    def __post_init__(self) -> None:
        if self.ahead is None and self.every is not None:
            raise SpecError("window: every", expected="ahead=0 or more", got="ahead=None", remedy="leave it out")
        if self.inside == "all" and self.refresh is not None:
            raise SpecError("window: refresh", expected="inside='prefix' or 'dual'", got="'all'", remedy="leave it out")

    def exact_for(self, traits: Traits) -> bool:
        return isinstance(traits.attention, Full) and self.ahead is None and (self.inside == "all" or self.refresh == 1)

    def init(self, seq: Sequence) -> Seen:
        must_be_full(seq.traits, "window")
        return Seen()

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Seen, peers: Peers
    ) -> tuple[Plan, Seen]:
        start, stop = open[0].start, open[-1].stop
        due = self.refresh is not None and state.age >= self.refresh
        if self.inside == "all" or state.block != start or due:
            seen = spans_of(self._seen(seq, stop, horizon) | marked(horizon, (), need))
            keep = {"all": (), "prefix": _before(seen, start), "dual": seen}[self.inside]
            return _plan(seen, need, keep, seen, "full"), Seen(start, 1, seen)
        rows = marked(horizon, (*state.spans, (start, stop)), need)
        seen, last = spans_of(rows), stop if self.inside == "dual" else horizon
        query = spans_of(rows & marked(horizon, ((start, last),), need))
        keep = query if self.inside == "dual" else _before(query, start)
        return _plan(query, need, keep, seen, "partial"), Seen(start, state.age + 1, seen)

    def _seen(self, seq: Sequence, stop: int, horizon: int) -> Tensor:
        """bool [horizon]: everything up to the window's end; behind it what is decided, and every so many masks."""
        if self.ahead is None:
            return torch.ones(horizon, dtype=torch.bool)
        seen = seq.decided[:horizon].clone()
        seen[: stop + self.ahead] = True
        if self.every is not None:
            seen[:: self.every] = True
        return seen

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Seen) -> tuple[Seen, None]:
        return state, None


def _before(spans: Spans, start: int) -> Spans:
    return tuple((a, min(b, start)) for a, b in spans if a < start)


def _plan(query: Spans, need: Tensor, keep: Spans, seen: Spans, kind: Literal["full", "partial"]) -> Plan:
    """Every query row sees the rows that exist for this block, and no other."""
    return Plan(query, need, keep, ((rows_in(query), seen),), kind)
