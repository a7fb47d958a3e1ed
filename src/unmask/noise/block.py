"""Masked noise of block diffusion: a level for every block (or row), one view or a view and its complement.

Enters: how many blocks each row has and where noise may fall [B, blocks, D]. Leaves: the places that are masked in each
view and the masking probability of every place. No ids: the objective writes the holes.
Source: Fast-dLLM v2 (arXiv 2509.26328; complementary views), BD3-LM (arXiv 2503.09573; clipped schedule, resampling),
SDAR (arXiv 2510.06303; a level per sample, at least one hole).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmask.core.errors import ConfigError


@dataclass(frozen=True)
class BlockNoise:
    """p ~ U[clip] per block or per row, every token masked with probability p on its own.

    Args:
        clip: lowest and highest masking probability (0.001 and 1 as published; BD3-LM narrows them while training).
        t_per: one level for each block, or one for all blocks of a sample.
        stratified: the levels of a batch are spread evenly over the interval instead of drawn independently.
        complementary: a second view masks exactly the places that the first one left, so that the two views together
            supervise every token once.
        at_least_one: a sample without any hole gets one, at a random place.
        resample: a block whose masked share falls outside `clip` is drawn again.
        draws: independent noise for the same clean copy, which is computed once: more supervision per data token.
    """

    clip: tuple[float, float] = (1e-3, 1.0)
    t_per: Literal["block", "sample"] = "block"
    stratified: bool = False
    complementary: bool = True
    at_least_one: bool = False
    resample: bool = False
    draws: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.clip[0] < self.clip[1] <= 1.0:
            raise ConfigError("noise.clip is out of range", expected="0 < lowest < highest <= 1", got=str(self.clip))
        if self.draws < 1:
            raise ConfigError("noise.draws is out of range", expected="1 or more", got=str(self.draws))
        if self.at_least_one and self.complementary:
            raise ConfigError(
                "noise.at_least_one has no effect on complementary views",
                remedy="leave it out, or complementary: false",
            )

    def masks(self, scored: Tensor, blocks: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws the views.

        Args:
            scored: [B, N, D], True where noise may fall; nothing beyond a row's blocks.
            blocks: [B], the number of blocks of each row. Draws are made for these only, row by row: t, then u.
            rng: a CPU generator.

        Returns:
            masked [views, B, N, D], draw after draw, and the probability p [B, N, D] of the first view.
        """
        drawn = [self._draw(scored, blocks, rng) for _ in range(self.draws)]
        return torch.cat([masked for masked, _ in drawn]).to(scored.device), drawn[0][1].to(scored.device)

    def _draw(self, scored: Tensor, blocks: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A view and, where asked for, its complement; p of the first; on the CPU."""
        rows, count, size = scored.shape
        exists = (torch.arange(count)[None] < blocks.cpu()[:, None]).reshape(-1)
        level = self._levels(blocks.cpu(), rng)
        free = scored.cpu().reshape(-1, size)[exists]
        hit = (torch.rand(len(level), size, generator=rng) < level[:, None]) & free
        if self.resample:
            hit = self._resampled(hit, free, level, rng)
        masked = torch.zeros(rows * count, size, dtype=torch.bool)
        masked[exists] = hit
        p = torch.ones(rows * count, 1)
        p[exists] = level[:, None]
        views = [masked.view(rows, count, size)]
        if self.at_least_one:
            views = [_some(views[0], scored.cpu(), rng)]
        if self.complementary:
            views.append(scored.cpu() & ~views[0])
        return torch.stack(views), p.view(rows, count, 1).expand(scored.shape)

    def _levels(self, blocks: Tensor, rng: torch.Generator) -> Tensor:
        """p of every block, [sum of blocks], float32."""
        draws = int(blocks.sum()) if self.t_per == "block" else len(blocks)
        t = torch.rand(draws, generator=rng)
        if self.stratified:
            t = ((torch.arange(draws) + t) / draws)[torch.randperm(draws, generator=rng)]
        low, high = self.clip
        p = (high - low) * t + low
        return p if self.t_per == "block" else p.repeat_interleave(blocks)

    def _resampled(self, hit: Tensor, free: Tensor, level: Tensor, rng: torch.Generator) -> Tensor:
        """Blocks outside the interval drawn again, where any number of holes could be inside it."""
        places = free.sum(1)
        low = torch.ceil(places * (self.clip[0] if self.clip[0] > 1e-3 else 0.0) - 1e-6)
        high = torch.floor(places * self.clip[1] + 1e-6)
        while True:
            holes = hit.sum(1)
            bad = ((holes < low) | (holes > high)) & (low <= high)
            if not bad.any():
                return hit
            again = torch.rand(hit.shape, generator=rng) < level[:, None]
            hit = torch.where(bad[:, None], again & free, hit)


def _some(masked: Tensor, scored: Tensor, rng: torch.Generator) -> Tensor:
    """One hole for every row that has none and may have one."""
    flat, free = masked.flatten(1), scored.flatten(1)
    chosen = torch.rand(flat.shape, generator=rng).masked_fill(~free, -math.inf).argmax(1)
    lacking = ~flat.any(1) & free.any(1)
    one = torch.zeros_like(flat)
    one[lacking.nonzero().squeeze(1), chosen[lacking]] = True
    return (flat | one).view(masked.shape)
