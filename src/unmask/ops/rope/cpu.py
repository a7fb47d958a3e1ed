"""The compiled rotation of bfloat16 heads, in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unmask.ops import native
from unmask.ops.rope.reference import apply_rope as reference

ARGUMENTS = (native.PTR, native.INT, native.PTR, native.PTR, native.INT, native.INT, native.INT)
SYMBOLS = {torch.float32: "unmask_rope_float", torch.bfloat16: "unmask_rope_bf16"}


@cache
def kernel(table: torch.dtype) -> native.Kernel:
    """The kernel for tables of that dtype, loaded and checked at first use."""
    return native.load(SYMBOLS[table], ARGUMENTS, lambda call: _agrees(call, table))


def takes(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Packed rows [n, H, D] whose heads lie side by side, with one table row each."""
    if x.dim() != 3 or cos.dim() != 3 or cos.dtype not in SYMBOLS or not native.fits(x):
        return False
    packed = x.stride(2) == 1 and x.stride(1) == x.shape[2]
    rows = cos.shape == sin.shape == (x.shape[0], 1, x.shape[2]) and cos.is_contiguous() and sin.is_contiguous()
    return packed and rows and kernel(cos.dtype).call is not None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x itself, rotated."""
    call = kernel(cos.dtype).call
    assert call is not None
    return _run(call, x, cos, sin)


def _run(call: Callable[..., Any], x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rows, heads, dim = x.shape
    call(x.data_ptr(), x.stride(0), cos.data_ptr(), sin.data_ptr(), rows, heads, dim)
    return x


def _agrees(call: Callable[..., Any], table: torch.dtype) -> bool:
    """Bit-equal: no order of summation is free here."""
    made = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 24, generator=made).bfloat16()[:, :3]
    cos, sin = (torch.rand(4, 1, 24, generator=made).to(table) for _ in range(2))
    return torch.equal(_run(call, x.clone(), cos, sin), reference(x, cos, sin))
