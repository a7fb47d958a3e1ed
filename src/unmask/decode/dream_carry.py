"""Fast-dLLM's threshold for Dream on the whole canvas: a fixed share per step, refused positions are carried over.

Reproduces the published rule (no early finish; steps grow while positions are refused); for new work use `threshold`.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor

from unmask.core.protocols import Noise
from unmask.core.spec import MOST, component, option
from unmask.core.types import Block, Candidates, Commit, Sequence
from unmask.decode.select import commit, holes_of, ranked


@dataclass(frozen=True)
class Carry:
    """share: tokens a step considers; carry: refused so far; step of steps."""

    share: int
    carry: int
    step: int
    steps: int


@component("dream_carry")
class DreamCarry:
    """Each step looks at the best share + carry positions: the best settles, others below `threshold` are carried
    over.
    """

    steps: int = option(128, low=1, high=MOST, help="denoising steps; must divide the answer's length")
    threshold: float = option(0.9, low=0.0, high=1.0, help="confidence below which a position is carried over")
    scores = ()

    def init(self, seq: Sequence) -> Carry:
        return Carry(max(1, int(seq.holes(0, seq.length).numel()) // self.steps), 0, 0, self.steps)

    def wants(self, seq: Sequence, open: Seq[Block], state: Carry) -> Tensor:
        return holes_of(seq, open)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Carry, noise: Noise
    ) -> tuple[Commit, Carry]:
        considered = ranked(candidates.prob)[: max(1, state.share + state.carry)]  # blocks fill before the steps end
        taken = candidates.prob[considered] >= self.threshold
        taken[:1] = True
        refused = int((~taken).sum())
        last = state.step == state.steps - 1
        share, steps = (0, state.steps + 1) if last and refused else (state.share, state.steps)
        after = Carry(share, refused, state.step + 1, steps)
        return commit(candidates, considered[taken], busy=after.step < after.steps), after
