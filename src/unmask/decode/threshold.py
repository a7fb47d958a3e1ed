"""Threshold policy: every position at or above a confidence, and one always (Fast-dLLM, arXiv 2505.22618).

With `order="left_to_right"` a commit never leaves a hole before it: the longest run of confident positions from the
first open one. For models adapted from autoregressive ones, whose surest prediction is the next token.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Literal

from torch import Tensor

from unmask.core.protocols import Noise
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Commit, Sequence
from unmask.decode.select import commit, holes_of


def at_least(values: Tensor, threshold: float) -> Tensor:
    """Slots whose value is >= threshold, and the best one (ties: the first)."""
    take = values >= threshold
    if values.numel():
        take[values.argmax()] = True
    return take.nonzero().flatten()


def leading(values: Tensor, threshold: float) -> Tensor:
    """Slots before the first whose value is < threshold, and slot 0 in any case."""
    take = (values >= threshold).long().cumprod(0).bool()
    take[:1] = True
    return take.nonzero().flatten()


@component("threshold")
class Threshold:
    """Commit every open position whose confidence is at least `threshold`, so that it never stalls: the best one, too.

    With order="left_to_right": those before the first that is not confident, and the first open position always.
    """

    threshold: float = option(0.9, low=0.0, high=1.0, help="confidence from which a position is committed")
    order: Literal["any", "left_to_right"] = option("any", help="left_to_right never commits behind an open position")
    scores = ()

    def init(self, seq: Sequence) -> None:
        return None

    def wants(self, seq: Sequence, open: Seq[Block], state: None) -> Tensor:
        return holes_of(seq, open)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: None, noise: Noise
    ) -> tuple[Commit, None]:
        choose = at_least if self.order == "any" else leading
        return commit(candidates, choose(candidates.prob, self.threshold)), None
