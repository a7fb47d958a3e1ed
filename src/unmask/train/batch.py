"""Rows and batches of training data: what is text, what is padding, where noise may fall.

Enters: token ids of samples. Leaves: a `Batch` of tensors padded on the right with the EOS id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One sample as ids: `prompt` tokens that are kept, then the answer, its EOS and `tail` further EOS tokens.

    `whole` rows may be masked in the prompt too (pretraining, infilling). `cut` is a position from which on
    everything is masked and before which nothing is: the canvas as decoding from left to right leaves it. None draws
    noise as usual.
    """

    ids: tuple[int, ...]
    prompt: int
    tail: int = 0
    whole: bool = False
    cut: int | None = None


@dataclass(frozen=True)
class Batch:
    """Tensors of shape [B, T].

    ids: clean tokens, padded on the right. real: True where a token exists for the model (its key is attended).
    scored: True where noise may fall and the loss may speak. tail: True on EOS tokens behind the first one.
    hidden: True on the places of rows with a cut that are masked whatever the noise says, their other places stay.
    """

    ids: Tensor
    real: Tensor
    scored: Tensor
    tail: Tensor
    hidden: Tensor

    @property
    def tokens(self) -> int:
        """Positions that the model computes."""
        return int(self.real.sum())

    def to(self, device: torch.device) -> Batch:
        return Batch(*(t.to(device) for t in self._all))

    def cut(self, length: int) -> Batch:
        """The first `length` columns."""
        return Batch(*(t[:, :length] for t in self._all))

    @property
    def _all(self) -> tuple[Tensor, ...]:
        return (self.ids, self.real, self.scored, self.tail, self.hidden)

    def without_tail(self) -> Batch:
        """The EOS padding taken off the canvas."""
        mine = ~self.tail
        return Batch(self.ids, self.real & mine, self.scored & mine, torch.zeros_like(mine), self.hidden & mine)


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Pads rows on the right with `pad_id`, shortest row first; padding is not real, not scored, never attended."""
    rows = sorted(rows, key=lambda r: len(r.ids))
    width = max(len(r.ids) for r in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    scored, tail, hidden = real.clone(), real.clone(), real.clone()
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        real[i, :n] = True
        scored[i, (0 if row.whole else row.prompt) : n] = True
        tail[i, n - row.tail : n] = True
        if row.cut is not None:
            hidden[i, row.cut : n] = True
    return Batch(ids, real, scored, tail, hidden)
