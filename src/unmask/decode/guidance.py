"""Classifier-free guidance: a second lane in which everything given (prompt, constraints) is masked."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from unmask.core.spec import component, option


@component("cfg")
class ClassifierFree:
    """logits = un + scale * (cond - un); scale 1 is off. LLaDA's cfg_scale is scale - 1 (arXiv 2502.09992, eq. 16)."""

    scale: float = option(1.0, low=0.0, high=1000.0, help="guidance scale s; LLaDA's cfg_scale + 1")

    @property
    def lanes(self) -> int:
        """At scale 1 there is no second lane: un + 1 * (cond - un) would be cond but for the last bits."""
        return 1 if self.scale == 1.0 else 2

    def ids(self, lane: int, canvas: Tensor, fixed: Tensor, mask_id: int) -> Tensor:
        """Lane 0 is the canvas; lane 1 has exactly the fixed positions masked."""
        return canvas if lane == 0 else torch.where(fixed, mask_id, canvas)

    def combine(self, logits: Seq[Tensor]) -> Tensor:
        conditional, unconditional = logits
        return unconditional + self.scale * (conditional - unconditional)
