"""The compiled pass over bfloat16 logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unmask.ops import native
from unmask.ops.score.reference import best as reference

ARGUMENTS = (native.PTR, native.INT, native.PTR, native.PTR, native.PTR, native.INT, native.INT)


@cache
def kernel() -> native.Kernel:
    """Loaded and checked at first use."""
    return native.load("unmask_score", ARGUMENTS, _agrees)


def takes(logits: Tensor) -> bool:
    """Rows [n, V] whose entries lie side by side."""
    return native.fits(logits) and logits.dim() == 2 and logits.stride(1) == 1 and kernel().call is not None


def best(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.best`, for what `takes` accepts."""
    call = kernel().call
    assert call is not None
    return _run(call, logits)


def _run(call: Callable[..., Any], logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[0]
    index, largest, mass = torch.empty(rows, dtype=torch.long), torch.empty(rows), torch.empty(rows)
    to = (index.data_ptr(), largest.data_ptr(), mass.data_ptr())
    call(logits.data_ptr(), logits.stride(0), *to, rows, logits.shape[1])
    return index, largest, mass


def _agrees(call: Callable[..., Any]) -> bool:
    """Equal indices and maxima, masses within float32; with ties, closed ids, a row of nothing and a NaN."""
    logits = torch.randn(6, 333, generator=torch.Generator().manual_seed(0)).bfloat16() * 4
    logits[:, 7] = -torch.inf
    logits[1, 300] = logits[1, 12] = 50.0
    logits[2] = -torch.inf
    logits[3, 200] = torch.nan
    found, expected = _run(call, logits), reference(logits)
    same = torch.equal(found[0], expected[0]) and torch.equal(found[1].nan_to_num(9e9), expected[1].nan_to_num(9e9))
    return same and torch.allclose(found[2], expected[2], rtol=1e-5, equal_nan=True)
