"""Intervals for proportions, and for the difference of two on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from unmask.core.errors import ConfigError

Z95 = 1.959963984540054
Z95_ONE_SIDED = 1.6448536269514722


def wilson(correct: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of correct / n, 95 % by default (Wilson 1927); (0, 1) for n = 0.

    A sum of scores between 0 and 1 gets one that is too wide, never too narrow: nothing spreads more than 0 and 1.
    """
    if n == 0:
        return 0.0, 1.0
    p, zz = correct / n, z * z / n
    middle, half = p + zz / 2, z * sqrt(p * (1 - p) / n + zz / (4 * n))
    return max(0.0, (middle - half) / (1 + zz)), min(1.0, (middle + half) / (1 + zz))


def paired_difference(
    first: Sequence[bool], second: Sequence[bool], z: float = Z95_ONE_SIDED
) -> tuple[float, float, float]:
    """Difference of two proportions on the same items, and its two one-sided bounds, 95 % each by default.

    Args:
        first, second: item by item, whether each side was right.

    Returns:
        mean(second) - mean(first), its lower bound and its upper bound (normal approximation of the paired difference,
        with a half item of continuity; needs a hundred items or more to be trusted).
    """
    if len(first) != len(second) or not first:
        raise ConfigError(
            "paired answers", expected="two lists of the same length, not empty", got=f"{len(first)}, {len(second)}"
        )
    n = len(first)
    differences = [int(b) - int(a) for a, b in zip(first, second, strict=True)]
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / max(1, n - 1)
    half = z * sqrt(variance / n) + 0.5 / n
    return mean, max(-1.0, mean - half), min(1.0, mean + half)
