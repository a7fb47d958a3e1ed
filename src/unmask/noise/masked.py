"""Masked (absorbing) noise of LLaDA: each token becomes the mask id with a probability drawn per row.

Enters: clean ids [B, T] and where noise may not fall. Leaves: one `Corrupted` view with everything a loss needs.
Source: LLaDA, section 2.2 and its GUIDELINES (p = (1 - eps) t + eps, eps = 1e-3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.core.errors import ConfigError


@dataclass(frozen=True)
class Corrupted:
    """One noised view of a batch.

    ids [B, T] the noised ids; target [B, T] the clean ones; masked [B, T] True where noise fell (the loss speaks
    there); weight [B, T] 1 / p of the row; t [B] the noise level in [0, 1).
    """

    ids: Tensor
    target: Tensor
    masked: Tensor
    weight: Tensor
    t: Tensor


@dataclass(frozen=True)
class MaskedNoise:
    """t ~ U[0, 1) per row, p = (1 - eps) t + eps, every token masked with probability p on its own.

    Args:
        eps: smallest masking probability.
        t_min: t is raised to this value (0 as published; a small batch trains better without nearly clean rows).
        stratified: the t of a batch are spread evenly over [0, 1) instead of drawn independently (0.0 variance of the
            batch's mean noise level; off as published).
        mask_id: the id that stands for a hole; a training run fills it in from its tokenizer.
    """

    eps: float = 1e-3
    t_min: float = 0.0
    stratified: bool = False
    mask_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("eps", "t_min"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ConfigError(f"noise.{name} is out of range", expected="0 <= value < 1", got=str(value))
        if self.eps == 0.0 and self.t_min == 0.0:
            raise ConfigError("noise.eps is 0 while t_min is 0", expected="one of them above 0 (1/p must stay finite)")

    def levels(self, rows: int, rng: torch.Generator) -> Tensor:
        """t [rows], float32 on the CPU."""
        if self.stratified:
            even = (torch.arange(rows) + torch.rand(1, generator=rng)) / rows
            t = even[torch.randperm(rows, generator=rng)]
        else:
            t = torch.rand(rows, generator=rng)
        return t.clamp(min=self.t_min)

    def corrupt(
        self, x0: Tensor, keep: Tensor, rng: torch.Generator, hidden: Tensor | None = None
    ) -> tuple[Corrupted, ...]:
        """One view.

        Args:
            x0: clean ids [B, T]. keep: True where no noise may fall. rng: a CPU generator.
            hidden: rows with any True here are masked exactly there; their weight is the number of places that may be
                masked over the number that are.
        """
        assert self.mask_id is not None
        t = self.levels(x0.shape[0], rng)
        p = ((1.0 - self.eps) * t + self.eps)[:, None].expand(x0.shape)
        masked = (torch.rand(x0.shape, generator=rng) < p).to(x0.device) & ~keep
        weight = (1.0 / p).to(x0.device)
        if hidden is not None:
            given = hidden.any(1, keepdim=True)
            masked = torch.where(given, hidden & ~keep, masked)
            ratio = (~keep).sum(1, keepdim=True) / masked.sum(1, keepdim=True).clamp(min=1)
            weight = torch.where(given, ratio, weight)
        ids = x0.masked_fill(masked, self.mask_id)
        return (Corrupted(ids, x0, masked, weight, t),)
