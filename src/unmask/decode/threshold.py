"""Threshold policy: every position at or above a confidence, and the best one always (Fast-dLLM, arXiv 2505.22618)."""

from __future__ import annotations

from collections.abc import Sequence as Seq

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


@component("threshold")
class Threshold:
    """Commit every open position whose confidence is at least `threshold`; the best one always, so it never stalls."""

    threshold: float = option(0.9, low=0.0, high=1.0, help="confidence from which a position is committed")
    scores = ()

    def init(self, seq: Sequence) -> None:
        return None

    def wants(self, seq: Sequence, open: Seq[Block], state: None) -> Tensor:
        return holes_of(seq, open)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: None, noise: Noise
    ) -> tuple[Commit, None]:
        return commit(candidates, at_least(candidates.prob, self.threshold)), None
