"""What every objective promises the trainer, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from unmask.train.batch import Batch
from unmask.train.forward import Net


@dataclass(frozen=True)
class Loss:
    """`total` to differentiate; `metrics` are plain numbers for the log.

    Every objective reports "loss" and "positions", the rows that went through the layers (views and copies counted).
    """

    total: Tensor
    metrics: dict[str, float]


class Objective(Protocol):
    """A frozen dataclass whose fields are its configuration."""

    kind: ClassVar[str]

    @property
    def shift(self) -> int: ...

    def bound(self, mask_id: int | None, eos_id: int) -> Self:
        """A copy that knows the ids of its tokenizer."""

    def __call__(self, net: Net, batch: Batch, rng: torch.Generator) -> Loss: ...

    def held_out(self, net: Net, batch: Batch, rng: torch.Generator) -> tuple[float, int]:
        """The bound on the negative log-likelihood of a batch in nats, and the tokens it is about."""

    def shown(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """For a person who looks at the data: what one draw of noise hides, where the loss may speak; bool [B, T]."""
