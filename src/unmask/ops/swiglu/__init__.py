"""The gated half of SwiGLU on a fused projection."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2F], gate first -> silu(gate) * up, [..., F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
