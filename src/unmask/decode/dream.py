"""Dream's own policies: how many positions settle at a step follows a time schedule from 1 to eps.

alg: origin (independent transfer), maskgit_plus (confidence), topk_margin, entropy. Source: Dream, generation
utilities; arXiv 2508.15487.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Literal

import torch
from torch import Tensor

from unmask.core.protocols import Noise
from unmask.core.spec import MOST, component, option
from unmask.core.types import Block, Candidates, Commit, Sequence
from unmask.decode.select import Pass, commit, holes_of, passes_per_block, ranked

ALG_SCORES = {"origin": (), "maskgit_plus": (), "topk_margin": ("margin",), "entropy": ("entropy",)}


def transfer_ratio(step: int, steps: int, eps: float) -> Tensor:
    """1 - t_{i+1} / t_i as a float32 scalar, with t = linspace(1, eps, steps + 1)."""
    t = torch.linspace(1, eps, steps + 1)
    return 1 - t[step + 1] / t[step]


def transfer_count(holes: int, step: int, steps: int, eps: float) -> int:
    """Tokens to settle at a step, in float32 as the reference computes it; all that is left at the last step."""
    if step >= steps - 1:
        return holes
    return int(torch.tensor(float(holes)) * transfer_ratio(step, steps, eps))


def measure(candidates: Candidates, alg: str) -> Tensor:
    """The confidence an alg ranks by: [W], higher settles first."""
    chosen = {"topk_margin": candidates.margin, "entropy": candidates.entropy}.get(alg, candidates.prob)
    assert chosen is not None
    return chosen


def pick(values: Tensor, count: int, alg_temp: float | None, uniform: Tensor | None) -> Tensor:
    """The `count` best, or, with alg_temp, that many drawn without replacement from softmax(values / alg_temp)."""
    if alg_temp and uniform is not None:
        values = values.double() / alg_temp - torch.log(-torch.log(uniform.clamp_min(1e-300)))
    return ranked(values)[:count]


@component("dream")
class Dream:
    """Dream's schedule. steps: passes for the whole answer; empty_passes: keep passes that settle nothing
    (published).
    """

    alg: Literal["origin", "maskgit_plus", "topk_margin", "entropy"] = option("entropy", help="what ranks positions")
    steps: int = option(128, low=1, high=MOST, help="denoising steps for the whole answer")
    eps: float = option(1e-3, above=0.0, high=1.0, help="last time of the schedule")
    alg_temp: float | None = option(None, low=0.0, help="temperature on the ranking; None or 0 takes the best")
    empty_passes: bool = option(False, help="keep passes that settle nothing, as the reference does")

    @property
    def scores(self) -> tuple[str, ...]:
        return ALG_SCORES[self.alg]

    def init(self, seq: Sequence) -> Pass:
        return Pass()

    def wants(self, seq: Sequence, open: Seq[Block], state: Pass) -> Tensor:
        return holes_of(seq, open[:1])

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Pass, noise: Noise
    ) -> tuple[Commit, Pass]:
        block = next(b for b in seq.blocks if not b.done)
        step = state.done if state.block == block.start else 0
        steps = passes_per_block(self.steps, seq)
        slots = self._slots(seq, want, candidates, step, steps, noise)
        busy = self.empty_passes and step + 1 < steps
        return commit(candidates, slots, measure(candidates, self.alg), busy=busy), Pass(block.start, step + 1)

    def _slots(
        self, seq: Sequence, want: Tensor, candidates: Candidates, step: int, steps: int, noise: Noise
    ) -> Tensor:
        last = step >= steps - 1
        if self.alg == "origin":
            uniform = noise.uniform("positions", seq.step, want, seq.length)
            chosen = (uniform < (1.0 if last else transfer_ratio(step, steps, self.eps))).nonzero().flatten()
            stalled = not self.empty_passes and chosen.numel() == 0 and want.numel() > 0
            return ranked(-uniform)[:1] if stalled else chosen
        count = transfer_count(int(want.numel()), step, steps, self.eps)
        if not self.empty_passes:
            count = max(count, 1)
        drawn = noise.uniform("positions", seq.step, want, seq.length) if self.alg_temp else None
        return pick(measure(candidates, self.alg), count, self.alg_temp, drawn)
