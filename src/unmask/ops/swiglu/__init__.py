"""The gated half of SwiGLU on a fused projection."""

from __future__ import annotations

from torch import Tensor

from unmask.ops.swiglu import cpu, reference


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2F], gate first -> silu(gate) * up, [..., F]."""
    return cpu.swiglu(gate_up) if cpu.takes(gate_up) else reference.swiglu(gate_up)


def describe() -> str:
    """Which kernel runs for bfloat16 on the CPU; plain torch everywhere else."""
    return cpu.kernel().why
