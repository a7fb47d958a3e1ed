"""Plans that cache policies share: a forward over spans of rows, with the model's own visibility rule."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from unmask.core.types import Plan, Sequence, Spans

Kind = Literal["full", "partial", "shallow", "commit", "prefill"]


def forward(seq: Sequence, query: Spans, need: Tensor, keep: Spans, horizon: int, kind: Kind) -> Plan:
    """Compute `query`, each row seeing what the model's attention allows among the rows that exist."""
    return Plan(query, need, keep, seq.traits.attention.visible(query, horizon), kind)


def lowest(need: Tensor, start: int) -> int:
    """Where a forward must begin so that every needed row is in it: the shift may need the row before a block."""
    return min(start, int(need.min())) if need.numel() else start
