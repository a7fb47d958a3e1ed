"""The value of a likelihood, how sure it is, and what kind of value it is."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class Likelihood:
    """log p(answer | prompt), or a bound on it.

    Args:
        value: nats; the mean over the rounds.
        error: standard error of that mean, in nats: 0 where nothing was drawn, infinite after a single round.
        rounds: independent rounds of noise; the rows of one round are stratified and say nothing about the error.
        exact: no noise was drawn and the value is a log-probability, not a bound ("left_to_right" and "strategy": of
            that order of writing).
        method: the one that ran, of `METHODS`; never "auto".
        tokens: answer tokens that count in the value.
        greedy: whether greedy decoding writes exactly this answer; None if that was not asked.
        forwards: model calls in which the pair had rows.
        approximate: the value comes through a cache whose stored rows may be stale.
    """

    value: float
    error: float
    rounds: int
    exact: bool
    method: str
    tokens: int
    greedy: bool | None = None
    forwards: int = 0
    approximate: bool = False

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval of the expected value, in nats: of log p, or of its bound.

        Args:
            level: coverage, between 0 and 1.
        """
        if not self.error:
            return self.value, self.value
        half = math.inf if self.rounds < 2 else student_t(level, self.rounds - 1) * self.error
        return self.value - half, self.value + half

    @property
    def bits_per_token(self) -> float:
        """-value / tokens in bits; NaN where no token counts."""
        return -self.value / self.tokens / math.log(2) if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(-value / tokens); NaN where no token counts, infinite beyond what a float holds."""
        nats = -self.value / self.tokens if self.tokens else math.nan
        return math.inf if nats > 700 else math.exp(nats)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what is infinite or no number becomes None."""
        low, high = self.interval()
        told = {"low": low, "high": high, "bits_per_token": self.bits_per_token, "perplexity": self.perplexity}
        plain = asdict(self) | told
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}


@lru_cache(maxsize=4096)
def student_t(level: float, freedom: int) -> float:
    """Half width, in standard errors, of the interval that holds `level` of Student's t (closed form for whole degrees
    of freedom, Abramowitz and Stegun 26.7.3 and 26.7.4, inverted by bisection)."""
    low, high = 0.0, 1.0
    while _within(high, freedom) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for j in range(2 if odd else 1, freedom, 2):
        total += term
        term *= cosine * cosine * j / (j + 1)
    found = math.sin(angle) * total
    return 2 / math.pi * (angle + found) if odd else found
