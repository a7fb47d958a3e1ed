"""pass@k: the chance that at least one of k drawn samples passes, estimated from n >= k samples per task.

Enters: how many samples of each task were drawn and passed. Leaves: the unbiased estimate (Chen et al. 2021, arXiv
2107.03374) and a 95 % interval: Wilson's where every task's estimate is 0 or 1, or the same, a bootstrap
over tasks otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from unmask.core.errors import ConfigError
from unmask.evals.intervals import wilson

DRAWS = 2000


@dataclass(frozen=True)
class PassAtK:
    """The mean over tasks, with its 95 % interval."""

    k: int
    tasks: int
    value: float
    low: float
    high: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): k of n samples drawn without replacement, c of the n pass.

    Raises:
        ConfigError: k is not in 1..n, or c not in 0..n.
    """
    if not 1 <= k <= n:
        raise ConfigError(f"pass@{k}", expected=f"k from 1 to the {n} samples of a task", got=str(k))
    if not 0 <= c <= n:
        raise ConfigError("passed samples", expected=f"0 to {n}", got=str(c))
    if n - c < k:
        return 1.0
    # as a product of factors near 1: the binomials themselves overflow
    return 1.0 - prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int, seed: int = 0) -> PassAtK:
    """pass@k over tasks.

    Args:
        counts: (samples, passed) of each task.
        k: samples drawn.
        seed: of the bootstrap.
    """
    if not counts:
        raise ConfigError(f"pass@{k}", expected="at least one task", got="none")
    values = [pass_at_k(n, c, k) for n, c in counts]
    mean = sum(values) / len(values)
    if all(v in (0.0, 1.0) for v in values) or len(set(values)) == 1:  # a bootstrap would claim to be certain
        low, high = wilson(sum(values), len(values))
    else:
        low, high = _bootstrap(values, seed)
    return PassAtK(k, len(values), mean, low, high)


def _bootstrap(values: Sequence[float], seed: int) -> tuple[float, float]:
    """Percentiles of the mean over tasks drawn with replacement."""
    rng, n = random.Random(seed), len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(DRAWS))
    return means[int(0.025 * DRAWS)], means[int(0.975 * DRAWS) - 1]
