"""SlowFast policy: explore one token at a time until the end of a settled stretch stands still, then fill it quickly.

Exploring, each step commits the surest position and notes how far to the right the model has an opinion at all
(`reach`). When the last `window` of these ends differ by less than `spread`, or after `explore` steps, the stretch up
to there is filled: every position at or above `threshold`, the best one always, nothing beyond it. Then the next one is
explored. Source: SlowFast Sampling, arXiv 2506.10848; its published program explores for all `explore` steps, and takes
several sure tokens there, too. Its reuse of the rows beyond the stretch would be a cache.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from statistics import fmean, pstdev

from torch import Tensor

from unmask.core.errors import SpecError
from unmask.core.protocols import Noise
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Commit, Sequence
from unmask.decode.select import commit, holes_of, ranked
from unmask.decode.threshold import at_least


@dataclass(frozen=True)
class Cycle:
    """end: holes before it are filled fast. While exploring: the open block's start and the ends seen so far."""

    end: int = 0
    block: int = -1
    ends: tuple[int, ...] = ()


@component("slow_fast")
class SlowFast:
    """Alternate cautious exploration and fast filling of the stretch that it found."""

    threshold: float = option(0.9, low=0.0, high=1.0, help="confidence from which the fast phase commits a position")
    reach: float = option(0.3, low=0.0, high=1.0, help="confidence from which a position counts for the end")
    explore: int = option(6, low=1, help="most steps of one exploration")
    window: int = option(2, low=1, help="so many ends in a row must agree")
    spread: float = option(1.0, above=0.0, help="agreement: their standard deviation, in positions")
    scores = ()

    def __post_init__(self) -> None:
        if self.window > self.explore:
            expected = f"at most explore = {self.explore}: more ends are never seen"
            raise SpecError("slow_fast: window", expected=expected, got=str(self.window))

    def init(self, seq: Sequence) -> Cycle:
        return Cycle()

    def wants(self, seq: Sequence, open: Seq[Block], state: Cycle) -> Tensor:
        holes = holes_of(seq, open)
        stretch = holes[holes < state.end]
        return stretch if stretch.numel() else holes

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Cycle, noise: Noise
    ) -> tuple[Commit, Cycle]:
        prob = candidates.prob
        if not want.numel() or int(want[0]) < state.end:
            return commit(candidates, at_least(prob, self.threshold)), state
        block = next(b.start for b in seq.blocks if not b.done)
        known = (prob >= self.reach).nonzero().flatten()
        end = int(want[known[-1]] if known.numel() else want[0]) + 1
        ends = (*(state.ends if state.block == block else ()), end)
        return commit(candidates, ranked(prob)[:1]), self._after(block, ends)

    def _after(self, block: int, ends: tuple[int, ...]) -> Cycle:
        """Go on exploring, or fill: up to the end that stands still, or, if none does, up to the mean of the last."""
        last = ends[-self.window :]
        if len(last) == self.window and pstdev(last) < self.spread:
            return Cycle(end=last[-1])
        return Cycle(end=int(fmean(last))) if len(ends) == self.explore else Cycle(0, block, ends)
