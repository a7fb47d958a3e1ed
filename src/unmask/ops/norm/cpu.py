"""The compiled RMSNorm for bfloat16 rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unmask.ops import native
from unmask.ops.norm.reference import rms_norm as reference

ARGUMENTS = (native.PTR, native.INT, native.PTR, native.PTR, native.INT, native.INT, native.FLOAT)


@cache
def kernel() -> native.Kernel:
    """Loaded and checked at first use."""
    return native.load("unmask_rms_norm", ARGUMENTS, _agrees)


def takes(x: Tensor, weight: Tensor) -> bool:
    """Rows of one stride, and nothing to differentiate."""
    rows = x.is_contiguous() or (x.dim() == 2 and x.stride(1) == 1)
    return native.fits(x, weight) and rows and weight.is_contiguous() and kernel().call is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `ops.norm.rms_norm`, for what `takes` accepts."""
    call = kernel().call
    assert call is not None
    return _run(call, x, weight, eps)


def _run(call: Callable[..., Any], x: Tensor, weight: Tensor, eps: float) -> Tensor:
    dim = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype)
    stride = dim if x.is_contiguous() else x.stride(0)
    call(x.data_ptr(), stride, weight.data_ptr(), out.data_ptr(), x.numel() // max(dim, 1), dim, eps)
    return out


def _agrees(call: Callable[..., Any]) -> bool:
    """Equal up to the order of the sum, which may move a value by one unit of bfloat16."""
    made = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 80, generator=made).bfloat16()[:, 0]
    weight = torch.randn(80, generator=made).bfloat16()
    return torch.allclose(_run(call, x, weight, 1e-5).float(), reference(x, weight, 1e-5).float(), rtol=1e-2, atol=1e-6)
