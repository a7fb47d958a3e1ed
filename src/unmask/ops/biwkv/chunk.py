"""Bi-WKV in torch for any device and any keys: chunks of the sequence advance together, in log-space.

A state is (z, mean): the log of its weight and the weighted mean of its values, so nothing can overflow. Chunks of
about sqrt(T) positions are summed up first, their sums carried from chunk to chunk, then all chunks walk at once: some
2 sqrt(T) steps instead of T. The backward is the same walk over the output's weights (the decay is symmetric).
Tensors inside lie as [position in chunk, B, chunk, C], a block of channels at a time so that a step stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.ops.biwkv.common import EMPTY, NEG, Gradients, Inputs, Saved, State, edge

STEP = 16384
"""Elements per step that fit a core's cache together with their temporaries."""


@dataclass(frozen=True)
class Side:
    """States before each position, seen from one side: log-weights and means [L, B, N, C]."""

    z: Tensor
    means: tuple[Tensor, ...]


@dataclass
class Walker:
    """All chunks on their way from the left: the state [B, N, C] before the next position."""

    z: Tensor
    means: tuple[Tensor, ...]
    k: Tensor
    xs: tuple[Tensor, ...]
    lam: Tensor

    def step(self, j: int) -> None:
        """Past position j."""
        weight = (self.k[j] - self.z).sigmoid_()
        torch.logaddexp(self.z, self.k[j], out=self.z).sub_(self.lam)
        for x, mean in zip(self.xs, self.means):
            torch.lerp(mean, x[j], weight, out=mean)


@dataclass(frozen=True)
class Block:
    """One block of channels, cut into chunks."""

    channels: slice
    length: int
    chunks: int
    of: int

    def cut(self, x: Tensor, dtype: torch.dtype, fill: float = 0.0) -> Tensor:
        """[B, T, C] -> [L, B, N, c], positions after the end filled."""
        part = x[..., self.channels].to(dtype)
        if self.length * self.chunks > self.of:
            part = F.pad(part, (0, 0, 0, self.length * self.chunks - self.of), value=fill)
        part = part.unflatten(1, (self.chunks, self.length)).permute(2, 0, 1, 3)
        return part.clone(memory_format=torch.contiguous_format)  # its own memory: steps write into it

    def paste(self, x: Tensor, out: Tensor) -> None:
        """The way back, into the block's channels of [B, T, C]."""
        to, whole = out[..., self.channels], self.of // self.length
        to[:, : whole * self.length].unflatten(1, (whole, self.length)).copy_(x[:, :, :whole].permute(1, 2, 0, 3))
        if whole < self.chunks:
            to[:, whole * self.length :] = x[: self.of - whole * self.length, :, whole].transpose(0, 1)

    def keys(self, x: Inputs) -> Tensor:
        k = x.k[..., self.channels].to(x.lam.dtype)
        if x.mask is not None:
            k = k.masked_fill(~x.mask[..., None], NEG)
        return Block(slice(None), self.length, self.chunks, self.of).cut(k, x.lam.dtype, NEG).clamp_min_(NEG)


def forward(x: Inputs, save: bool) -> tuple[Tensor, Saved | None]:
    """Output in r's dtype, and what the backward needs."""
    out = torch.empty_like(x.r, memory_format=torch.contiguous_format)
    y, z = (torch.empty_like(out, dtype=x.lam.dtype) for _ in range(2)) if save else (None, None)
    for block in _blocks(x):
        k, v, r = block.keys(x), block.cut(x.v, x.lam.dtype), block.cut(x.r, x.lam.dtype)
        left, right = _sides(k, (v,), x, block, x.edges)
        u = _per_chunk(x.u, block)
        for j in range(block.length):
            z_j, y_j = _merged(left.z, left.means[0], right.z[j], right.means[0][j])
            left.step(j)
            own = k[j] + u  # from here on Z and y take the place of the position's key and value
            torch.lerp(y_j, v[j], torch.sigmoid(own - z_j), out=v[j])
            torch.logaddexp(z_j, own, out=k[j])
            none = k[j] < EMPTY
            k[j].masked_fill_(none, 0.0)
            torch.mul(r[j].sigmoid_(), v[j].masked_fill_(none, 0.0), out=r[j])
        block.paste(r, out)
        if y is not None and z is not None:
            block.paste(v, y)
            block.paste(k, z)
    return out, None if y is None or z is None else (y, z)


def backward(go: Tensor, x: Inputs, y: Tensor, z: Tensor) -> Gradients:
    """In closed form; every sum has a fixed order."""
    gr, gk, gv = (torch.empty_like(x.r, memory_format=torch.contiguous_format) for _ in range(3))
    glam, gu = torch.empty_like(x.lam), torch.empty_like(x.u)
    for block in _blocks(x):
        parts = _block_gradients(block, go, x, y, z)
        for part, whole in zip(parts[:3], (gr, gk, gv)):
            block.paste(part, whole)
        glam[:, block.channels], gu[:, block.channels] = parts[3], parts[4]
    return gr, gk, gv, glam, gu


def states(x: Inputs, at: Sequence[int]) -> tuple[State, State]:
    """Left and right states at cuts between positions, [B, len(at), C] each; see `ops.biwkv.states`."""
    k = x.k.to(x.lam.dtype)
    if x.mask is not None:
        k = k.masked_fill(~x.mask[..., None], NEG)
    k, v = k.clamp_min(NEG), x.v.to(x.lam.dtype)
    cuts = sorted({0, *at, k.shape[1]})
    spans = list(pairwise(cuts))
    left, right = {cuts[0]: edge(x.edges, 0, x.lam)}, {cuts[-1]: edge(x.edges, 1, x.lam)}
    for start, stop in spans:
        left[stop] = _carried(*left[start], _span_end(k, v, x.lam, start, stop, True), x.lam * (stop - start))
    for start, stop in reversed(spans):
        right[start] = _carried(*right[stop], _span_end(k, v, x.lam, start, stop, False), x.lam * (stop - start))
    return _state([left[c] for c in at]), _state([right[c] for c in at])


def _state(found: list[tuple[Tensor, Tensor]]) -> State:
    """Of weight 1 in `b`, or of nothing."""
    z, mean = (torch.stack(part, 1) for part in zip(*found))
    none = z < EMPTY
    return State(z.masked_fill(none, NEG), mean.masked_fill(none, 0.0), (~none).to(z.dtype))


def _span_end(k: Tensor, v: Tensor, lam: Tensor, start: int, stop: int, left: bool) -> tuple[Tensor, Tensor]:
    """What keys [start, stop) leave behind at `stop` (left) or at `start` - 1 (right): [B, C] each."""
    t = torch.arange(stop - start, device=k.device, dtype=k.dtype)[:, None, None]
    away = lam * (stop - start - t if left else t + 1)
    z, (mean,) = _end(k[:, start:stop].transpose(0, 1), (v[:, start:stop].transpose(0, 1),), away)
    return z, mean


def _carried(z: Tensor, mean: Tensor, end: tuple[Tensor, Tensor], decay: Tensor) -> tuple[Tensor, Tensor]:
    return _merged(z - decay, mean, *end)


def _blocks(x: Inputs) -> Iterator[Block]:
    batch, of, dim = x.k.shape
    length = max(1, round(of**0.5))
    chunks = -(-of // length)
    width = max(64, STEP // (batch * chunks) // 64 * 64) if x.k.is_cpu else dim
    for start in range(0, dim, width):
        yield Block(slice(start, min(dim, start + width)), length, chunks, of)


def _per_chunk(x: Tensor, block: Block) -> Tensor:
    """[B, C] -> [B, N, c], written out: a step then reads it as it reads everything else."""
    return x[:, None, block.channels].expand(-1, block.chunks, -1).contiguous()


def _merged(z: Tensor, mean: Tensor, z2: Tensor, mean2: Tensor) -> tuple[Tensor, Tensor]:
    """Two states, or a state and one value, as one."""
    return torch.logaddexp(z, z2), torch.lerp(mean, mean2, torch.sigmoid(z2 - z))


def _sides(k: Tensor, xs: tuple[Tensor, ...], x: Inputs, block: Block, edges: Tensor | None) -> tuple[Walker, Side]:
    """Exclusive states for log-weights k and values xs: of the first positions from the left, of all from the right."""
    lam = x.lam[:, block.channels]
    j = torch.arange(block.length, device=k.device, dtype=k.dtype)[:, None, None, None]
    carried, lams = [], _per_chunk(x.lam, block)
    for side, away in ((0, block.length - j), (1, j + 1)):
        z, means = _end(k, xs, lam[:, None] * away)
        start, mean = edge(None if edges is None else edges[..., block.channels], side, lam)
        if side == 1:  # it enters after the filled positions of the last chunk
            start = start + lam * (block.length * block.chunks - block.of)
        carried.append(_carries(z, means, lam * block.length, start, mean, side == 1))
    return Walker(*carried[0], k, xs, lams), _walk(k, xs, lams, *carried[1])


def _end(k: Tensor, xs: Sequence[Tensor], away: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Summed over the first dimension, each key `away` in nats: the log-weight and the means."""
    s = k - away
    top = s.amax(0)
    weight = s.sub_(top).exp_()
    total = weight.sum(0)
    return top + total.log(), tuple((weight * x).sum(0) / total for x in xs)


def _carries(
    z: Tensor, means: tuple[Tensor, ...], decay: Tensor, start: Tensor, mean: Tensor, backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The state that enters each chunk, from what each chunk [B, N, C] leaves behind; `start` enters the first."""
    into, intos = torch.empty_like(z), tuple(torch.empty_like(m) for m in means)
    now, nows = start, [mean for _ in means]
    for n in range(z.shape[1] - 1, -1, -1) if backwards else range(z.shape[1]):
        into[:, n] = now
        now = now - decay
        weight = torch.sigmoid(z[:, n] - now)
        for i, m in enumerate(means):
            intos[i][:, n] = nows[i]
            nows[i] = torch.lerp(nows[i], m[:, n], weight)
        now = torch.logaddexp(now, z[:, n])
    return into, intos


def _walk(k: Tensor, xs: tuple[Tensor, ...], lam: Tensor, z: Tensor, means: tuple[Tensor, ...]) -> Side:
    """All chunks step through their positions at once, from the right; the state before each is kept."""
    zs, outs = torch.empty_like(k), tuple(torch.empty_like(k) for _ in xs)
    zs[-1] = z
    for out, m in zip(outs, means):
        out[-1] = m
    for j in range(len(k) - 1, 0, -1):
        weight = (k[j] - zs[j]).sigmoid_()
        torch.logaddexp(zs[j], k[j], out=zs[j - 1]).sub_(lam)
        for x, out in zip(xs, outs):
            torch.lerp(out[j], x[j], weight, out=out[j - 1])
    return Side(zs, outs)


def _block_gradients(block: Block, go: Tensor, x: Inputs, y: Tensor, z: Tensor) -> Gradients:
    """Parts of the five gradients: three [L, B, N, c], two [B, c]."""
    dtype = x.lam.dtype
    k, v, u = block.keys(x), block.cut(x.v, dtype), _per_chunk(x.u, block)
    y, minus_z = block.cut(y, dtype), block.cut(z, dtype, -NEG).neg_()
    gate, gr = block.cut(x.r, dtype).sigmoid_(), block.cut(go, dtype)
    g = gr * gate
    gr.mul_(y).mul_(gate).mul_(gate.neg_().add_(1))
    h = g * y
    left, right = _sides(k, (v,), x, block, None)
    above, below = _sides(minus_z, (g, h), x, block, None)
    gk, gv, glam, gu = torch.empty_like(k), gate, torch.zeros_like(u), torch.zeros_like(u)
    for j in range(block.length):
        own = (k[j] + u).add_(minus_z[j]).exp_()
        ph, gv_j = own * h[j], torch.mul(own, g[j], out=gv[j])
        gu.addcmul_(gv_j, v[j]).sub_(ph)
        before = (left.z, *left.means, above.z, *above.means)
        after = (right.z[j], right.means[0][j], below.z[j], below.means[0][j], below.means[1][j])
        for (near, mean, *_), (_, _, far, far_g, far_h) in ((before, after), (after, before)):
            weight = (k[j] + far).exp_()
            gv_j.addcmul_(weight, far_g)
            ph.addcmul_(weight, far_h)
            glam.sub_(_crossing(near + minus_z[j], mean, g[j], h[j])).sub_(_crossing(near + far, mean, far_g, far_h))
        torch.mul(v[j], gv_j, out=gk[j]).sub_(ph)
        left.step(j)
        above.step(j)
    return gr, gk, gv, glam.sum(1), gu.sum(1)


def _crossing(weight: Tensor, mean: Tensor, g: Tensor, h: Tensor) -> Tensor:
    """What flows over one edge between positions: the state on its one side times the gradient on the other."""
    return weight.exp_().mul_(mean.mul(g).sub_(h))
