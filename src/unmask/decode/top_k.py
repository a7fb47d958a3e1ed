"""Top-k policies: a fixed number of passes per block, and in each pass the best positions by one measure.

LLaDA's low_confidence and random remasking (arXiv 2502.09992, Algorithms 4 and 5), and the same rule by entropy or
margin. Of several open blocks the first is theirs: steps are shared by blocks.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from torch import Tensor

from unmask.core.protocols import Noise
from unmask.core.spec import MOST, component, option
from unmask.core.types import Block, Candidates, Commit, Sequence
from unmask.decode.select import Pass, commit, holes_of, passes_per_block, quotas, ranked

STEPS = "denoising steps for the whole answer, shared equally by its blocks"


def enter(seq: Sequence, state: Pass, steps: int) -> Pass:
    """The state for the open block, with fresh quotas when the block is new."""
    block = next(b for b in seq.blocks if not b.done)
    if state.block == block.start:
        return state
    count = int(seq.holes(block.start, block.stop).numel())
    return Pass(block.start, 0, tuple(quotas(count, passes_per_block(steps, seq))))


def take(
    seq: Sequence, candidates: Candidates, values: Tensor, state: Pass, steps: int, all_passes: bool
) -> tuple[Commit, Pass]:
    """Commit this pass's quota by `values`. Without `all_passes`, holes beyond the quotas go with the last pass."""
    state = enter(seq, state, steps)
    quota = state.quotas[state.done] if state.done < len(state.quotas) else len(values)
    after = Pass(state.block, state.done + 1, state.quotas)
    busy = all_passes and after.done < len(after.quotas)
    close = all_passes and not busy
    return commit(candidates, ranked(values)[:quota], busy=busy, close=close), after


@component("low_confidence")
class LowConfidence:
    """The most confident positions first. steps: passes for the whole answer; all_passes: run also empty ones
    (LLaDA).
    """

    steps: int = option(128, low=1, high=MOST, help=STEPS)
    all_passes: bool = option(False, help="run every pass, also when nothing is left to commit")
    scores = ()

    def init(self, seq: Sequence) -> Pass:
        return Pass()

    def wants(self, seq: Sequence, open: Seq[Block], state: Pass) -> Tensor:
        return holes_of(seq, open[:1])

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Pass, noise: Noise
    ) -> tuple[Commit, Pass]:
        return take(seq, candidates, candidates.prob, state, self.steps, self.all_passes)


@component("random")
class Random:
    """Random positions. steps: passes for the whole answer; all_passes: run also empty ones (LLaDA)."""

    steps: int = option(128, low=1, high=MOST, help=STEPS)
    all_passes: bool = option(False, help="run every pass, also when nothing is left to commit")
    scores = ()

    def init(self, seq: Sequence) -> Pass:
        return Pass()

    def wants(self, seq: Sequence, open: Seq[Block], state: Pass) -> Tensor:
        return holes_of(seq, open[:1])

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Pass, noise: Noise
    ) -> tuple[Commit, Pass]:
        values = noise.uniform("canvas", seq.step, want, seq.length)
        return take(seq, candidates, values, state, self.steps, self.all_passes)


@component("entropy")
class Entropy:
    """Positions of lowest entropy first. steps: passes for the whole answer."""

    steps: int = option(128, low=1, high=MOST, help=STEPS)
    scores = ("entropy",)

    def init(self, seq: Sequence) -> Pass:
        return Pass()

    def wants(self, seq: Sequence, open: Seq[Block], state: Pass) -> Tensor:
        return holes_of(seq, open[:1])

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Pass, noise: Noise
    ) -> tuple[Commit, Pass]:
        assert candidates.entropy is not None
        return take(seq, candidates, candidates.entropy, state, self.steps, False)


@component("margin")
class Margin:
    """Positions of largest top-1 to top-2 margin first. steps: passes for the whole answer."""

    steps: int = option(128, low=1, high=MOST, help=STEPS)
    scores = ("margin",)

    def init(self, seq: Sequence) -> Pass:
        return Pass()

    def wants(self, seq: Sequence, open: Seq[Block], state: Pass) -> Tensor:
        return holes_of(seq, open[:1])

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Pass, noise: Noise
    ) -> tuple[Commit, Pass]:
        assert candidates.margin is not None
        return take(seq, candidates, candidates.margin, state, self.steps, False)
