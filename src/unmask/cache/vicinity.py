"""Vicinity refresh: a full forward at a block's entry; inside, the block and some rows on both sides are recomputed.

Rows next to the open block change most when one of its tokens does; the far ones are read as they were at the entry.
`before` and `after` of 0 are the dual cache. Source: dInfer, arXiv 2510.08666, vicinity KV-cache refresh.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from torch import Tensor

from unmask.cache.plans import forward, marked, must_be_full, spans_of
from unmask.cache.prefix import Entered, entering
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Full, Peers, Plan, Sequence, Traits


@component("vicinity")
class Vicinity:
    """Recompute the open block and its neighbours."""

    before: int = option(16, low=0, help="rows before the block")
    after: int = option(16, low=0, help="rows after the block")
    refresh: int | None = option(None, low=1, help="a full forward every so many steps; 1 is exact")
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return self.refresh == 1 and isinstance(traits.attention, Full)

    def init(self, seq: Sequence) -> Entered:
        must_be_full(seq.traits, "vicinity")
        return Entered()

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Entered, peers: Peers
    ) -> tuple[Plan, Entered]:
        start, stop = open[0].start, open[-1].stop
        if entering(state, start, self.refresh):
            everything = ((0, horizon),)
            return forward(seq, everything, need, everything, horizon, "full"), Entered(start, 1)
        query = spans_of(marked(horizon, ((start - self.before, stop + self.after),), need))
        return forward(seq, query, need, query, horizon, "partial"), Entered(start, state.age + 1)

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Entered) -> tuple[Entered, None]:
        return state, None
