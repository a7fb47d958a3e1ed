"""SwiGLU's gate, the definition."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) in the input dtype, times up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
