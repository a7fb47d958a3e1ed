"""Boundary cache of recurrent models: a full forward at a block's entry; inside, only the block is recomputed.

What the block sees of the rows to its left and right are the states of the recurrence at its two ends, as they were at
the
entry: a few vectors per layer, whatever the length. They are stale inside the block, since rows beside it also see it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor

from unmask.cache.plans import forward
from unmask.core.errors import RequestError
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Peers, Plan, Recurrent, Sequence, Span, Traits


@dataclass(frozen=True)
class Between:
    """The open positions whose two ends the store has states for, and the forwards since the full one."""

    open: Span = (-1, -1)
    age: int = 0


@component("boundary")
class Boundary:
    """Recompute the open block only. refresh: full forward every so many steps, too."""

    refresh: int | None = option(None, low=1, help="a full forward every so many steps; 1 is exact")
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return self.refresh == 1

    def init(self, seq: Sequence) -> Between:
        attention = seq.traits.attention
        if not isinstance(attention, Recurrent) or not attention.boundaries:
            got = "layers with attention among them" if isinstance(attention, Recurrent) else "attention"
            remedy = "use none" if isinstance(attention, Recurrent) else "use none, prefix or dual"
            raise RequestError("cache boundary", expected="a model of recurrent layers", got=got, remedy=remedy)
        return Between()

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Between, peers: Peers
    ) -> tuple[Plan, Between]:
        start, stop = open[0].start, min(open[-1].stop, horizon)
        if state.open != (start, stop) or (self.refresh is not None and state.age >= self.refresh):
            keep = tuple((a, b) for a, b in ((0, start), (stop, horizon)) if a < b)
            return forward(seq, ((0, horizon),), need, keep, horizon, "full"), Between((start, stop), 1)
        return forward(seq, ((start, stop),), need, (), horizon, "partial"), Between((start, stop), state.age + 1)

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Between) -> tuple[Between, None]:
        return state, None
