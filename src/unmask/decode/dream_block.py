"""Fast-dLLM's block sampler for Dream: the entry pass settles a block's first token alone, cached passes the rest.

Reproduces the published rule: the first token is taken without a test (its logits come from the row before the
block), at least one cached pass follows, and every alg but confidence_threshold is the entropy schedule. For new work
use `threshold` or `dream` with a cache: the shift is then handled by one extra row.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Literal

import torch
from torch import Tensor

from unmask.core.protocols import Noise
from unmask.core.spec import MOST, component, option
from unmask.core.types import Block, Candidates, Commit, Sequence
from unmask.decode.dream import pick, transfer_count
from unmask.decode.select import Pass, commit, passes_per_block
from unmask.decode.threshold import at_least


@component("dream_block")
class DreamBlock:
    """alg: confidence_threshold, or entropy with steps and eps. steps: passes for the whole answer."""

    alg: Literal["confidence_threshold", "entropy"] = option("confidence_threshold", help="what ranks positions")
    threshold: float = option(0.9, low=0.0, high=1.0, help="confidence from which a position is committed")
    steps: int = option(128, low=1, high=MOST, help="denoising steps for the whole answer (entropy only)")
    eps: float = option(1e-3, above=0.0, high=1.0, help="last time of the schedule (entropy only)")
    alg_temp: float | None = option(None, low=0.0, help="temperature on the ranking (entropy only)")

    @property
    def scores(self) -> tuple[str, ...]:
        return ("entropy",) if self.alg == "entropy" else ()

    def init(self, seq: Sequence) -> Pass:
        return Pass()

    def wants(self, seq: Sequence, open: Seq[Block], state: Pass) -> Tensor:
        block = open[0]
        if state.block != block.start:
            return seq.holes(block.start, block.start + 1)
        return seq.holes(block.start, block.stop)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Pass, noise: Noise
    ) -> tuple[Commit, Pass]:
        block = next(b for b in seq.blocks if not b.done)
        if state.block != block.start:
            return commit(candidates, torch.arange(want.numel()), busy=True), Pass(block.start, 1)
        after = Pass(block.start, state.done + 1)
        if self.alg == "confidence_threshold":
            return commit(candidates, at_least(candidates.prob, self.threshold)), after
        return self._entropy_pass(seq, want, candidates, state.done, noise), after

    def _entropy_pass(self, seq: Sequence, want: Tensor, candidates: Candidates, step: int, noise: Noise) -> Commit:
        assert candidates.entropy is not None
        steps = passes_per_block(self.steps, seq)
        if step >= steps:
            return commit(candidates, torch.zeros(0, dtype=torch.long), close=True)
        count = transfer_count(int(want.numel()), step, steps, self.eps)
        uniform = noise.uniform("positions", seq.step, want, seq.length) if self.alg_temp else None
        slots = pick(candidates.entropy, count, self.alg_temp, uniform)
        return commit(candidates, slots, candidates.entropy, close=step + 1 >= steps)
