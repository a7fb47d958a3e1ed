"""Attention of block diffusion training: clean blocks, and noisy copies of some of them, in one flat batch.

A unit is one block of `block` tokens: of row r, at block index b, copy 0 (clean) or 1, 2 (noisy views). Its tokens see
the clean units of their row before b, and their own unit: for all blocks of all copies that is the [noisy; clean] mask
of BD3-LM (arXiv 2503.09573) and Fast-dLLM v2 (arXiv 2509.26328). Enters: q [U * block, H, D], k and v
[U * block, KV, D] in the order of a `BlockLayout`. Leaves: [U * block, H, D]. Only what the mask allows is computed:
batched products per block index here (CPU), flex_attention with one block mask per layout in `block_flex.py` (CUDA).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from unmask.core.types import Context
from unmask.ops.attention.reference import Span

_KEEP = 1 << 25  # attention weights per layer up to which the backward pass keeps them; beyond it they are made again


def training_mask(length: int, block: int) -> Tensor:
    """The published mask over [noisy; clean], bool [2 * length, 2 * length], True = may attend."""
    at = torch.arange(2 * length)
    clean, index = at >= length, at % length // block
    same = (clean[:, None] == clean[None]) & (index[:, None] == index[None])
    earlier = ~clean[:, None] & clean[None] & (index[:, None] > index[None])
    causal = clean[:, None] & clean[None] & (index[:, None] >= index[None])
    return same | earlier | causal


@dataclass(frozen=True)
class BlockLayout:
    """Which units a batch computes, in the order of the flat batch: row [U], index [U], copy [U] (0 = clean).

    The clean units of a row are its first blocks without a gap, and reach up to every noisy unit of the row.
    context: how a clean unit sees itself: from both sides ("block"), or each token only those up to itself ("causal").
    """

    block: int
    row: Tensor
    index: Tensor
    copy: Tensor
    context: Context = "block"

    def mask(self) -> Tensor:
        """The rule written out, bool [U * block, U * block]: the definition of every path here."""
        row, index, copy, unit = (t.repeat_interleave(self.block) for t in (*self.units, torch.arange(len(self.row))))
        same_row = row[:, None] == row[None]
        earlier = same_row & (copy[None] == 0) & (index[None] < index[:, None])
        own = unit[:, None] == unit[None]
        if self.context == "causal":
            own = own & ((copy[:, None] > 0) | torch.ones_like(own).tril())
        return earlier | own

    def spans(self) -> list[tuple[int, tuple[Span, ...]]]:
        """The same rule as runs of `ops.attention.rows`; for layouts ordered by row."""
        out: list[tuple[int, tuple[Span, ...]]] = []
        size, first = self.block, 0
        for unit, (row, index, copy) in enumerate(zip(*(t.tolist() for t in self.units), strict=True)):
            if unit and row != int(self.row[unit - 1]):
                first = unit
            own = (unit * size, (unit + 1) * size)
            before = (first * size, (first + index) * size)
            if copy == 0 and self.context == "causal":
                out += [(1, ((before[0], own[0] + i + 1),)) for i in range(size)]
                continue
            spans = ((before[0], own[1]),) if copy == 0 else (before, own)
            out.append((size, tuple(s for s in spans if s[0] < s[1])))
        return out

    @property
    def units(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.row, self.index, self.copy


def arrange(
    clean: Tensor, noisy: Tensor, block: int, order: Literal["block", "row"], context: Context = "block"
) -> BlockLayout:
    """The layout of a batch.

    Args:
        clean: [B], how many leading blocks of each row are computed clean.
        noisy: bool [views, B, N], which blocks are computed in which noisy view.
        block: tokens of a block.
        order: "block" for the batched products (block by block: clean rows by falling number of blocks, then rows by
            falling number of noisy copies), "row" for flex_attention and spans (a row's units lie together).
        context: how a clean unit sees itself.
    """
    count = noisy.shape[2]
    exists = torch.arange(count)[None] < clean[:, None]
    copy, row, index = torch.cat([exists[None], noisy]).nonzero().unbind(1)
    if order == "row":
        rank = (row * (len(noisy) + 1) + copy) * count + index
    else:
        place = torch.empty_like(clean).scatter_(
            0, clean.argsort(descending=True, stable=True), torch.arange(len(clean))
        )
        views = len(noisy)
        kind = torch.where(copy == 0, 0, 1 + views - noisy[:, row, index].sum(0))
        rank = ((index * (views + 1) + kind) * len(clean) + place[row]) * (views + 1) + copy
    sort = rank.argsort()
    return BlockLayout(block, row[sort], index[sort], copy[sort], context)


# --- batched products -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """Units at one block index that share a shape: `copies` per row, side by side from flat token `first` to `last`.

    before: clean keys that lie before the block. runs: neighbouring rows of the clean store that they belong to, in
    order. rows: the same as an index, None for a single run. clean: whether the units are in the store themselves.
    causal: whether a token of a unit sees only those up to itself.
    """

    first: int
    last: int
    copies: int
    block: int
    before: int
    runs: tuple[slice, ...]
    rows: Tensor | None
    clean: bool
    causal: bool

    @property
    def biased(self) -> bool:
        """Whether a token does not see all keys of its row."""
        return self.causal or self.copies > 1

    @property
    def own(self) -> int:
        """Keys of the units themselves, per row."""
        return self.copies * self.block

    def queries(self, t: Tensor, kv: int) -> Tensor:
        """The group's part of a flat [., H, D] tensor as a view [n, KV, H / KV, copies * block, D]."""
        part = t[self.first : self.last].view(-1, self.own, kv, t.shape[1] // kv, t.shape[2])
        return part.permute(0, 2, 3, 1, 4)

    def keys(self, t: Tensor) -> Tensor:
        """The group's part of a flat [., KV, D] tensor as a view [n, KV, copies * block, D]."""
        return t[self.first : self.last].view(-1, self.own, *t.shape[1:]).transpose(1, 2)

    def seen(self, store: Tensor, t: Tensor) -> Tensor:
        """The keys (or values) the group sees, [n * KV, keys, D]: clean ones before the block, then its own."""
        if self.clean:
            return store[self.runs[0], :, : self.before + self.block].flatten(0, 1)
        own = self.keys(t).to(store.dtype)
        if not self.before:
            return own.flatten(0, 1)
        earlier = store[:, :, : self.before]
        earlier = earlier[self.runs[0]] if self.rows is None else earlier.index_select(0, self.rows)
        return torch.cat([earlier, own], dim=2).flatten(0, 1)

    def give(self, grad: Tensor, store: Tensor, out: Tensor) -> None:
        """Hands a gradient of what `seen` gave on: to the store's sum, and to the own part of the flat tensor."""
        grad = grad.unflatten(0, (-1, store.shape[1]))
        kept = grad.shape[2] if self.clean else self.before
        at = 0
        for run in self.runs if kept else ():
            count = run.stop - run.start
            store[run, :, :kept] += grad[at : at + count, :, :kept]
            at += count
        if not self.clean:
            self.keys(out).copy_(grad[:, :, self.before :])

    def bias(self, heads: int, like: Tensor) -> Tensor:
        """What is added to the scores, [1, queries or 1, keys]: two copies of a block do not see each other, a causal
        one does not look ahead."""
        if not self.biased:
            return like.new_zeros(1, 1, 1)
        at = torch.arange(self.own, device=like.device)
        bias = like.new_zeros(self.own, self.before + self.own)
        unseen = at[:, None] < at[None] if self.causal else at[:, None] // self.block != at[None] // self.block
        bias[:, self.before :].masked_fill_(unseen, -torch.inf)
        return bias.repeat(heads, 1)[None]


class BlockAttention:
    """The attention of one layout ordered by block, as a layer calls it."""

    def __init__(self, layout: BlockLayout, device: torch.device | None = None) -> None:
        clean = layout.copy == 0
        place = {row: i for i, row in enumerate(layout.row[clean & (layout.index == 0)].tolist())}
        self.rows, self.keys = len(place), int(layout.index[clean].max() + 1) * layout.block if place else 0
        self.groups = list(_groups(layout, place, device or layout.row.device))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = _Attention.apply(q, k, v, self)  # type: ignore[no-untyped-call]
        return out

    def store(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """The clean keys or values as [rows, KV, keys, D]; places that no unit fills are never read."""
        out = torch.empty(self.rows, t.shape[1], self.keys, t.shape[2], dtype=dtype, device=t.device)
        for g in self.groups:
            if g.clean:
                out[g.runs[0], :, g.before : g.before + g.block] = g.keys(t)
        return out

    def sums(self, t: Tensor) -> Tensor:
        """Zeros in the shape of `store`, for gradients that many groups add to: float32 at least."""
        wide = torch.promote_types(t.dtype, torch.float32)
        return torch.zeros(self.rows, t.shape[1], self.keys, t.shape[2], dtype=wide, device=t.device)

    def unstore(self, sums: Tensor, out: Tensor) -> None:
        """The reverse of `store`."""
        for g in self.groups:
            if g.clean:
                g.keys(out).copy_(sums[g.runs[0], :, g.before : g.before + g.block])


def _groups(layout: BlockLayout, place: dict[int, int], device: torch.device) -> Iterator[_Group]:
    rows, index, copy = (t.tolist() for t in (layout.row, layout.index, layout.copy))
    units = list(zip(index, (c == 0 for c in copy), rows, strict=True))
    copies_of = Counter(units)
    kinds = [(*u[:2], copies_of[u]) for u in units]
    at, size = 0, layout.block
    while at < len(rows):
        block, clean, copies = kinds[at]
        stop = at
        while stop < len(rows) and kinds[stop] == kinds[at]:
            stop += 1
        seen = [place[r] for r in rows[at:stop:copies]] if block or clean else []
        runs = _runs(seen)
        order = torch.tensor(seen, device=device) if len(runs) > 1 else None
        causal = clean and layout.context == "causal"
        yield _Group(at * size, stop * size, copies, size, block * size, runs, order, clean, causal)
        at = stop


def _runs(rows: list[int]) -> tuple[slice, ...]:
    """Rows in order as slices of neighbours."""
    breaks = [0, *(i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1), len(rows)]
    return tuple(slice(rows[a], rows[b - 1] + 1) for a, b in pairwise(breaks) if b > a)


class _Attention(torch.autograd.Function):
    """Forward and backward group by group; gradients of clean keys and values are summed in place."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: BlockAttention) -> Tensor:
        out = torch.empty(q.shape, dtype=v.dtype, device=q.device)
        kept: list[Tensor] = []
        kv, size = v.shape[1], 0
        with torch.autocast(q.device.type, enabled=False):
            ks, vs = plan.store(k, v.dtype), plan.store(v, v.dtype)
            for g in plan.groups:
                parts = _parts(g, q, k, v, ks, vs)
                g.queries(out, kv).copy_(torch.bmm(parts[3], parts[2]).view(g.queries(out, kv).shape))
                size += parts[3].numel()
                kept = [*kept, *parts] if size <= _KEEP else []
        ctx.plan = plan
        ctx.save_for_backward(q, k, v, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            return *_backward(ctx.plan, q, k, v, grad, kept), None


def _parts(g: _Group, q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries [n * KV, queries, D], the keys and values they see, and the softmax of the scaled products."""
    query = _queries(g, q, v)
    keys, values = g.seen(ks, k), g.seen(vs, v)
    bias = g.bias(q.shape[1] // v.shape[1], query).expand(len(query), query.shape[1], keys.shape[1])
    scores = torch.baddbmm(bias, query, keys.mT, alpha=query.shape[2] ** -0.5, beta=1 if g.biased else 0)
    return query, keys, values, _softmax(scores)


def _queries(g: _Group, t: Tensor, v: Tensor) -> Tensor:
    """[n * KV, queries, D] in the dtype of the values: all queries of a row that share keys."""
    part = g.queries(t, v.shape[1])
    return torch.empty(part.shape, dtype=v.dtype, device=t.device).copy_(part).flatten(2, 3).flatten(0, 1)


def _softmax(scores: Tensor) -> Tensor:
    """The CPU's bfloat16 softmax is slow on rows that are not whole vectors: those pass through float32."""
    if scores.dtype == torch.bfloat16 and scores.device.type == "cpu" and scores.shape[2] % 32:
        return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    return scores.softmax(-1)


def _backward(
    plan: BlockAttention, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, kept: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    ks, vs = (k, v) if kept else (plan.store(k, v.dtype), plan.store(v, v.dtype))
    dks, dvs, scale = plan.sums(k), plan.sums(v), q.shape[2] ** -0.5
    zero = v.new_zeros(1, 1, 1)
    for i, g in enumerate(plan.groups):
        query, keys, values, weights = kept[4 * i : 4 * i + 4] if kept else _parts(g, q, k, v, ks, vs)
        back = _queries(g, grad, v)
        g.give(torch.bmm(weights.mT, back), dvs, dv)
        ds = _softmax_backward(torch.bmm(back, values.mT), weights)
        g.give(torch.baddbmm(zero.expand(keys.shape), ds.mT, query, beta=0, alpha=scale), dks, dk)
        into = g.queries(dq, v.shape[1])
        into.copy_(torch.baddbmm(zero.expand(query.shape), ds, keys, beta=0, alpha=scale).view(into.shape))
    plan.unstore(dks, dk)
    plan.unstore(dvs, dv)
    return dq, dk, dv


def _softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    """weights * (grad - sum(grad * weights)), in one pass."""
    wide = grad.float() if weights.dtype == torch.bfloat16 and weights.shape[2] < 32 else grad
    out: Tensor = torch.ops.aten._softmax_backward_data(wide, weights.to(wide.dtype), -1, wide.dtype)
    return out.to(weights.dtype)
