"""Published parametrisations of Bi-WKV, through the clean operator.

`origin` is the eager formula of BiRWKV-LLaDA's published code: decay e^(-e^w) (.5 + .5 phi), the own position counted
once plainly and once with its bonus, the result times (.8 + .2 phi), where phi is the logistic of the summed time
embedding. In the operator's words: lam = e^w - ln(.5 + .5 phi), u = softplus(u). It is equal wherever the origin's
clamps (keys above 30, denominators below 1e-8) do not bind; where they do, the clean result stands.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.ops.biwkv import biwkv


def origin(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    u: Tensor,
    tau: Tensor,
    mask: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """The origin's attention.

    Args:
        r, k, v: [B, T, C]. w, u: [B, C] with the origin's time terms already added. tau: time embedding [B, D].
        mask: bool [B, T], True = a key that counts (the origin has none).

    Returns:
        [B, T, C].
    """
    phi = torch.sigmoid(tau.sum(-1, keepdim=True))
    lam = torch.exp(w) - torch.log(0.5 + 0.5 * phi)
    return biwkv(r, k, v, lam, F.softplus(u), mask, impl=impl) * (0.8 + 0.2 * phi)[:, None].to(r.dtype)


def vrwkv(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, *, impl: str = "auto") -> Tensor:
    """Vision-RWKV's (arXiv 2403.02308), w and u [C], w >= 0: decay w / T per token, neighbours are at distance 0."""
    batch, length, _ = r.shape
    lam, bonus = w / length, u / length
    return biwkv(r, k, v, lam.expand(batch, -1), (bonus - lam).expand(batch, -1), impl=impl)
