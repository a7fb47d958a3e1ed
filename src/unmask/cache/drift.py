"""Drift-triggered refresh: the dual cache, with a full forward as soon as the rows have been seen to move too far.

Every partial forward compares the fresh keys and values of the block's unchanged tokens, in the last layer, with the
stored ones (1 - cosine, a mean over those rows). They move for the reason for which the rows outside the block would
move: tokens were decided. The sum since the last full forward is the drift. When it reaches the threshold a full
forward follows within the same step, before anything is committed: no token comes from rows that were measured to be
too old. It costs one partial forward more than a full forward at the next step would.
Source: the idea of Elastic-Cache, arXiv 2510.14973, which watches attention weights and refreshes by layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from torch import Tensor

from unmask.cache.plans import changed, forward, marked, must_be_full, spans_of, tokens
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Full, Peers, Plan, Probe, Sequence, Traits

PROBE = Probe("kv_cosine", -1)
"""The last layer: drift grows with depth."""


@dataclass(frozen=True, eq=False)
class Drifted:
    """What the store holds of the open block, and how far its rows have moved since the last full forward.

    Args:
        tokens: those that the rows of the canvas had at the last forward.
        same: query rows of the forward under way whose token is the stored row's.
        full: the full forward to make instead, should they have moved too far; None if it is one itself.
    """

    block: int = -1
    age: int = 0
    drift: float = 0.0
    tokens: Tensor | None = None
    same: Tensor | None = None
    full: Plan | None = None


@component("drift")
class Drift:
    """Recompute the open block; everything when its unchanged rows have moved by `threshold` since the last time."""

    threshold: float = option(0.05, low=0.0, help="largest drift, a sum of 1 - cosine; 0 is exact")
    refresh_max: int | None = option(None, low=1, help="a full forward every so many steps, too; 1 is exact")
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return isinstance(traits.attention, Full) and (self.threshold == 0 or self.refresh_max == 1)

    def init(self, seq: Sequence) -> Drifted:
        must_be_full(seq.traits, "drift")
        return Drifted()

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Drifted, peers: Peers
    ) -> tuple[Plan, Drifted]:
        block, everything, now = open[0].start, ((0, horizon),), tokens(seq, horizon)
        full = forward(seq, everything, need, everything, horizon, "full")
        if state.tokens is None or state.block != block or self._due(state):
            return full, Drifted(block, 1, tokens=now)
        rows = marked(horizon, ((block, open[-1].stop),), need)
        query = spans_of(rows)
        plan = replace(forward(seq, query, need, query, horizon, "partial"), probes=(PROBE,))
        same = ~changed(now, state.tokens)[rows]
        return plan, Drifted(block, state.age + 1, state.drift, now, same, full)

    def _due(self, state: Drifted) -> bool:
        return self.threshold == 0 or (self.refresh_max is not None and state.age >= self.refresh_max)

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Drifted) -> tuple[Drifted, Plan | None]:
        if state.full is None or state.same is None:
            return state, None
        drift = state.drift + moved(probes[0][state.same])
        if drift < self.threshold:
            return replace(state, drift=drift, full=None), None
        return replace(state, age=1, drift=0.0, full=None), state.full


def moved(cosine: Tensor) -> float:
    """How far rows have moved: 1 - cosine [n, 2], a mean over keys and values; without a row to compare, infinitely."""
    known = cosine[~cosine.isnan().any(-1)]
    return float((1 - known).mean()) if known.numel() else math.inf
