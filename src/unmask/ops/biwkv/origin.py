"""Published parametrisations of Bi-WKV in the words of the clean operator.

`origin` is the eager formula of BiRWKV-LLaDA's published code: decay e^(-e^w) (.5 + .5 phi), the own position counted
once plainly and once with its bonus, the result times (.8 + .2 phi), where phi is the logistic of the summed time
embedding. In the operator's words: lam = e^w - ln(.5 + .5 phi), u = softplus(u). It is equal wherever the origin's
clamps (keys above 30, denominators below 1e-8) do not bind; where they do, the clean result stands.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def origin(w: Tensor, u: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's lam and u [B, C], and the gain [B, 1] on its result; w, u: [B, C] with the origin's time terms
    added, tau: time embedding [B, D]."""
    phi = torch.sigmoid(tau.sum(-1, keepdim=True))
    return torch.exp(w) - torch.log(0.5 + 0.5 * phi), F.softplus(u), 0.8 + 0.2 * phi


def vision(w: Tensor, u: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """lam and u [C] of Vision-RWKV (arXiv 2403.02308), w >= 0: decay w / T per token, neighbours are at distance 0."""
    lam = w / length
    return lam, u / length - lam
