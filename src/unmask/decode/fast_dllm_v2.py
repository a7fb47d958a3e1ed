"""Fast-dLLM v2's sampler as published: its sub-blocks with the bonus token between blocks, and its threshold.

For profile `fast-dllm-v2`; for new work use `blocks` and `threshold`. The first token of a block is taken from the
forward that commits the block before it, whatever its confidence: it is a block of one position here. Lengths of the
batch decide who gets it first: a prompt that ends with a block does, except (published defects) one of exactly one
block when no prompt is shorter, and one between the shortest and the longest. Source: the published `generate` and
`batch_sample`; arXiv 2509.26328.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace

import torch
from torch import Tensor

from unmask.core.errors import SpecError
from unmask.core.protocols import Noise
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Commit, Sequence
from unmask.decode.schedules import first_open
from unmask.decode.select import commit

BATCH = "of the batch (published batch sampler); default: the request's own prompt"


@component("v2_blocks")
class V2Blocks:
    """Sub-blocks of `length` inside blocks of `block`, each block's first token on its own where it is a bonus."""

    length: int = option(8, low=1, help="sub-block size, a divisor of the block size")
    block: int = option(32, low=1, help="block size")
    shortest: int | None = option(None, low=0, help=f"shortest prompt {BATCH}")
    longest: int | None = option(None, low=0, help=f"longest prompt {BATCH}")

    def __post_init__(self) -> None:
        if self.block % self.length:
            raise SpecError("v2_blocks: length", expected=f"a divisor of block = {self.block}", got=str(self.length))

    def layout(self, seq: Sequence) -> tuple[Block, ...]:
        holes = seq.holes(0, seq.length)
        return tuple(self._blocks(seq, int(holes[0]), int(holes[-1]) + 1)) if holes.numel() else ()

    def _blocks(self, seq: Sequence, first: int, stop: int) -> Iterator[Block]:
        for start in range(first - first % self.length, stop, self.length):
            bonus = start % self.block == 0 and self._bonus(seq, start)
            if bonus:
                yield Block(start, start + 1)
            if start + bonus < min(start + self.length, stop):
                yield Block(start + bonus, min(start + self.length, stop))

    def _bonus(self, seq: Sequence, start: int) -> bool:
        """Whether the commit of the block before `start` settles the position there."""
        own = seq.request.prompt_len
        shortest, longest = (own if n is None else n for n in (self.shortest, self.longest))
        if start != own:
            return start > 0 and not bool(seq.decided[start])
        return own > self.block if own == shortest else longest <= own + 1

    def open(self, seq: Sequence) -> tuple[Block, ...]:
        return first_open(seq)

    def horizon(self, seq: Sequence) -> int:
        return seq.length


@component("v2_threshold")
class V2Threshold:
    """Commit every open position above `threshold`, the best one always. State: whether the stop id was committed.

    In a batch a row that committed it decodes its block to the end, then takes the pad id as bonus and leaves; a stop
    id that came as a bonus is not noticed. The published prefill is a forward of its own: it wants nothing.
    """

    threshold: float = option(0.9, low=0.0, high=1.0, help="confidence above which a position is committed")
    block: int = option(32, low=1, help="block size")
    shortest: int | None = option(None, low=0, help=f"shortest prompt {BATCH}")
    batch: bool = option(False, help="end as the published batch sampler does")
    scores = ()

    def init(self, seq: Sequence) -> bool:
        return False

    def wants(self, seq: Sequence, open: Seq[Block], state: bool) -> Tensor:
        shortest = seq.request.prompt_len if self.shortest is None else self.shortest
        if seq.nfe == 0 and shortest > self.block and shortest % self.block:
            return torch.zeros(0, dtype=torch.long)
        return seq.holes(open[0].start, open[-1].stop)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: bool, noise: Noise
    ) -> tuple[Commit, bool]:
        if want.numel() > 1 and int(want[0]) % self.block == 0 and int(want[1]) == int(want[0]) + 1:
            candidates = _one_row(candidates)
        found = commit(candidates, above(candidates.prob, self.threshold))
        if not self.batch or not want.numel():
            return found, state
        if want.numel() == 1 and int(want[0]) % self.block == 0 and _alone(seq, int(want[0])):
            return (self._padded(seq, found) if state else found), state
        state = state or bool(torch.isin(found.tokens, torch.tensor(seq.traits.eos_ids)).any())
        start = int(want[0]) - int(want[0]) % self.block
        left = seq.holes(start, start + self.block).numel() - found.slots.numel()
        return replace(found, end=state and left == 0), state

    def _padded(self, seq: Sequence, found: Commit) -> Commit:
        pad = seq.traits.pad_id if seq.traits.pad_id is not None else seq.traits.eos_ids[0]
        return replace(found, tokens=torch.full_like(found.tokens, pad), end=True)


def above(values: Tensor, threshold: float) -> Tensor:
    """Slots whose value is > threshold, and the best one (ties: the first)."""
    take = values > threshold
    if values.numel():
        take[values.argmax()] = True
    return take.nonzero().flatten()


def _one_row(candidates: Candidates) -> Candidates:
    """A hole at a block's start is answered by the next position's row: the two tie exactly, whatever rounding says."""
    token, prob = candidates.token.clone(), candidates.prob.clone()
    token[1], prob[1] = token[0], prob[0]
    return replace(candidates, token=token, prob=prob)


def _alone(seq: Sequence, position: int) -> bool:
    return any(b.start == position and b.stop == position + 1 for b in seq.blocks)
