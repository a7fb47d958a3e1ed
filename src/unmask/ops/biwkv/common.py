"""What every implementation of Bi-WKV shares: the state of one direction, the empty log-weight, the state's dtype."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEG = -1e30
"""The log-weight of nothing. Finite, so that differences of two of them are 0 and not NaN."""
EMPTY = -1e29
"""A row whose largest log-weight lies below has no key: its output is 0."""


class State(NamedTuple):
    """A weighted sum of values and the sum of its weights, exp(p) * (a, b), each [B, C] (or [B, N, C] for N cuts)."""

    p: Tensor
    a: Tensor
    b: Tensor


class Inputs(NamedTuple):
    """Operands as implementations get them: r, k, v [B, T, C] of one dtype, lam and u [B, C] in the state's dtype,
    mask bool [B, T] or None, edges [2, 3, B, C] (left and right state) or None, all on one device.
    """

    r: Tensor
    k: Tensor
    v: Tensor
    lam: Tensor
    u: Tensor
    mask: Tensor | None = None
    edges: Tensor | None = None


Saved = tuple[Tensor, Tensor]
"""What the backward needs beside the inputs, in the state's dtype: the weighted mean y and Z, its log normaliser."""
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of r, k, v (dtype of r) and lam, u (the state's dtype)."""


def state_dtype(x: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if x == torch.float64 else torch.float32


def normal(state: State) -> tuple[Tensor, Tensor]:
    """The same state as (log of the weight, weighted mean): what a merge of two states needs."""
    some = state.b > 0
    b = torch.where(some, state.b, torch.ones_like(state.b))
    p = torch.where(some, state.p, torch.full_like(state.p, NEG))
    return p + b.log(), torch.where(some, state.a / b, torch.zeros_like(b))


def edge(edges: Tensor | None, side: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The incoming state of one side (0 left, 1 right) in normal form; of nothing where none came. `like` is [B, C]."""
    if edges is None:
        return torch.full_like(like, NEG), torch.zeros_like(like)
    return normal(State(*edges[side]))
