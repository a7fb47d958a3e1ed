"""Rotary position embedding, half-split (NeoX) layout, in both published precisions."""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.ops.rope import cpu, reference


def rope_table(positions: Tensor, dim: int, theta: float, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """cos and sin, each [..., 1, dim], for absolute positions [...].

    Angles are float32 (inverse frequency 1 / theta^(2j/dim)). `dtype` None keeps float32 and makes `apply_rope` rotate
    in float32 (LLaDA's rope_full_precision); a dtype casts the table, and the rotation runs in it (Dream, Qwen2).
    """
    exponent = torch.arange(0, dim, 2, device=positions.device, dtype=torch.int64).float() / dim
    angles = positions[..., None].float() * (1.0 / theta**exponent)
    angles = torch.cat((angles, angles), dim=-1)[..., None, :]
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if dtype is None else (cos.to(dtype), sin.to(dtype))


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., H, D] rotated in the table's dtype, returned in x's dtype: x * cos + [-x2, x1] * sin.

    x belongs to the call: where nothing is differentiated it may be rotated in place.
    """
    if cpu.takes(x, cos, sin):
        return cpu.rotate(x, cos, sin)
    return reference.apply_rope(x, cos, sin)


def describe() -> str:
    """Which kernel runs for bfloat16 on the CPU; plain torch everywhere else."""
    return cpu.kernel(torch.float32).why
