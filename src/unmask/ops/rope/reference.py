"""Rotary embedding, the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + [-x2, x1] * sin in the table's dtype, cast back to x's."""
    wide = x.to(torch.promote_types(x.dtype, cos.dtype)) if cos.dtype == torch.float32 else x
    half = x.shape[-1] // 2
    turned = torch.cat((-wide[..., half:], wide[..., :half]), dim=-1)
    return (wide * cos + turned * sin).to(x.dtype)
