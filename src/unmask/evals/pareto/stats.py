"""The statistics of paired answers: an exact test, a bound on what is lost, and how many items a question needs.

Enters: scores of two strategies on the same items. Leaves: numbers. Losses are baseline minus candidate: above 0 the
candidate is worse. Plain Python, except the bootstrap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, comb, fsum, sqrt

import numpy as np

from unmask.evals.intervals import Z95_ONE_SIDED

Z80_POWER = 0.8416212335729143
"""Standard normal quantile of 80 %: how likely a run of the size that is advised settles the question."""
DRAWS = 2000
CONTINUITY = 0.5
"""Items that are added to what was lost, since counts are whole."""


@dataclass(frozen=True)
class Paired:
    """One candidate against the baseline on the same items.

    Args:
        loss: mean of baseline minus candidate. bound: its one-sided 95 % upper bound.
        lost, gained: items that only the baseline, only the candidate has right (scores of 0 and 1; else where the
            score is lower, higher).
        p: McNemar's exact test, two-sided; None for scores between 0 and 1.
    """

    n: int
    loss: float
    bound: float
    lost: int
    gained: int
    p: float | None


def paired(base: Sequence[float], other: Sequence[float]) -> Paired:
    """Both strategies item by item, in the same order."""
    assert len(base) == len(other) and base
    lost, gained = sum(a > b for a, b in zip(base, other)), sum(a < b for a, b in zip(base, other))
    losses = [a - b for a, b in zip(base, other, strict=True)]
    n, mean = len(losses), fsum(losses) / len(losses)
    if is_binary(base) and is_binary(other):
        return Paired(n, mean, loss_bound(lost, gained, n), lost, gained, mcnemar(lost, gained))
    return Paired(n, mean, graded_bound(losses), lost, gained, None)


def is_binary(scores: Sequence[float]) -> bool:
    """Whether every score is right or wrong."""
    return all(s in (0.0, 1.0) for s in scores)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p of McNemar's test: discordant items fall to either side like a fair coin."""
    n = lost + gained
    if n == 0:
        return 1.0
    tail = sum(comb(n, k) for k in range(min(lost, gained) + 1))
    return min(1.0, 2 * tail / 2**n)


def loss_bound(lost: int, gained: int, n: int, z: float = Z95_ONE_SIDED) -> float:
    """Upper bound, 95 % one-sided by default, of the paired loss (lost - gained) / n.

    Tango's score bound (Statistics in Medicine 17, 1998) with half an item of continuity. The usual normal bound is too
    small where few items differ: with none of 50 it says 1 point, when 6 cannot be excluded.
    """
    low, high = max(-1.0, (lost - gained) / n), 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _score_statistic(lost, gained, n, middle) > -z:
            low = middle
        else:
            high = middle
    return high


def _score_statistic(lost: int, gained: int, n: int, loss: float) -> float:
    """Distance of the observed from a supposed loss, in standard errors under the latter."""
    b, c = lost + gained + loss * (lost - gained - 2 * n), gained * loss * (1 - loss)
    share = max(
        0.0, -loss, (b + sqrt(max(0.0, b * b + 8 * n * c))) / (4 * n)
    )  # of gained items, likeliest at this loss
    variance = n * (2 * share + loss - loss * loss)
    distance = lost - gained + CONTINUITY - n * loss
    return distance / sqrt(variance) if variance > 1e-12 else (float("inf") if distance > 0 else float("-inf"))


def graded_bound(losses: Sequence[float], z: float = Z95_ONE_SIDED) -> float:
    """The same for scores between 0 and 1: the normal bound, as if one more item had been lost in full.

    The imaginary item keeps it honest where all items agree.
    """
    more = [*losses, 1.0]
    n, mean = len(more), fsum(more) / len(more)
    variance = fsum((x - mean) ** 2 for x in more) / (n - 1)
    return min(1.0, mean + z * sqrt(variance / n) + CONTINUITY / n)


def items_needed(
    losses: Sequence[float], most: float, z: float = Z95_ONE_SIDED, power: float = Z80_POWER
) -> tuple[int, float]:
    """How many items would show, four times in five, that at most `most` is lost; and the loss that is supposed.

    The spread is the observed one. If as much as `most` was lost already, 0 is supposed: the number is then the least
    that could be enough.
    """
    n, mean = len(losses), fsum(losses) / len(losses)
    supposed = max(0.0, mean) if mean < most else 0.0
    spread = max(fsum(x * x for x in losses) - n * mean * mean, 0.0) / n
    needed = max(n + 1, ceil((z + power) ** 2 * spread / (most - supposed) ** 2))
    while loss_bound(0, 0, needed, z) >= most:  # where nearly all items agree, their number alone decides
        needed = ceil(needed * 1.1)
    return needed, supposed


def bootstrap(scores: Sequence[float], seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """95 % percentile interval of a mean over items."""
    values, rng = np.asarray(scores, dtype=np.float64), np.random.default_rng(seed)
    means = [float(values[rng.integers(0, len(values), len(values))].mean()) for _ in range(draws)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def is_choice(item: str) -> bool:
    """Whether an item belongs to the half a strategy is chosen on; the others confirm. By a hash of its id alone."""
    return hashlib.sha256(f"pareto\0{item}".encode()).digest()[0] % 2 == 0
