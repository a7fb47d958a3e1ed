"""Pipelined blocks: the next block opens while the one before it still has holes; and the threshold rule for them.

A block opens when `add` of the block before it is decided (at most `window` blocks, counted from the leftmost that is
not done). Until `full` of the block before it is decided it is half active: only confident positions are committed.
From then on its best one is committed at every step. Sources: D2F, arXiv 2508.09192; d3LLM, arXiv 2601.07568. Both
train for it: other checkpoints saw text, not masks, where the blocks before the last open one still have holes.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import pairwise

from torch import Tensor

from unmask.core.errors import RequestError
from unmask.core.protocols import LatentPolicy, Noise
from unmask.core.spec import MOST, component, option
from unmask.core.types import Block, Candidates, Commit, Sequence
from unmask.decode.schedules import cut
from unmask.decode.select import commit, holes_of


def progress(seq: Sequence, block: Block) -> float:
    """Share of the block's asked positions (those that were not given) that are decided; 1 when it is done."""
    asked = ~seq.fixed[block.start : block.stop]
    if block.done or not bool(asked.any()):
        return 1.0
    return float(seq.decided[block.start : block.stop][asked].float().mean())


@component("pipelined")
class Pipelined:
    """Several blocks at once, each opened by the progress of the one before it. window=1: `blocks(length)`."""

    length: int = option(32, low=1, high=MOST, help="positions per block")
    window: int = option(2, low=1, help="blocks that may be open at once")
    add: float = option(0.1, low=0.0, high=1.0, help="share of a block that opens the next one")

    def layout(self, seq: Sequence) -> tuple[Block, ...]:
        if isinstance(seq.request.strategy.policy, LatentPolicy):
            raise RequestError(
                "schedule pipelined",
                expected="a policy that fills masks",
                got=f"{seq.request.strategy.policy!r}, which denoises the vectors of one block",
                remedy="use blocks",
            )
        return cut(seq, self.length)

    def open(self, seq: Sequence) -> tuple[Block, ...]:
        first = next((i for i, b in enumerate(seq.blocks) if not b.done), len(seq.blocks))
        reached = list(seq.blocks[first : first + 1])
        for before, block in pairwise(seq.blocks[first : first + self.window]):
            if progress(seq, before) < self.add:
                break
            reached.append(block)
        return tuple(b for b in reached if not b.done)

    def horizon(self, seq: Sequence) -> int:
        return seq.length


@component("pipelined_threshold")
class PipelinedThreshold:
    """Commit every position at or above a confidence, and the best one of each block that is fully active.

    `threshold` alone commits the best of all open blocks together: half-active ones would be pushed, and the leftmost
    one could wait.
    """

    threshold: float = option(0.9, low=0.0, high=1.0, help="confidence from which a position is committed")
    full: float = option(0.95, low=0.0, high=1.0, help="share of the block before that makes a block fully active")
    scores = ()

    def init(self, seq: Sequence) -> None:
        return None

    def wants(self, seq: Sequence, open: Seq[Block], state: None) -> Tensor:
        return holes_of(seq, open)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: None, noise: Noise
    ) -> tuple[Commit, None]:
        take = candidates.prob >= self.threshold
        before = 1.0
        for block in seq.blocks:
            own = ((want >= block.start) & (want < block.stop)).nonzero().flatten()
            if own.numel() and before >= self.full:
                take[own[candidates.prob[own].argmax()]] = True
            before = progress(seq, block)
        return commit(candidates, take.nonzero().flatten()), None
