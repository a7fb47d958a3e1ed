"""RMSNorm with the published cast order: float32 statistics, cast back to the input dtype, then times the weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., C], weight [C] -> [..., C] in x's dtype. Source: LLaDA and Qwen2 modelling files (same order in both)."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight.float(), eps)
    return F.rms_norm(x, (x.shape[-1],), None, eps) * weight
