"""Plans that cache policies share: a forward over spans of rows, with the model's own visibility rule."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from unmask.core.types import BlockCausal, Plan, Sequence, Span, Spans, Traits

Kind = Literal["full", "partial", "shallow", "commit", "prefill"]


def forward(seq: Sequence, query: Spans, need: Tensor, keep: Spans, horizon: int, kind: Kind) -> Plan:
    """Compute `query`, each row seeing what the model's attention allows among the rows that exist."""
    return Plan(query, need, keep, seq.traits.attention.visible(query, horizon), kind)


def whole_blocks(traits: Traits, start: int, stop: int, horizon: int) -> Span:
    """[start, stop) widened to whole attention blocks: rows of one see each other, so one forward computes them all."""
    size = traits.attention.size if isinstance(traits.attention, BlockCausal) else 1
    return start - start % size, min(-(-stop // size) * size, horizon)


def lowest(need: Tensor, start: int) -> int:
    """Where a forward must begin so that every needed row is in it: the shift may need the row before a block."""
    return min(start, int(need.min())) if need.numel() else start
