"""Prefix cache: a full forward at a block's entry; inside the block, rows before it are read as they were then.

The block and everything after it are recomputed at each step, so only the rows before the block are stale.
Source: Fast-dLLM, arXiv 2505.22618, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor

from unmask.cache.plans import forward, lowest, must_have_keys, reach, whole_blocks
from unmask.core.spec import component, option
from unmask.core.types import Block, BlockCausal, Candidates, Peers, Plan, Sequence, Traits


@dataclass(frozen=True)
class Entered:
    """The block whose rows the store holds, and the forwards since its full one."""

    block: int = -1
    age: int = 0


@component("prefix")
class Prefix:
    """Keep the rows before the open block until the next block. refresh: full forward every so many steps, too."""

    refresh: int | None = option(None, low=1, help="a full forward every so many steps; 1 is exact")
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return self.refresh == 1 or isinstance(traits.attention, BlockCausal)

    def init(self, seq: Sequence) -> Entered:
        must_have_keys(seq.traits, "prefix")
        return Entered()

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Entered, peers: Peers
    ) -> tuple[Plan, Entered]:
        block, horizon = open[0].start, reach(seq.traits, open, horizon)
        start, _ = whole_blocks(seq.traits, block, open[-1].stop, horizon)
        if entering(state, block, self.refresh):
            plan = forward(seq, ((0, horizon),), need, ((0, start),), horizon, "full")
            return plan, Entered(block, 1)
        first = lowest(need, start)
        keep = ((first, start),) if first < start else ()
        return forward(seq, ((first, horizon),), need, keep, horizon, "partial"), Entered(block, state.age + 1)

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Entered) -> tuple[Entered, None]:
        return state, None


def entering(state: Entered, start: int, refresh: int | None) -> bool:
    """A new block, or its rows are `refresh` forwards old."""
    return state.block != start or (refresh is not None and state.age >= refresh)
