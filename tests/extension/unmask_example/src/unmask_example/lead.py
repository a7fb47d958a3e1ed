"""Commit a position when its best token leads the second best by a margin; the widest margin always."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from torch import Tensor

from unmask.core.protocols import Noise
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Commit, Sequence


@component("lead")
class Lead:
    """by: the lead from which a position is committed."""

    by: float = option(0.5, low=0.0, high=1.0, help="lead over the second best token")
    scores = ("margin",)

    def init(self, seq: Sequence) -> None:
        return None

    def wants(self, seq: Sequence, open: Seq[Block], state: None) -> Tensor:
        return seq.holes(open[0].start, open[-1].stop)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: None, noise: Noise
    ) -> tuple[Commit, None]:
        assert candidates.margin is not None
        take = candidates.margin >= self.by
        take[candidates.margin.argmax()] = True
        slots = take.nonzero().flatten()
        return Commit(slots, candidates.token[slots], candidates.margin[slots]), state
