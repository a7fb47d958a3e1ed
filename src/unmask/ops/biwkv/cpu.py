"""The compiled Bi-WKV (`cpu.cpp`): float32, float64 and bfloat16 as they are, float16 by way of float32."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unmask.core.errors import RunError
from unmask.ops import native
from unmask.ops.biwkv.common import Gradients, Inputs, Saved

CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
WIDEST, NARROWEST = 256, 32


def missing(device: torch.device) -> str:
    """Why it cannot run on a device; "" if it can."""
    if device.type != "cpu":
        return "it is for the CPU"
    found, why = native.library(native.ANY)
    return "" if found is not None else why


def forward(x: Inputs, save: bool) -> tuple[Tensor, Saved | None]:
    """Output in r's dtype, and what the backward needs."""
    r, k, v = (_plain(t) for t in x[:3])
    out = torch.empty_like(r)
    y, z = (torch.empty(r.shape, dtype=x.lam.dtype) for _ in range(2)) if save else (None, None)
    tensors = (r, k, v, x.lam.contiguous(), x.u.contiguous(), _bytes(x.mask), _bytes(x.edges), out, y, z)
    _run("unmask_biwkv_forward", 10, r, tensors)
    return out.to(x.r.dtype), None if y is None or z is None else (y, z)


def backward(go: Tensor, x: Inputs, y: Tensor, z: Tensor) -> Gradients:
    """In closed form; each channel's sums belong to one thread, in a fixed order."""
    go, r, k, v = (_plain(t) for t in (go, *x[:3]))
    lam, u = x.lam.contiguous(), x.u.contiguous()
    gr, gk, gv, glam, gu = (torch.empty_like(t) for t in (r, k, v, lam, u))
    tensors = (go, r, k, v, lam, u, _bytes(x.mask), y.contiguous(), z.contiguous(), gr, gk, gv, glam, gu)
    _run("unmask_biwkv_backward", 14, r, tensors)
    return gr.to(x.r.dtype), gk.to(x.r.dtype), gv.to(x.r.dtype), glam, gu


def _plain(x: Tensor) -> Tensor:
    return (x if x.dtype in CODES else x.float()).contiguous()


def _bytes(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _channels(r: Tensor) -> int:
    """Channels per job: many, since rows lie far apart in memory, but no thread should be without a job."""
    width = WIDEST
    while width > NARROWEST and r.shape[0] * -(-r.shape[2] // width) < torch.get_num_threads():
        width //= 2
    return width


def _run(symbol: str, pointers: int, r: Tensor, tensors: tuple[Tensor | None, ...]) -> None:
    addresses = (None if t is None else t.data_ptr() for t in tensors)
    if _call(symbol, pointers)(CODES[r.dtype], *addresses, *r.shape, _channels(r)):
        raise RunError("Bi-WKV: no memory for the states of a segment")


@cache
def _call(symbol: str, pointers: int) -> Callable[..., Any]:
    found, why = native.library(native.ANY)
    assert found is not None, why
    call: Callable[..., Any] = getattr(found, symbol)
    call.argtypes = [native.INT, *[native.PTR] * pointers, *[native.INT] * 4]  # type: ignore[attr-defined]
    call.restype = ctypes.c_int  # type: ignore[attr-defined]
    return call
