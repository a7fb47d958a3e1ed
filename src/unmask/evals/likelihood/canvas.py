"""Prompt and answer laid out for scoring: where noise may fall, and what one computation sees.

Enters: ids and the model's traits. Leaves: a `Pair` with its `Part`s (the whole answer, or its part of each attention
block), and `Canvas`es: some answer tokens masked, some of them asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.core.errors import RequestError
from unmask.core.types import BlockCausal, Traits


@dataclass(frozen=True)
class Part:
    """Positions [start, stop) that see one another while noise falls on `holes`; what is before them is clean."""

    start: int
    stop: int
    holes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pair:
    """A prompt and an answer on one canvas.

    Args:
        ids: prompt, answer, and mask ids up to the end of the last attention block.
        blind: the same with the prompt masked, for guidance.
        length: prompt and answer; answer: the positions of the answer that count.
    """

    ids: Tensor
    blind: Tensor
    prompt_len: int
    length: int
    parts: tuple[Part, ...]
    mask_id: int | None

    @property
    def answer(self) -> tuple[int, ...]:
        return tuple(p for part in self.parts for p in part.holes)

    def canvas(self, part: Part, hidden: Sequence[int], asked: Sequence[int]) -> Canvas:
        """`part` open with `hidden` masked; `asked` shall speak."""
        return Canvas(self, part.start, part.stop, tuple(hidden), tuple(asked))

    def causal(self) -> Canvas:
        """No row open: every answer token is asked of the rows before it."""
        return Canvas(self, self.length - 1, self.length - 1, (), self.answer)


@dataclass(frozen=True)
class Canvas:
    """Rows [0, start) finished and clean, rows [start, stop) open with `hidden` masked, `asked` to be predicted."""

    pair: Pair = field(repr=False)
    start: int
    stop: int
    hidden: tuple[int, ...]
    asked: tuple[int, ...]

    def ids(self, blind: bool = False) -> Tensor:
        """Ids [stop]; blind: with the prompt masked."""
        out = (self.pair.blind if blind else self.pair.ids)[: self.stop].clone()
        if self.hidden:
            assert self.pair.mask_id is not None
            out[list(self.hidden)] = self.pair.mask_id
        return out

    @property
    def target(self) -> Tensor:
        """The ids asked for, [W]."""
        return self.pair.ids[list(self.asked)]


def is_causal(traits: Traits) -> bool:
    """One token per block, read from the row before it: the chain rule needs one forward."""
    return isinstance(traits.attention, BlockCausal) and traits.attention.size == 1 and traits.shift == 1


def lay_out(traits: Traits, prompt: Sequence[int], answer: Sequence[int], vocab: int, method: str = "bound") -> Pair:
    """The pair on its canvas.

    Args:
        vocab: rows of the output matrix; method: "dream" appends EOS and never masks the two ends.

    Raises:
        RequestError: a model that has never seen masks, nothing to score, ids outside the vocabulary, too long, or an
            answer that nobody speaks for.
    """
    if not answer:
        raise RequestError("answer", expected="at least one token", got="nothing")
    if not traits.fills_masks:
        raise RequestError(
            "a likelihood by masks",
            expected="a model trained to fill masks (birwkv: mode token or mixed)",
            got="one that only denoises vectors (mode diffusion)",
            remedy="its own bound is measured while it trains (`validate` of a recipe)",
        )
    ids, first = _checked([*prompt, *answer], vocab), len(prompt)
    size = traits.attention.size if isinstance(traits.attention, BlockCausal) else None
    if size is not None and traits.shift and not first:
        raise RequestError("prompt", expected="at least one token (nothing predicts the first one)", got="nothing")
    if method == "dream":
        ids = [*ids, _eos(traits)]
    if len(ids) > traits.max_len:
        got = f"{len(ids)} = {first} of the prompt + {len(ids) - first} of the answer"
        raise RequestError("prompt and answer", expected=f"at most {traits.max_len} tokens", got=got)
    length = len(ids)
    parts = (_whole(first, length, method),) if size is None else _blocks(first, length, size)
    fill = traits.mask_id if traits.mask_id is not None else 0
    canvas = torch.tensor(ids + [fill] * (parts[-1].stop - length), dtype=torch.long)
    blind = canvas.clone()
    blind[:first] = fill
    return Pair(canvas, blind, first, length, parts, traits.mask_id)


def _checked(ids: Sequence[int], vocab: int) -> list[int]:
    out = [int(i) for i in ids]
    bad = next((i for i in out if not 0 <= i < vocab), None)
    if bad is not None:
        raise RequestError("prompt and answer", expected=f"ids from 0 to {vocab - 1}", got=str(bad))
    return out


def _eos(traits: Traits) -> int:
    if not traits.eos_ids:
        raise RequestError("method dream", expected="a model with an EOS id (it is appended)", got="none")
    return traits.eos_ids[0]


def _whole(first: int, length: int, method: str) -> Part:
    """One part: everything is open."""
    holes = range(max(first, 1), length - 1) if method == "dream" else range(first, length)
    return Part(0, length, tuple(holes))


def _blocks(first: int, length: int, size: int) -> tuple[Part, ...]:
    """A part per attention block that the answer touches; the last one is filled up to its end with masks."""
    starts = range(first // size * size, length, size)
    return tuple(Part(a, a + size, tuple(range(max(a, first), min(a + size, length)))) for a in starts)
