"""Block cache: rows of finished attention blocks are computed once more with their final tokens and kept for good.

Exact where attention is block-causal (size 1 is autoregressive): a finished row never sees what comes later. The
commit of a finished block costs no forward of its own: it is part of the next block's first one. While the first
position of a block is open, the row before it is computed with the block, for it speaks for that position (shift 1).
Source: Fast-dLLM v2, arXiv 2509.26328, section 3.3 (there the commit is a forward of its own).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

from torch import Tensor

from unmask.cache.plans import Kind, finished, forward, lowest, must_be_causal, whole_blocks
from unmask.core.spec import component
from unmask.core.types import Block, BlockCausal, Candidates, Peers, Plan, Sequence, Traits


@component("block")
class BlockCache:
    """Keep the rows of finished blocks. State: how many rows are kept."""

    scoring = "exact"

    def exact_for(self, traits: Traits) -> bool:
        return isinstance(traits.attention, BlockCausal)

    def init(self, seq: Sequence) -> int:
        must_be_causal(seq.traits, "block")
        return seq.kept

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: int, peers: Peers
    ) -> tuple[Plan, int]:
        final = finished(seq, horizon)
        last = int(need.max()) + 1 if need.numel() else final
        start, stop = lowest(need, state), max(final, whole_blocks(seq.traits, 0, last, horizon)[1])
        plan = forward(seq, ((start, stop),), need, ((start, final),) if final > start else (), stop, _kind(state))
        return replace(plan, final=final), max(final, state)

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: int) -> tuple[int, None]:
        return state, None


def _kind(kept: int) -> Kind:
    return "prefill" if kept == 0 else "partial"
