"""Bi-WKV as batched matrix products, in linear space: for keys of bounded range only.

Weights are e^(k - max k). Inside a chunk a [L, L] matrix of decays per channel, between chunks a [N, N] one; left and
right sides are kept apart, which the gradient of lam needs. Valid while no position's sum of weights comes near the
smallest number of the dtype; that is checked on every call, and a call beyond it is refused, never answered wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.core.errors import InputError
from unmask.ops.biwkv.common import EMPTY, NEG, Gradients, Inputs, Saved

LENGTH = 32
WIDTH = 256
"""Positions of a chunk, and channels at a time (on the CPU, so that temporaries stay in the cache)."""
NATS = {torch.float32: 60.0, torch.float64: 600.0}
"""How far a sum of weights may lie below the largest weight: the dtype's range less room for its precision."""


@dataclass(frozen=True)
class Decays:
    """Of one block of channels, M = B * c rows: within a chunk, to its borders, between chunks, from the border in."""

    within: Tensor
    ends: Tensor
    between: Tensor
    enter: Tensor

    def sides(self, x: Tensor) -> Tensor:
        """x [M, L, N, J] -> what lies left and right of each position, decayed to it, [2, M, L, N, J]."""
        rows, length, chunks, values = x.shape
        flat = x.reshape(rows, length, chunks * values)
        near = torch.bmm(self.within, flat).view(rows, 2, length, chunks, values)
        ends = torch.bmm(self.ends, flat).view(rows, 2, chunks, values)
        into = torch.stack([self.between @ ends[:, 0], self.between.mT @ ends[:, 1]], 1)
        return (near + self.enter[..., None, None] * into[:, :, None]).transpose(0, 1)


def forward(x: Inputs, save: bool) -> tuple[Tensor, Saved | None]:
    """Output in r's dtype, and what the backward needs.

    Raises:
        InputError: keys (or u) of too large a range.
    """
    if x.edges is not None:
        raise InputError("Bi-WKV implementation 'matmul'", expected="no incoming states", remedy="Use impl='chunk'.")
    y, z = (torch.empty(x.r.shape, dtype=x.lam.dtype, device=x.r.device) for _ in range(2))
    for at in _blocks(x):
        weight, top = _weights(x, at)
        values = torch.stack([weight * _cut(x.v, at, x), weight], -1)
        left, right = _decays(x, at).sides(values)
        total = left + right + _rows(x.u, at).exp()[..., None, None] * values
        den = _paste(total[..., 1], x)
        none = top < EMPTY
        _in_range(den.masked_fill(none, 1.0), x.u)
        den = den.masked_fill(none, 1.0)
        y[..., at] = _paste(total[..., 0], x) / den
        z[..., at] = den.log() + top.masked_fill(none, 0.0)
    out = (torch.sigmoid(x.r.to(y.dtype)) * y).to(x.r.dtype)
    return out, (y, z) if save else None


def backward(go: Tensor, x: Inputs, y: Tensor, z: Tensor) -> Gradients:
    """In closed form: the decays are symmetric, so the same products carry the gradient back."""
    dtype = x.lam.dtype
    gate, go = torch.sigmoid(x.r.to(dtype)), go.to(dtype)
    gr, g = go * y * gate * (1 - gate), go * gate
    gk, gv, glam, gu = torch.empty_like(y), torch.empty_like(y), torch.empty_like(x.lam), torch.empty_like(x.u)
    for at in _blocks(x):
        weight, top = _weights(x, at)
        value, decays, bonus = _cut(x.v, at, x), _decays(x, at), _rows(x.u, at).exp()[..., None, None]
        values = torch.stack([weight * value, weight], -1)
        per = torch.exp(top.clamp_min(EMPTY) - z[..., at]).masked_fill(top < EMPTY, 0.0)  # 1 / den
        flow = torch.stack([_cut(g[..., at] * per, slice(None), x), _cut(-(g * y)[..., at] * per, slice(None), x)], -1)
        left, right = decays.sides(flow)
        back = left + right + bonus * flow
        gv[..., at] = _paste(weight * back[..., 0], x)
        gk[..., at] = _paste(weight * (value * back[..., 0] + back[..., 1]), x)
        from_left, from_right = decays.sides(values)
        crossing = from_left * (flow + right) + from_right * (flow + left)
        glam[:, at] = -crossing.sum((1, 2, 3)).view(len(x.lam), -1)
        gu[:, at] = (bonus * values * flow).sum((1, 2, 3)).view(len(x.u), -1)
    half = x.r.dtype
    return gr.to(half), gk.to(half), gv.to(half), glam, gu


def _blocks(x: Inputs) -> list[slice]:
    dim = x.r.shape[2]
    width = WIDTH if x.r.is_cpu else dim
    return [slice(start, min(dim, start + width)) for start in range(0, dim, width)]


def _chunk(x: Inputs) -> int:
    return max(1, min(LENGTH, x.r.shape[1]))


def _weights(x: Inputs, at: slice) -> tuple[Tensor, Tensor]:
    """e^(k - top) laid out, 0 where masked, and top [B, 1, c], the largest key (NEG where there is none)."""
    k = x.k[..., at].to(x.lam.dtype)
    if x.mask is not None:
        k = k.masked_fill(~x.mask[..., None], NEG)
    k = k.clamp_min(NEG)
    top = k.amax(1, keepdim=True)
    return _cut((k - top).exp().masked_fill(k < EMPTY, 0.0), slice(None), x), top


def _cut(t: Tensor, at: slice, x: Inputs) -> Tensor:
    """[B, T, C] -> [B * c, L, N] in the state's dtype."""
    length = _chunk(x)
    part = F.pad(t[..., at].to(x.lam.dtype), (0, 0, 0, -t.shape[1] % length))
    return part.unflatten(1, (-1, length)).permute(0, 3, 2, 1).flatten(0, 1).contiguous()


def _paste(t: Tensor, x: Inputs) -> Tensor:
    """The way back, [B, T, c]."""
    batch, of, _ = x.r.shape
    return t.unflatten(0, (batch, -1)).permute(0, 3, 2, 1).flatten(1, 2)[:, :of]


def _rows(t: Tensor, at: slice) -> Tensor:
    return t[:, at].reshape(-1, 1)


def _decays(x: Inputs, at: slice) -> Decays:
    length = _chunk(x)
    lam = _rows(x.lam, at)
    j = torch.arange(length, device=lam.device, dtype=lam.dtype)
    n = torch.arange(-(-x.r.shape[1] // length), device=lam.device, dtype=lam.dtype)
    away = j[:, None] - j
    sides = torch.cat([away, -away])
    within = torch.where(sides > 0, torch.exp(-lam[..., None] * sides.clamp_min(0)), lam.new_zeros(()))
    steps = n[:, None] - n - 1
    between = torch.where(steps >= 0, torch.exp(-lam[..., None] * (length * steps.clamp_min(0))), lam.new_zeros(()))
    ends = torch.exp(-lam[..., None] * torch.stack([length - j, j + 1]))
    return Decays(within, ends, between, torch.exp(-lam[..., None] * torch.stack([j, length - 1 - j])))


def _in_range(den: Tensor, u: Tensor) -> None:
    nats = NATS[den.dtype]
    if not bool((den > torch.exp(den.new_tensor(-nats))).all() & (u < nats).all()):
        raise InputError(
            "keys for Bi-WKV implementation 'matmul'",
            expected=f"sums of weights within {nats:g} nats of the largest key, and u below {nats:g}",
            got="a larger range (or a position far from every key)",
            remedy="Cap the keys, or use impl='chunk'.",
        )
