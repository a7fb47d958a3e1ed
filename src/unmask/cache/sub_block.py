"""Sub-block cache: finished attention blocks are kept exactly; in the open one only a sub-block is computed again.

A sub-block is the schedule's block, a part of the model's own. The first forward of a block computes all of it; after
that the rows outside the open sub-block are read as they were then, except the row before it while its first position
is open, for that row speaks for it (shift 1). Approximate inside a block, exact at its end: the commit computes every
row with its final token. Source: Fast-dLLM v2, arXiv 2509.26328, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from torch import Tensor

from unmask.cache.plans import finished, forward, lowest, must_be_causal, reach
from unmask.core.spec import component, option
from unmask.core.types import Block, BlockCausal, Candidates, Peers, Plan, Sequence, Traits


@dataclass(frozen=True)
class Held:
    """Rows kept for good, rows that the store holds at all, and forwards since the whole block was computed."""

    final: int = 0
    stop: int = 0
    age: int = 0


@component("sub_block")
class SubBlock:
    """Recompute the open sub-block only. refresh: the whole block every so many steps, too."""

    refresh: int | None = option(None, low=1, help="the whole block every so many steps; 1 is exact")
    whole_first: bool = option(False, help="the whole block while a sub-block's first position is open (published)")
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return isinstance(traits.attention, BlockCausal) and (self.refresh == 1 or traits.attention.size == 1)

    def init(self, seq: Sequence) -> Held:
        must_be_causal(seq.traits, "sub_block")
        return Held(seq.kept, seq.kept)

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Held, peers: Peers
    ) -> tuple[Plan, Held]:
        stop = reach(seq.traits, open, horizon)
        final = finished(seq, stop)
        due = self.refresh is not None and state.age >= self.refresh
        due |= self.whole_first and not bool(seq.decided[open[0].start])
        if final > state.final or stop > state.stop or due:
            query = ((lowest(need, state.final), stop),)
            plan = forward(seq, query, need, query, stop, "full" if state.stop else "prefill")
            return replace(plan, final=final), Held(final, stop, 1)
        active = min(max(open[0].start, final), open[-1].stop)
        query = ((lowest(need, active), open[-1].stop),)
        plan = forward(seq, query, need, query, stop, "partial")
        return replace(plan, final=final), Held(final, stop, state.age + 1)

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Held) -> tuple[Held, None]:
        return state, None
