"""The compiled attention of bfloat16 query rows against one span of stored keys and values."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.ops import native

P, I = native.PTR, native.INT
ARGUMENTS = (P, I, P, P, I, P, I, I, I, I, I, native.FLOAT, I)
FEWEST = 8
"""Query rows per head below which packing the keys costs more than it brings."""


@cache
def kernel() -> native.Kernel:
    """Loaded and checked at first use."""
    return native.load("unmask_attention", ARGUMENTS, _agrees)


def takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """q [n, H, D] with heads side by side, k and v [KV, m, D] with rows side by side, D a multiple of 32."""
    n, heads, dim = q.shape
    if dim % 32 or k.shape[1] == 0 or n * heads < FEWEST * k.shape[0] or not native.fits(q, k, v):
        return False
    packed = q.stride(2) == 1 and q.stride(1) == dim and k.stride() == v.stride()
    return packed and k.stride(2) == 1 and k.stride(1) == dim and kernel().call is not None


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q . k / sqrt(D)) . v for every row, [n, H, D]."""
    call = kernel().call
    assert call is not None
    return _run(call, q, k, v)


def _run(call: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n, heads, dim = q.shape
    out = torch.empty((n, heads, dim), dtype=q.dtype)
    splits = -(-torch.get_num_threads() // k.shape[0])
    to = (q.data_ptr(), q.stride(0), k.data_ptr(), v.data_ptr(), k.stride(0), out.data_ptr())
    if call(*to, n, heads, k.shape[0], dim, k.shape[1], dim**-0.5, splits):
        raise MemoryError("attention")
    return out


def _agrees(call: Callable[..., Any]) -> bool:
    """Within the rounding of bfloat16, for grouped heads, odd lengths and both widths of the inner loop."""
    made = torch.Generator().manual_seed(0)
    for n, heads, kv, dim, m in ((9, 4, 2, 32, 19), (8, 2, 2, 64, 70), (3, 6, 2, 96, 33)):
        q = torch.randn(n, 2, heads, dim, generator=made).bfloat16()[:, 1]
        k, v = torch.randn(2, kv, m + 3, dim, generator=made).bfloat16()[:, :, 2 : 2 + m]
        wide, keys, values = q.float().transpose(0, 1)[None], k.float()[None], v.float()[None]
        expected = F.scaled_dot_product_attention(wide, keys, values, enable_gqa=True)[0].transpose(0, 1)
        if not torch.allclose(_run(call, q, k, v).float(), expected, rtol=2e-2, atol=2e-2):
            return False
    return True
