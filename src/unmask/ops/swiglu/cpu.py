"""The compiled SwiGLU gate for bfloat16 rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unmask.ops import native
from unmask.ops.swiglu.reference import swiglu as reference

ARGUMENTS = (native.PTR, native.PTR, native.INT, native.INT)


@cache
def kernel() -> native.Kernel:
    """Loaded and checked at first use."""
    return native.load("unmask_swiglu", ARGUMENTS, _agrees)


def takes(gate_up: Tensor) -> bool:
    """Contiguous rows, and nothing to differentiate."""
    return native.fits(gate_up) and gate_up.is_contiguous() and kernel().call is not None


def swiglu(gate_up: Tensor) -> Tensor:
    """As `ops.swiglu.swiglu`, for what `takes` accepts."""
    call = kernel().call
    assert call is not None
    return _run(call, gate_up)


def _run(call: Callable[..., Any], gate_up: Tensor) -> Tensor:
    dim = gate_up.shape[-1] // 2
    out = torch.empty((*gate_up.shape[:-1], dim), dtype=gate_up.dtype)
    call(gate_up.data_ptr(), out.data_ptr(), out.numel() // max(dim, 1), dim)
    return out


def _agrees(call: Callable[..., Any]) -> bool:
    """Equal up to one unit of bfloat16: the exponentials differ in their last float32 bit."""
    x = torch.linspace(-100, 100, 6 * 2 * 37).view(6, 2, 37).transpose(0, 1).reshape(2, 6 * 37).bfloat16()
    x = torch.cat((x, x.flip(0)), dim=-1)
    return torch.allclose(_run(call, x).float(), reference(x).float(), rtol=1e-2, atol=1e-30)
