"""Attention over spans, the definition: one softmax per row and head, in float64 when the input is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Span = tuple[int, int]


def rows(q: Tensor, k: Tensor, v: Tensor, runs: Sequence[tuple[int, tuple[Span, ...]]]) -> Tensor:
    """Same contract as `ops.attention.rows`, row by row."""
    out, at, group = torch.empty_like(q), 0, q.shape[1] // k.shape[0]
    for count, spans in runs:
        seen = torch.cat([torch.arange(a, b) for a, b in spans]).to(q.device)
        for i in range(at, at + count):
            for h in range(q.shape[1]):
                keys, values = k[h // group, seen], v[h // group, seen]
                weights = torch.softmax((keys @ q[i, h]) * q.shape[-1] ** -0.5, dim=0)
                out[i, h] = weights @ values
        at += count
    return out
