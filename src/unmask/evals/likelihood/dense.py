"""A denoiser made from a plain function, to check an estimate against a distribution that is known.

Enters: ids [B, T] -> logits [B, T, V]. Leaves: what the engine and the likelihood take for a model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unmask.core.types import Batch, Forwarded, Head, Traits, rows_in


class _NoStore:
    """Nothing is stored."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def free(self, slot: int, start: int = 0) -> None:
        """Nothing to forget."""


class DenseDenoiser:
    """Whole canvases in, the function's logits out; for vocabularies of a few thousand (its head is a V x V matrix).

    Args:
        function: ids [B, T] -> logits [B, T, V], on the CPU. It masks attention itself, if it has such a rule.
        traits: mask id, shift, attention rule.
        vocab: V.
    """

    layers = 1

    def __init__(self, function: Callable[[Tensor], Tensor], traits: Traits, vocab: int) -> None:
        self.function, self.traits = function, traits
        self.device, self.head = torch.device("cpu"), Head(torch.eye(vocab, dtype=torch.float64))

    def support(self, want: Tensor) -> Tensor:
        """Row p - shift speaks for position p."""
        return (want - self.traits.shift).clamp(min=0)

    def new_store(self, slots: int, rows: int) -> _NoStore:
        return _NoStore(rows)

    def grow_store(self, store: _NoStore, slots: int, rows: int) -> _NoStore:
        """Room for longer canvases."""
        return _NoStore(rows)

    def __call__(self, batch: Batch, store: _NoStore) -> Forwarded:
        """Rows of equal length go through the function together."""
        sizes = [rows_in(lane.plan.query) for lane in batch.lanes]
        assert all(lane.plan.query == ((0, n),) for lane, n in zip(batch.lanes, sizes, strict=True)), "whole canvases"
        rows = batch.ids.split(sizes)
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for n in set(sizes):
            mine = [i for i, size in enumerate(sizes) if size == n]
            for i, logits in zip(mine, self.function(torch.stack([rows[i] for i in mine])), strict=True):
                found[i] = logits
        return Forwarded(torch.cat(found).double()[batch.need], tuple(() for _ in batch.lanes))
