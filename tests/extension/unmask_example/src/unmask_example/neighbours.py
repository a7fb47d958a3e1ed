"""Recompute the open block and some rows around it; rows farther away stay as they were at the block's entry."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from torch import Tensor

from unmask.cache.plans import finished
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Full, Peers, Plan, Sequence, Traits


@component("neighbours")
class Neighbours:
    """width: rows recomputed on each side of the open block. State: the block that was entered last."""

    width: int = option(16, low=0, help="rows recomputed on each side of the block")
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return False

    def init(self, seq: Sequence) -> int:
        return -1

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: int, peers: Peers
    ) -> tuple[Plan, int]:
        start, stop, kind = open[0].start - self.width, open[-1].stop + self.width, "partial"
        if state != open[0].start:
            start, stop, kind = 0, horizon, "full"
        elif not isinstance(seq.traits.attention, Full):
            start = 0  # rows of one attention block must be of one forward; recomputing all before is the simple way
        lowest = int(need.min()) if need.numel() else horizon
        query = ((max(0, min(start, lowest)), min(stop, horizon)),)
        visible = seq.traits.attention.visible(query, horizon, finished(seq, horizon))
        return Plan(query, need, query, visible, kind), open[0].start  # type: ignore[arg-type]

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: int) -> tuple[int, None]:
        return state, None
