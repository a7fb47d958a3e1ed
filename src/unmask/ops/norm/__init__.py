"""RMSNorm with the published cast order: float32 statistics, cast back to the input dtype, then times the weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.ops.norm import cpu


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., C], weight [C] -> [..., C] in x's dtype. Source: LLaDA and Qwen2 modelling files (same order in both)."""
    if cpu.takes(x, weight):
        return cpu.rms_norm(x, weight, eps)
    if x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), weight.float(), eps)
    return F.rms_norm(x, (x.shape[-1],), None, eps) * weight


def describe() -> str:
    """Which kernel runs for bfloat16 on the CPU; torch's own everywhere else."""
    return cpu.kernel().why
