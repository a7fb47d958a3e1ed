"""Rules that policies share: who ranks first, how many per pass, and the holes of a block."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.core.types import Block, Candidates, Commit, Sequence


def ranked(values: Tensor) -> Tensor:
    """Indices by falling value; ties keep the lower position first."""
    return torch.sort(values, descending=True, stable=True).indices


def commit(candidates: Candidates, slots: Tensor, confidence: Tensor | None = None, **flags: bool) -> Commit:
    """Fill the chosen slots with their candidate tokens."""
    source = candidates.prob if confidence is None else confidence
    return Commit(slots, candidates.token[slots], source[slots], **flags)


def holes_of(seq: Sequence, open: Seq[Block]) -> Tensor:
    """Holes of the open blocks; holes left of them (a mask id in a published prompt) stay eligible, as in LLaDA."""
    return seq.holes(0, max(b.stop for b in open))


def quotas(holes: int, passes: int) -> list[int]:
    """Tokens per pass: floor(holes / passes), and one more in the first `holes mod passes` (LLaDA generate.py)."""
    base, extra = divmod(holes, passes)
    return [base + (i < extra) for i in range(passes)]


def passes_per_block(steps: int, seq: Sequence) -> int:
    """A request's steps shared by its blocks, at least one each."""
    return max(1, steps // max(1, len(seq.blocks)))


@dataclass(frozen=True)
class Pass:
    """Where a step-counting policy stands: the open block's start, its passes so far, and its quotas."""

    block: int = -1
    done: int = 0
    quotas: tuple[int, ...] = ()
