"""Block diffusion: masked diffusion inside a block, given the clean blocks before it.

Enters: the net, a batch of clean ids, an explicit generator. Leaves: a `Loss` and named metrics. The defaults are
Fast-dLLM v2's (arXiv 2509.26328): two complementary views, row p predicts token p + 1, plain mean cross-entropy, mask
ids as padding up to a whole block. `bd3lm`, `sdar` and `a2d` are the other published settings of the same loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.core.errors import ConfigError
from unmask.core.types import Context
from unmask.noise.block import BlockNoise
from unmask.train import block_forward
from unmask.train.batch import Batch
from unmask.train.forward import Net
from unmask.train.objectives.loss import Loss

LOWEST = 1e-3
"""Smallest masking probability of the published schedules."""


@dataclass(frozen=True)
class Blocks:
    """A batch by blocks, [B, N, D] each: clean ids with their padding, where noise may fall, what a cut hides.

    count: [B], the blocks of each row.
    """

    ids: Tensor
    scored: Tensor
    hidden: Tensor
    count: Tensor


@dataclass(frozen=True)
class _Spoken:
    """Cross-entropy [n] of the tokens `plan` speaks for, and the masking probability [B, N, D] of the first view.

    ar: next-token cross-entropy [m] at the clean rows.
    """

    blocks: Blocks
    plan: block_forward.BlockPlan
    ce: Tensor
    ar: Tensor
    p: Tensor

    def at(self, t: Tensor) -> Tensor:
        """Values of a [B, N, D] tensor at the tokens spoken for."""
        return t.flatten(1)[self.plan.row, self.plan.position]


@dataclass(frozen=True)
class BlockDiffusion:
    """Sum of weighted CE over the masked tokens / a number of tokens.

    EOS tokens behind the first one are taken off the canvas: rows are padded to whole blocks by `pad` instead.

    Args:
        block: tokens of a block, D.
        noise: levels and views.
        shift: 1, row p predicts token p + 1 (the first token of a block is read from the row before it, in the same
            noisy view; nobody predicts the first token of a row); 0, row p predicts token p.
        weight: "none", or "1/t": CE / p of the block (1 where the schedule is clipped above 0.5, as in BD3-LM).
        normalise: "tokens" divides by the number of supervised tokens (the plain mean over all views); "scored" by the
            number of tokens that noise may reach; "row" divides each row by its own number of these, then by the rows.
        pad: what fills the last block of a row. "mask": mask ids, seen but never trained; "eos" and "pad": EOS, or
            `pad_id`, trained like any other token.
        pad_id: the id of pad: pad.
        keep_first: the first token of a row is never masked.
        context: "block" as published: finished blocks are seen from both sides, too; "causal": their rows see what
            comes before them only, as the autoregressive parent's did, and a block's first token is read from the clean
            row before it (NBDiff, openreview 5gzBAI8Li7).
        ar_weight: with a causal context, next-token CE of the clean copy is added with this weight (NBDiff); it keeps
            the parent's skill.
        mask_id, eos_id: filled in by `bound`.
    """

    kind: ClassVar[str] = "block-diffusion"
    block: int = 32
    noise: BlockNoise = field(default_factory=BlockNoise)
    shift: Literal[0, 1] = 1
    weight: Literal["none", "1/t"] = "none"
    normalise: Literal["tokens", "scored", "row"] = "tokens"
    pad: Literal["mask", "eos", "pad"] = "mask"
    pad_id: int | None = None
    keep_first: bool = False
    context: Context = "block"
    ar_weight: float = 0.0
    mask_id: int | None = None
    eos_id: int | None = None

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ConfigError("objective.block is out of range", expected="1 or more", got=str(self.block))
        if self.shift not in (0, 1):
            raise ConfigError("objective.shift is out of range", expected="0 or 1", got=str(self.shift))
        if self.weight == "1/t" and self.noise.complementary:
            raise ConfigError(
                "objective.weight 1/t does not go with complementary views",
                expected="one of the two (the complement would weigh 1/(1 - t), without bound)",
                remedy="noise: {complementary: false}, or weight: none",
            )
        if self.weight == "1/t" and self.noise.draws > 1:
            raise ConfigError(
                "objective.weight 1/t goes with one draw of noise", expected="noise.draws 1", got=str(self.noise.draws)
            )
        if self.context not in ("block", "causal"):
            raise ConfigError("objective.context", expected="block or causal", got=str(self.context))
        if self.context == "causal" and not self.shift:
            raise ConfigError(
                "objective.context causal needs the token shift of an autoregressive parent",
                expected="objective.shift 1",
                got="0",
                remedy="leave shift out, or use context: block",
            )
        if not 0 <= self.ar_weight < math.inf or (self.ar_weight and self.context != "causal"):
            raise ConfigError(
                "objective.ar_weight",
                expected="0 or more, and above 0 only with context: causal (else a clean row has seen its next token)",
                got=f"{self.ar_weight} with context: {self.context}",
            )
        if (self.pad == "pad") != (self.pad_id is not None):
            raise ConfigError("objective.pad_id belongs to pad: pad", got=f"pad: {self.pad}, pad_id: {self.pad_id}")

    def bound(self, mask_id: int | None, eos_id: int) -> BlockDiffusion:
        """A copy that knows its ids."""
        if mask_id is None:
            raise ConfigError("objective block-diffusion needs a mask token", remedy="give the tokenizer one")
        return dataclasses.replace(self, mask_id=mask_id, eos_id=eos_id)

    # --- losses -------------------------------------------------------------------------------------------------------

    def __call__(self, net: Net, batch: Batch, rng: torch.Generator) -> Loss:
        spoken = self._speak(net, batch, rng)
        total = (spoken.ce * self._weights(spoken)).sum()
        if spoken.ar.numel():
            total = total + self.ar_weight * spoken.ar.mean()
        count = spoken.ce.numel()
        told = {"ar_ce": spoken.ar.detach().mean().item()} if spoken.ar.numel() else {}
        metrics = {
            **told,
            "loss": total.item(),
            "ce": spoken.ce.detach().mean().item() if count else 0.0,
            "masked": float(count),
            "positions": float(spoken.plan.ids.numel()),
        }
        return Loss(total, metrics)

    def held_out(self, net: Net, batch: Batch, rng: torch.Generator) -> tuple[float, int]:
        """The NELBO of a batch in nats, and the number of its tokens.

        One view, a level per block from U[0.001, 1] whatever the schedule, CE / p; a block's first token is read from
        the clean block before it, as decoding does.
        """
        noise = BlockNoise(stratified=True, complementary=False)
        plain = dataclasses.replace(self, noise=noise, pad="mask", pad_id=None, ar_weight=0.0)
        spoken = plain._speak(net, batch, rng, clean_reads=True)
        return float((spoken.ce.detach() / spoken.at(spoken.p)).sum()), int(plain._count(spoken.blocks.scored).sum())

    def block_losses(self, net: Net, batch: Batch, rng: torch.Generator) -> Tensor:
        """Weighted CE of every block with scored tokens, per such token: [n]."""
        spoken = self._speak(net, batch, rng)
        sums = torch.zeros(spoken.blocks.ids.shape, device=spoken.ce.device)
        sums.flatten(1)[spoken.plan.row, spoken.plan.position] = spoken.ce.float() * self._level_weights(spoken)
        count = self._reached(spoken.blocks.scored).sum(2)
        return sums.sum(2)[count > 0] / count[count > 0]

    def shown(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One draw of noise (the first view), and where it may fall; padding to whole blocks is left out."""
        blocks, width = self.blocks(batch), batch.ids.shape[1]
        masked = self._masks(blocks, rng)[0][0]
        first, scored = (F.pad(t.flatten(1), (0, width))[:, :width] & batch.real for t in (masked, blocks.scored))
        return first, scored

    # --- parts --------------------------------------------------------------------------------------------------------

    def blocks(self, batch: Batch) -> Blocks:
        """The batch cut into blocks, its rows filled up; trained padding is scored."""
        batch, size = batch.without_tail(), self.block
        count = -(-batch.real.sum(1) // size)
        width = int(count.max()) * size

        def wide(t: Tensor) -> Tensor:
            return F.pad(t[:, :width], (0, max(0, width - t.shape[1])))

        ids, real, scored, hidden, pads = (
            wide(t) for t in (batch.ids, batch.real, batch.scored, batch.hidden, batch.pads)
        )
        filler = (~real | pads) & (torch.arange(width, device=ids.device) < (count * size)[:, None])
        ids = ids.masked_fill(filler, self._fill)
        if self.pad != "mask":
            scored = scored | filler
        if self.keep_first:
            scored = scored & (torch.arange(width, device=ids.device) > 0)
        ids, scored, hidden = (t.unflatten(1, (-1, size)) for t in (ids, scored, hidden & scored))
        return Blocks(ids, scored, hidden, count)

    @property
    def _mask(self) -> int:
        assert self.mask_id is not None, "bound() comes first"
        return self.mask_id

    @property
    def _fill(self) -> int:
        fill = {"mask": self.mask_id, "eos": self.eos_id, "pad": self.pad_id}[self.pad]
        assert fill is not None, "bound() comes first"
        return fill

    def _masks(self, blocks: Blocks, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The noise's views and p; rows with a cut are masked exactly there (their complement in the second view)."""
        masked, p = self.noise.masks(blocks.scored, blocks.count, rng)
        given = blocks.hidden.flatten(1).any(1)[:, None, None]
        pair = [blocks.hidden, blocks.scored & ~blocks.hidden][: len(masked) // self.noise.draws]
        return torch.where(given, torch.stack(pair * self.noise.draws), masked), p

    def _speak(self, net: Net, batch: Batch, rng: torch.Generator, clean_reads: bool = False) -> _Spoken:
        blocks = self.blocks(batch)
        masked, p = self._masks(blocks, rng)
        clean_reads = clean_reads or self.context == "causal"
        told = blocks.scored if self.ar_weight else None
        plan = block_forward.plan(blocks.ids, masked, self._mask, self.shift, clean_reads, self.context, told)
        row, position = torch.cat([plan.row, plan.clean_row]), torch.cat([plan.position, plan.clean_position])
        ce = net.losses(block_forward.hidden(net, plan), blocks.ids.flatten(1)[row, position])
        return _Spoken(blocks, plan, ce[: len(plan.row)], ce[len(plan.row) :], p)

    def _reached(self, scored: Tensor) -> Tensor:
        """[B, N, D] without what nobody speaks for: the first token of a row, where the shift is one."""
        if not self.shift:
            return scored
        out = scored.clone()
        out[:, 0, 0] = False
        return out

    def _count(self, scored: Tensor) -> Tensor:
        return self._reached(scored).flatten(1).sum(1)

    def _level_weights(self, spoken: _Spoken) -> Tensor:
        one = torch.ones_like(spoken.ce)
        return one if self.weight == "none" or self.noise.clip[0] > 0.5 else one / spoken.at(spoken.p)

    def _weights(self, spoken: _Spoken) -> Tensor:
        """Weight of every supervised token [n], the normalisation included."""
        weights = self._level_weights(spoken)
        if self.normalise == "tokens":
            return weights / max(1, len(weights))
        count = self._count(spoken.blocks.scored)
        if self.normalise == "scored":
            return weights / (count.sum().clamp(min=1) * self.noise.draws)
        return weights / (count[spoken.plan.row].clamp(min=1) * len(count) * self.noise.draws)


# --- the published settings -------------------------------------------------------------------------------------------


def fast_dllm_v2(block: int = 32) -> BlockDiffusion:
    """Fast-dLLM v2: the defaults."""
    return BlockDiffusion(block)


def bd3lm(block: int = 16, clip: tuple[float, float] = (LOWEST, 1.0)) -> BlockDiffusion:
    """BD3-LM (arXiv 2503.09573): no shift, 1/t, levels spread over the batch, clipped schedule, first token kept."""
    noise = BlockNoise(clip, stratified=True, complementary=False, resample=clip != (LOWEST, 1.0))
    return BlockDiffusion(block, noise, 0, "1/t", "scored", "eos", keep_first=True)


def sdar(pad_id: int, block: int = 4) -> BlockDiffusion:
    """SDAR (arXiv 2510.06303): no shift, 1/t, one level and at least one hole per sample, trained pad tokens."""
    noise = BlockNoise(t_per="sample", complementary=False, at_least_one=True)
    return BlockDiffusion(block, noise, 0, "1/t", "scored", "pad", pad_id)


def a2d(block: int = 32) -> BlockDiffusion:
    """The a2d recipe of dllm: no shift, 1/t, one level per sequence, trained EOS padding."""
    return BlockDiffusion(block, BlockNoise(t_per="sample", complementary=False), 0, "1/t", "scored", "eos")


@torch.no_grad()
def search_clip(
    objective: BlockDiffusion,
    net: Net,
    batches: Sequence[Batch],
    rng: torch.Generator,
    widths: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9),
    step: float = 0.05,
) -> tuple[float, float]:
    """BD3-LM's clipped schedule: the interval of masking probabilities whose weighted loss per block varies least.

    Args:
        objective: with weight 1/t.
        batches: held-out batches; every interval sees them with the same random numbers.
        widths, step: intervals of these widths, at offsets `step` apart.

    Returns:
        The `clip` for `BlockNoise`.

    Raises:
        ConfigError: an objective without the weight 1/t, whose variance is not that of a NELBO.
    """
    if objective.weight != "1/t":
        raise ConfigError("the search for a clipped schedule needs weight: 1/t", got=objective.weight)
    seed = int(torch.randint(1 << 31, (1,), generator=rng))
    best = (float("inf"), objective.noise.clip)
    for clip in _intervals(widths, step):
        draw = torch.Generator().manual_seed(seed)
        trial = dataclasses.replace(objective, noise=dataclasses.replace(objective.noise, clip=clip))
        losses = torch.cat([trial.block_losses(net, batch, draw) for batch in batches])
        best = min(best, (losses.double().var().item(), clip))
    return best[1]


def _intervals(widths: Sequence[float], step: float) -> Iterator[tuple[float, float]]:
    for width in widths:
        for i in range(int((1 - width) / step + 1e-6) + 1):
            yield max(LOWEST, round(i * step, 6)), round(i * step + width, 6)
