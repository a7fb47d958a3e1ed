"""LLaDA's two training losses.

Enters: the net, a batch of clean ids, an explicit generator. Leaves: a `Loss` and named metrics.
Source: LLaDA (arXiv 2502.09992), equations 3 and 5, and its GUIDELINES: both weigh the cross-entropy of a masked
token by 1/p; pretraining divides by all positions of the batch, SFT by the answer length of the row and the number of
rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unmask.core.errors import ConfigError
from unmask.noise.masked import Corrupted, MaskedNoise
from unmask.train.batch import Batch
from unmask.train.forward import Net
from unmask.train.objectives.loss import Loss


@dataclass(frozen=True)
class LladaPretrain:
    """Sum of CE/p over the masked tokens / (B * L).

    Args:
        noise: the forward process.
        random_length: probability that a batch is cut to a length uniform in 1..L (published: 0.01).
        shift: the token at p is predicted by row p - shift (Dream and other adapted AR models: 1).
    """

    kind: ClassVar[str] = "llada-pretrain"
    noise: MaskedNoise = MaskedNoise()
    random_length: float = 0.01
    shift: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.random_length <= 1.0:
            raise ConfigError("random_length is out of range", expected="0 to 1", got=str(self.random_length))

    def bound(self, mask_id: int | None, eos_id: int) -> LladaPretrain:
        """A copy that knows its mask id."""
        return replace(self, noise=replace(self.noise, mask_id=mask_id))

    def __call__(self, net: Net, batch: Batch, rng: torch.Generator) -> Loss:
        batch = self._cut(batch, rng)
        (view,) = self.noise.corrupt(batch.ids, ~maskable(batch.scored, self.shift), rng)
        ce = masked_losses(net, view, batch.real, self.shift)
        total = (ce * view.weight[view.masked]).sum() / batch.real.sum()
        return Loss(total, _metrics(total, ce, view.masked, batch))

    def held_out(self, net: Net, batch: Batch, rng: torch.Generator) -> tuple[float, int]:
        """LLaDA's bound: see `bound_of`."""
        return bound_of(net, batch, rng, self.noise.mask_id, self.shift)

    def shown(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One draw of noise, and where it may fall."""
        scored = maskable(batch.scored, self.shift)
        return self.noise.corrupt(batch.ids, ~scored, rng)[0].masked, scored

    def _cut(self, batch: Batch, rng: torch.Generator) -> Batch:
        if torch.rand(1, generator=rng).item() >= self.random_length:
            return batch
        return batch.cut(int(torch.randint(1, batch.ids.shape[1] + 1, (1,), generator=rng)))


@dataclass(frozen=True)
class LladaSft:
    """Prompt kept; sum of CE / (p * answer length of the row) / B.

    The defaults are the published ones. The others made small models learn faster here (see the training guide).

    Args:
        noise: the forward process.
        eos_padding: EOS tokens behind the first one are masked, trained and counted in the answer length (published).
            False takes them off the canvas: not attended, not masked, not counted (visible ones would tell the length).
        eos_weight: factor on the loss of that padding (published: 1).
        weight_clip: upper bound of the weight 1/p, None for none (published).
        normalise: "row" divides each row by its own answer length (published); "batch" divides the sum by the number of
            answer tokens of the whole batch, padding not counted.
        shift: the token at p is predicted by row p - shift (Dream and other adapted AR models: 1).
    """

    kind: ClassVar[str] = "llada-sft"
    noise: MaskedNoise = MaskedNoise()
    eos_padding: bool = True
    eos_weight: float = 1.0
    weight_clip: float | None = None
    normalise: Literal["row", "batch"] = "row"
    shift: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eos_weight <= 1.0:
            raise ConfigError("eos_weight is out of range", expected="0 to 1", got=str(self.eos_weight))
        if self.weight_clip is not None and self.weight_clip < 1.0:
            raise ConfigError("weight_clip is out of range", expected="at least 1", got=str(self.weight_clip))

    def __call__(self, net: Net, batch: Batch, rng: torch.Generator) -> Loss:
        batch, scored = batch if self.eos_padding else batch.without_tail(), self.scored(batch)
        (view,) = self.noise.corrupt(batch.ids, ~scored, rng, batch.hidden)
        ce = masked_losses(net, view, batch.real, self.shift)
        total = (ce * self._weights(batch, scored, view.weight)[view.masked]).sum()
        return Loss(total, _metrics(total, ce, view.masked & ~batch.tail, batch, view.masked))

    def bound(self, mask_id: int | None, eos_id: int) -> LladaSft:
        """A copy that knows its mask id."""
        return replace(self, noise=replace(self.noise, mask_id=mask_id))

    def held_out(self, net: Net, batch: Batch, rng: torch.Generator) -> tuple[float, int]:
        """LLaDA's bound: see `bound_of`."""
        return bound_of(net, batch, rng, self.noise.mask_id, self.shift)

    def shown(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One draw of noise, and where it may fall."""
        scored = self.scored(batch)
        return self.noise.corrupt(batch.ids, ~scored, rng, batch.hidden)[0].masked, scored

    def scored(self, batch: Batch) -> Tensor:
        """Where noise may fall and the loss may speak, [B, T]."""
        return maskable(batch.scored if self.eos_padding else batch.scored & ~batch.tail, self.shift)

    def _weights(self, batch: Batch, scored: Tensor, weight: Tensor) -> Tensor:
        """Weight of every position [B, T], the normalisation included."""
        if self.weight_clip is not None:
            weight = weight.clamp(max=self.weight_clip)
        if self.eos_weight != 1.0:
            weight = torch.where(batch.tail, weight * self.eos_weight, weight)
        if self.normalise == "batch":
            return weight / (scored & ~batch.tail).sum().clamp(min=1)
        length = scored.sum(1, keepdim=True).clamp(min=1)
        return weight / (length * batch.ids.shape[0])


def maskable(scored: Tensor, shift: int) -> Tensor:
    """`scored` without the first position where no row speaks for it."""
    if not shift:
        return scored
    out = scored.clone()
    out[:, :shift] = False
    return out


def masked_losses(net: Net, view: Corrupted, real: Tensor, shift: int) -> Tensor:
    """Cross-entropy of every masked token, [n] in row-major order; row p - shift speaks for position p."""
    speaking = view.masked.roll(-shift, 1) if shift else view.masked
    return net.losses(net.hidden(view.ids, real, speaking), view.target[view.masked])


def bound_of(net: Net, batch: Batch, rng: torch.Generator, mask_id: int | None, shift: int) -> tuple[float, int]:
    """LLaDA's bound on the negative log-likelihood with the published noise: sum of CE / p over the masked tokens in
    nats, and the number of scored tokens (EOS padding left out)."""
    scored = maskable(batch.scored & ~batch.tail, shift)
    (view,) = MaskedNoise(mask_id=mask_id, stratified=True).corrupt(batch.ids, ~scored, rng)
    losses = masked_losses(net, view, batch.real, shift)
    return float((losses.detach() * view.weight[view.masked]).sum()), int(scored.sum())


def _metrics(
    total: Tensor, ce: Tensor, counted: Tensor, batch: Batch, masked: Tensor | None = None
) -> dict[str, float]:
    """Loss, plain cross-entropy per masked token (EOS padding left out), masked tokens, rows through the layers."""
    mine = ce.detach() if masked is None else ce.detach()[counted[masked]]
    mean = mine.mean().item() if mine.numel() else 0.0
    return {"loss": total.item(), "ce": mean, "masked": float(counted.sum()), "positions": float(batch.tokens)}
