"""Schedules: which block is open now, and how far the canvas reaches.

The three layouts of LLaDA: `whole` (fixed length), `blocks` (semi-autoregressive padding: the full length stands as
masks) and `growing` (semi-autoregressive origin: later blocks do not exist yet). Source: LLaDA guidelines, sampling
layouts.
"""

from __future__ import annotations

from unmask.core.spec import MOST, component, option
from unmask.core.types import Block, Sequence


def cut(seq: Sequence, length: int) -> tuple[Block, ...]:
    """Blocks of `length` that cover the answer's holes; the grid starts at 0 or at the first hole, as the traits say.

    Holes inside the prompt (a published sampler met a mask id there) belong to no block; policies may still fill them.
    """
    answer = seq.holes(seq.request.prompt_len, seq.length)
    holes = answer if answer.numel() else seq.holes(0, seq.length)
    if holes.numel() == 0:
        return ()
    first, stop = int(holes[0]), int(holes[-1]) + 1
    if seq.traits.grid_origin == "zero":
        first -= first % length
    return tuple(Block(a, min(a + length, stop)) for a in range(first, stop, length))


def first_open(seq: Sequence) -> tuple[Block, ...]:
    """The leftmost block that is not done, alone."""
    return next(((b,) for b in seq.blocks if not b.done), ())


@component("blocks")
class Blocks:
    """Blocks left to right on a canvas of full length. length: positions per block; the last may be short."""

    length: int = option(32, low=1, high=MOST, help="positions per block")

    def layout(self, seq: Sequence) -> tuple[Block, ...]:
        return cut(seq, self.length)

    def open(self, seq: Sequence) -> tuple[Block, ...]:
        return first_open(seq)

    def horizon(self, seq: Sequence) -> int:
        return seq.length


@component("whole")
class Whole:
    """The whole answer as one block."""

    def layout(self, seq: Sequence) -> tuple[Block, ...]:
        return cut(seq, seq.length)

    def open(self, seq: Sequence) -> tuple[Block, ...]:
        return first_open(seq)

    def horizon(self, seq: Sequence) -> int:
        return seq.length


@component("growing")
class Growing:
    """Blocks left to right on a canvas that ends with the open block, until EOS. length 1 is autoregressive."""

    length: int = option(32, low=1, high=MOST, help="positions per block")

    def layout(self, seq: Sequence) -> tuple[Block, ...]:
        return cut(seq, self.length)

    def open(self, seq: Sequence) -> tuple[Block, ...]:
        return first_open(seq)

    def horizon(self, seq: Sequence) -> int:
        block = next((b for b in seq.blocks if not b.done), None)
        return seq.length if block is None or block is seq.blocks[-1] else block.stop
