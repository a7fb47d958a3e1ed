"""Block cache: rows of finished grid blocks are computed once more with their final tokens and kept for good.

Exact where attention is block-causal (size 1 is autoregressive): a finished row never sees what comes later.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from torch import Tensor

from unmask.cache.plans import Kind, forward, lowest, whole_blocks
from unmask.core.errors import RequestError
from unmask.core.spec import component
from unmask.core.types import Block, BlockCausal, Candidates, Peers, Plan, Sequence, Traits


@component("block")
class BlockCache:
    """Keep the rows of finished blocks. State: how many rows are kept."""

    scoring = "exact"

    def exact_for(self, traits: Traits) -> bool:
        return isinstance(traits.attention, BlockCausal)

    def init(self, seq: Sequence) -> int:
        if not self.exact_for(seq.traits):
            raise RequestError(
                "cache block",
                expected="a causal or block-causal model",
                got="full attention",
                remedy="use prefix or dual",
            )
        return 0

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: int, peers: Peers
    ) -> tuple[Plan, int]:
        assert isinstance(seq.traits.attention, BlockCausal)
        first_hole = int(seq.holes(0, seq.length)[0]) if seq.open_holes else seq.length
        final, _ = whole_blocks(seq.traits, min(first_hole, horizon), horizon, horizon)
        last = int(need.max()) + 1 if need.numel() else final
        start, stop = lowest(need, state), max(final, whole_blocks(seq.traits, 0, last, horizon)[1])
        plan = forward(seq, ((start, stop),), need, ((start, final),) if final > start else (), stop, _kind(state))
        return plan, max(final, state)

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: int) -> tuple[int, None]:
        return state, None


def _kind(kept: int) -> Kind:
    return "prefill" if kept == 0 else "partial"
