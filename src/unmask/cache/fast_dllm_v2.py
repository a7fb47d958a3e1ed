"""Fast-dLLM v2's forwards as published: prefill, denoising of one block, commit; with `sub_blocks` its block cache.

For profile `fast-dllm-v2`; for new work use `block` or `sub_block`. Kept on purpose: a hole at a block's start is
answered by its own row, since no row before the block is in the forward; a batch whose shortest prompt is exactly one
block never sees the first block; the whole block is computed again while the first position of a sub-block is open in
any row of the batch; denoising uses the mask of blocks of 32 whatever the block size is.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from torch import Tensor

from unmask.cache.plans import must_be_causal
from unmask.core.errors import RequestError
from unmask.core.spec import component, option
from unmask.core.types import Block, BlockCausal, Candidates, Peers, Plan, Sequence, Span, Spans, Traits

MASK = BlockCausal(32)
"""What denoising forwards see: the published default, which nobody passes on."""


@dataclass(frozen=True)
class Committed:
    """Rows [origin, kept) are final; held: the store has all rows of the open block."""

    origin: int
    kept: int
    held: bool = False


@component("v2_cache")
class V2Cache:
    """Rows of finished blocks; with sub_blocks also the open block's, of which one sub-block is computed again.

    Args:
        shortest: length of the batch's shortest prompt; None takes the request's own.
    """

    block: int = option(32, low=1, help="block size")
    length: int = option(8, low=1, help="sub-block size")
    sub_blocks: bool = option(False, help="the published use_block_cache")
    shortest: int | None = option(None, low=0, help="shortest prompt of the batch (published batch sampler)")
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return False

    def init(self, seq: Sequence) -> Committed:
        must_be_causal(seq.traits, "v2_cache")
        rule = seq.traits.attention
        if isinstance(rule, BlockCausal) and rule.context == "causal":
            raise RequestError(
                "cache v2_cache",
                expected="a model whose finished blocks are seen from both sides (Fast-dLLM v2)",
                got="one with a causal context",
                remedy="use block",
            )
        shortest = seq.request.prompt_len if self.shortest is None else self.shortest
        origin = self.block if shortest == self.block else 0
        return Committed(origin, origin)

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Committed, peers: Peers
    ) -> tuple[Plan, Committed]:
        base = open[0].start - open[0].start % self.block
        if state.kept < base:
            query = ((state.kept, base),)
            visible = _from(state.origin, BlockCausal(self.block).visible(query, base))
            kind = "prefill" if state.kept == state.origin else "commit"
            return Plan(query, need, query, visible, kind), Committed(state.origin, base)  # type: ignore[arg-type]
        whole = (base, min(base + self.block, horizon))
        part = self._sub_block(base, open[0].start, whole)
        full = not self.sub_blocks or not state.held or _first_hole(seq, peers) <= part[0]
        span = whole if full else part
        rule = MASK.visible((span,), whole[1]) if full else ((span[1] - span[0], ((0, whole[1]),)),)
        plan = Plan(
            (span,),
            need.clamp(min=span[0]),
            (span,) if self.sub_blocks else (),
            _from(state.origin, rule),
            "full" if full else "partial",
        )
        return plan, replace(state, held=True)

    def _sub_block(self, base: int, position: int, whole: Span) -> Span:
        start = position - (position - base) % self.length
        return start, min(start + self.length, whole[1])

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Committed) -> tuple[Committed, None]:
        return state, None


def _first_hole(seq: Sequence, peers: Peers) -> int:
    return int(seq.holes(0, seq.length)[0]) if peers.first_hole is None else peers.first_hole


def _from(origin: int, runs: Seq[tuple[int, Spans]]) -> tuple[tuple[int, Spans], ...]:
    """The runs without the rows before `origin`."""
    return tuple((count, tuple((max(a, origin), b) for a, b in spans)) for count, spans in runs)
