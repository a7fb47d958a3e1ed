"""Attention for both ways through the backbone.

`dense`: [B, T] batches with an optional key mask (training, likelihood). `rows`: the query rows of one sequence
against its stored keys and values, where runs of rows see the same half-open spans. What the spans exclude is never
computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.ops.attention import cpu

Span = tuple[int, int]


def dense_mask(key_mask: Tensor | None, length: int, causal: bool) -> Tensor | None:
    """Boolean [B, 1, T or 1, T] for padded batches (True = may be attended), None when nothing is masked.

    A row whose keys are all masked (a pad under a causal rule) yields zeros, never NaN: see `dense`.
    """
    if key_mask is None or bool(key_mask.all()):
        return None
    mask = key_mask.bool()[:, None, None, :]
    if causal:
        mask = mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return mask


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """q [B, T, H, D], k and v [B, T, KV, D] -> [B, T, H, D]; scale 1/sqrt(D), softmax over the keys `mask` allows."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=gqa)
    if mask is not None and mask.shape[2] > 1:
        out = out.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return out.transpose(1, 2)


def rows(q: Tensor, k: Tensor, v: Tensor, runs: Sequence[tuple[int, tuple[Span, ...]]]) -> Tensor:
    """q [n, H, D] against stored k, v [KV, rows, D] -> [n, H, D].

    `runs` covers the n rows in order: (count, spans), each span half-open over stored rows, spans sorted and disjoint.
    No rows at all is a published pass that computes nothing.
    """
    if not runs:
        return q
    if len(runs) == 1:
        return _span_rows(q, k, v, runs[0][1])
    parts, at = [], 0
    steps = _stairs(runs)
    if steps > 1:
        parts, at = [_causal_rows(q[:steps], k, v, *runs[0][1][0])], steps
    for count, spans in runs[at:]:
        parts.append(_span_rows(q[at : at + count], k, v, spans))
        at += count
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _stairs(runs: Sequence[tuple[int, tuple[Span, ...]]]) -> int:
    """Leading single rows that each see one more key than the row before: a causal prefix."""
    start, stop = runs[0][1][0]
    for i, (n, spans) in enumerate(runs):
        if n != 1 or spans != ((start, stop + i),):
            return i
    return len(runs)


def _causal_rows(q: Tensor, k: Tensor, v: Tensor, start: int, first_stop: int) -> Tensor:
    n = q.shape[0]
    stop = first_stop + n - 1
    seen = (
        torch.arange(start, stop, device=q.device)[None] < torch.arange(first_stop, stop + 1, device=q.device)[:, None]
    )
    return _sdpa(q, k[:, start:stop], v[:, start:stop], seen)


def _span_rows(q: Tensor, k: Tensor, v: Tensor, spans: tuple[Span, ...]) -> Tensor:
    if len(spans) == 1:
        a, b = spans[0]
        return _sdpa(q, k[:, a:b], v[:, a:b], None)
    keys = torch.cat([k[:, a:b] for a, b in spans], dim=1)
    values = torch.cat([v[:, a:b] for a, b in spans], dim=1)
    return _sdpa(q, keys, values, None)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention by folding the group into the rows: no key or value is repeated."""
    if mask is None and cpu.takes(q, k, v):
        return cpu.attend(q, k, v)
    n, heads, dim = q.shape
    group = heads // k.shape[0]
    if group > 1:
        q = q.view(n, k.shape[0], group, dim).permute(1, 2, 0, 3).reshape(k.shape[0], group * n, dim)
        mask = mask.repeat(group, 1) if mask is not None else None
    else:
        q = q.transpose(0, 1)
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]
    if group > 1:
        return out.view(k.shape[0], group, n, dim).permute(2, 0, 1, 3).reshape(n, heads, dim)
    return out.transpose(0, 1)


def describe() -> str:
    """Which kernel runs for bfloat16 rows on the CPU; torch's own everywhere else."""
    return cpu.kernel().why
