"""Next-token cross-entropy: the objective of autoregressive parents, which `unmask adapt` turns into diffusion models.

Enters: the net, a batch of clean ids. Leaves: a `Loss`. Row p predicts the token at p + 1 and sees the rows up to p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmask.train.batch import Batch
from unmask.train.forward import Net
from unmask.train.objectives.loss import Loss


@dataclass(frozen=True)
class Autoregressive:
    """Mean cross-entropy per predicted token; EOS padding behind the first EOS is never trained.

    Args:
        prompt_loss: also learn the prompt (pretraining); False trains the answers only.
    """

    kind: ClassVar[str] = "ar"
    shift: ClassVar[int] = 1
    prompt_loss: bool = True

    def bound(self, mask_id: int | None, eos_id: int) -> Autoregressive:
        """Nothing to fill in: this objective has no mask."""
        return self

    def __call__(self, net: Net, batch: Batch, rng: torch.Generator) -> Loss:
        ce = self._losses(net, batch.without_tail().without_pads())
        total = ce.mean() if ce.numel() else ce.sum()
        return Loss(total, {"loss": total.item(), "ce": total.item(), "positions": float(batch.tokens)})

    def held_out(self, net: Net, batch: Batch, rng: torch.Generator) -> tuple[float, int]:
        """Exact negative log-likelihood of the batch in nats, and its number of predicted tokens."""
        ce = self._losses(net, batch.without_tail().without_pads())
        return float(ce.detach().sum()), ce.numel()

    def shown(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Nothing is hidden; every token but a row's first is predicted."""
        scored = batch.real & ~batch.tail if self.prompt_loss else batch.scored & ~batch.tail
        scored = scored.clone()
        scored[:, 0] = False
        return torch.zeros_like(batch.real), scored

    def _losses(self, net: Net, batch: Batch) -> Tensor:
        wanted = batch.real if self.prompt_loss else batch.real & batch.scored
        wanted = wanted[:, 1:]
        speaking = torch.zeros_like(batch.real)
        speaking[:, :-1] = wanted
        return net.losses(net.hidden(batch.ids, batch.real, speaking, causal=True), batch.ids[:, 1:][wanted])
