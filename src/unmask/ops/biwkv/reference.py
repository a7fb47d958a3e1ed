"""Bi-WKV as it is defined: all T x T weights at once. Slow and large; every other implementation is held against it.

    s[t, i] = k[i] - lam |t - i|  (i != t),   s[t, t] = k[t] + u
    y[t]    = sum_i softmax_i(s[t])[i] v[i],   o[t] = sigmoid(r[t]) y[t]

Keys outside the mask do not exist; a row of the batch without any key yields 0. An incoming state of either side is
one more key, at the distance of that side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.ops.biwkv.common import EMPTY, NEG, Gradients, Inputs, Saved, edge


def dense(
    r: Tensor, k: Tensor, v: Tensor, lam: Tensor, u: Tensor, mask: Tensor | None = None, edges: Tensor | None = None
) -> Tensor:
    """The definition in plain torch, [B, T, C]; autograd goes through it."""
    weights, values, _ = _weights(Inputs(r, k, v, lam, u, mask, edges))
    return torch.sigmoid(r) * torch.einsum("btic,bic->btc", weights, values)


def forward(x: Inputs, save: bool) -> tuple[Tensor, Saved | None]:
    """Output in r's dtype, and what the backward needs."""
    wide = _wide(x)
    weights, values, z = _weights(wide)
    y = torch.einsum("btic,bic->btc", weights, values)
    return (torch.sigmoid(wide.r) * y).to(x.r.dtype), (y, z) if save else None


def backward(go: Tensor, x: Inputs, y: Tensor, z: Tensor) -> Gradients:
    """Through the softmax: ds[t, i] = P[t, i] G[t] (v[i] - y[t])."""
    wide, go = _wide(x), go.to(x.lam.dtype)
    weights, _, _ = _weights(wide)
    gate = torch.sigmoid(wide.r)
    g = go * gate
    ds = weights * g[:, :, None] * (wide.v[:, None] - y[:, :, None])
    gr = go * y * gate * (1 - gate)
    gv = torch.einsum("btic,btc->bic", weights, g)
    glam = -torch.einsum("btic,ti->bc", ds, _distance(wide.k))
    gu = ds.diagonal(dim1=1, dim2=2).sum(-1)
    dtype = x.r.dtype
    return gr.to(dtype), ds.sum(1).to(dtype), gv.to(dtype), glam, gu


def _wide(x: Inputs) -> Inputs:
    return x._replace(r=x.r.to(x.lam.dtype), k=x.k.to(x.lam.dtype), v=x.v.to(x.lam.dtype))


def _distance(k: Tensor) -> Tensor:
    t = torch.arange(k.shape[1], device=k.device, dtype=k.dtype)
    return (t[:, None] - t[None]).abs()


def _weights(x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """P [B, T, keys, C], the values [B, keys, C] of those keys, and Z [B, T, C] (0 where there is no key)."""
    length = x.k.shape[1]
    own = torch.eye(length, dtype=torch.bool, device=x.k.device)[None, :, :, None]
    far = x.k[:, None] - x.lam[:, None, None] * _distance(x.k)[None, :, :, None]
    s = torch.where(own, (x.k + x.u[:, None])[:, None], far)
    if x.mask is not None:
        s = s.masked_fill(~x.mask[:, None, :, None], NEG)
    values = x.v
    if x.edges is not None:
        t = torch.arange(length, device=x.k.device, dtype=x.k.dtype)[None, :, None]
        for side, away in ((0, t), (1, length - 1 - t)):
            p, mean = edge(x.edges, side, x.lam)
            s = torch.cat([s, (p[:, None] - x.lam[:, None] * away)[:, :, None]], 2)
            values = torch.cat([values, mean[:, None]], 1)
    z = torch.logsumexp(s.clamp_min(NEG), 2)
    none = z < EMPTY
    weights = torch.exp(s - z.masked_fill(none, 0.0)[:, :, None]).masked_fill(none[:, :, None], 0.0)
    return weights, values, z.masked_fill(none, 0.0)
