"""The best entry of each row and the mass behind it, the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def best(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logits [n, V] -> index of the largest (ties: lowest), its value, sum exp(x - largest); float32 or wider."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    largest, index = wide.max(dim=-1)
    mass = torch.exp(wide - largest[:, None]).sum(-1)
    return index, largest, torch.where(largest == -torch.inf, 0.0, mass)
