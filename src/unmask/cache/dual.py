"""Dual cache: a full forward at a block's entry; inside, only the block is recomputed, all other rows are read as then.

Rows of the block overwrite theirs in place at each step; rows before and after it are stale until the next block.
Source: Fast-dLLM, arXiv 2505.22618, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from torch import Tensor

from unmask.cache.plans import forward, lowest, must_have_keys, reach, whole_blocks
from unmask.cache.prefix import Entered, entering
from unmask.core.spec import component, option
from unmask.core.types import Block, BlockCausal, Candidates, Peers, Plan, Sequence, Traits


@component("dual")
class Dual:
    """Recompute the open block only. refresh: full forward every so many steps, too."""

    refresh: int | None = option(None, low=1, help="a full forward every so many steps; 1 is exact")
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return self.refresh == 1 or isinstance(traits.attention, BlockCausal)

    def init(self, seq: Sequence) -> Entered:
        must_have_keys(seq.traits, "dual")
        return Entered()

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Entered, peers: Peers
    ) -> tuple[Plan, Entered]:
        block, horizon = open[0].start, reach(seq.traits, open, horizon)
        if entering(state, block, self.refresh):
            plan = forward(seq, ((0, horizon),), need, ((0, horizon),), horizon, "full")
            return plan, Entered(block, 1)
        start, stop = whole_blocks(seq.traits, block, open[-1].stop, horizon)
        query = ((lowest(need, start), stop),)
        return forward(seq, query, need, query, horizon, "partial"), Entered(block, state.age + 1)

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Entered) -> tuple[Entered, None]:
        return state, None
