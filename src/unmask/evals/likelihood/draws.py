"""Noise for the bounds: which answer tokens a draw masks, and what it weighs.

Sources: LLaDA (arXiv 2502.09992), Algorithm 3 and its get_log_likelihood.py; Dream's evaluation adapter, `nll_type
mc`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, compress

import torch
from torch import Tensor

from unmask.evals.likelihood.canvas import Pair, Part

DREAM_EPS = 1e-3
"""Dream's smallest masking probability."""


@dataclass(frozen=True)
class Draw:
    """A term of a round: weight times the sum of log p over `asked`, with `hidden` masked in part `part`."""

    weight: float
    part: int
    hidden: tuple[int, ...]
    asked: tuple[int, ...]


def strata(first: int, rows: int, length: int) -> Tensor:
    """LLaDA's masked tokens per row, [rows]: evenly spread over 1..length from a random first count, wrapped.

    Rounds half to even, as the reference does. Rows that fall on a half therefore get even counts only (8 tokens, 16
    rows: even counts come three times as often as odd ones), which biases the published estimate; `counts` does not.
    """
    spread = torch.round(torch.linspace(first, first + (rows - 1) * (length / rows), steps=rows)).long()
    return (spread - 1) % length + 1


def counts(rows: int, length: int, rng: torch.Generator) -> Tensor:
    """The same spread without the bias, [rows]: every row is uniform over 1..length."""
    offset = torch.rand((), generator=rng, dtype=torch.float64)
    return (((torch.arange(rows) + offset) / rows) * length).long().clamp_(max=length - 1) + 1


def published_counts(rows: int, length: int, rng: torch.Generator) -> Tensor:
    """`strata` from a random first count."""
    return strata(int(torch.randint(1, length + 1, (), generator=rng)), rows, length)


def masks(count: Tensor, length: int, rng: torch.Generator) -> Tensor:
    """bool [rows, length]: exactly `count` places per row, anywhere."""
    order = torch.rand(len(count), length, generator=rng, dtype=torch.float64).argsort(1)
    return order < count[:, None]


def noisy_rows(prompt: Tensor, answer: Tensor, rows: int, mask_id: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """One round of LLaDA's forward process: ids [rows, P + A] with answer tokens masked, the mask ratio per row
    [rows].
    """
    length = answer.shape[0]
    count = published_counts(rows, length, rng)
    noisy = torch.where(masks(count, length, rng), mask_id, answer[None].expand(rows, -1))
    return torch.cat((prompt[None].expand(rows, -1), noisy), 1), count / length


def counted_round(pair: Pair, rows: int, rng: torch.Generator, published: bool = False) -> list[Draw]:
    """One round of the bound: for each part, `rows` draws with stratified counts; a lone token needs no draw."""
    out = []
    for index, part in enumerate(pair.parts):
        n = len(part.holes)
        if n == 1:
            out.append(Draw(1.0, index, part.holes, part.holes))
            continue
        count = (published_counts if published else counts)(rows, n, rng)
        for masked, k in zip(masks(count, n, rng).tolist(), count.tolist(), strict=True):
            out.append(_draw(n / k / rows, index, part, masked))
    return out


def dream_round(pair: Pair, rows: int, rng: torch.Generator) -> list[Draw]:
    """One round of Dream's estimate: levels t spread from a random first one, p = (1 - eps) t + eps per token."""
    (part,) = pair.parts
    t = (torch.rand((), generator=rng) + torch.arange(rows) / rows) % 1
    p = (1 - DREAM_EPS) * t + DREAM_EPS
    masked = torch.rand(rows, len(part.holes), generator=rng) < p[:, None]
    return [_draw(1 / level / rows, 0, part, m) for m, level in zip(masked.tolist(), p.tolist(), strict=True)]


def every_mask(pair: Pair) -> list[Draw]:
    """The bound without noise: each set of k of a part's n tokens, weighted 1 / (k * number of such sets)."""
    return [
        Draw(1 / (k * math.comb(len(part.holes), k)), index, hidden, hidden)
        for index, part in enumerate(pair.parts)
        for k in range(1, len(part.holes) + 1)
        for hidden in combinations(part.holes, k)
    ]


def left_to_right(pair: Pair) -> list[Draw]:
    """Every answer token with itself and the rest of its part masked."""
    return [
        Draw(1.0, index, part.holes[i:], part.holes[i : i + 1])
        for index, part in enumerate(pair.parts)
        for i in range(len(part.holes))
    ]


def _draw(weight: float, index: int, part: Part, masked: Sequence[bool]) -> Draw:
    holes = tuple(compress(part.holes, masked))
    return Draw(weight, index, holes, holes)
