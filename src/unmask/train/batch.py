"""Rows and batches of training data: what is text, what is padding, where noise may fall, where a document ends.

Enters: token ids of samples. Leaves: a `Batch` of tensors padded on the right with the EOS id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

Span = tuple[int, int]
"""Half-open: first place, place behind the last."""
_DERIVED = torch.empty(0)


@dataclass(frozen=True)
class Row:
    """One sample as ids: `prompt` tokens that are kept, then the answer, its EOS and `tail` further EOS tokens.

    `whole` rows may be masked in the prompt too (pretraining, infilling). `cut` is a position from which on
    everything is masked and before which nothing is: the canvas as decoding from left to right leaves it. None draws
    noise as usual. `answers` are the scored places of rows that are no prompt with one answer (several turns, packed
    samples); None scores from `prompt` on. `pads` are places that fill a block up. `documents` are the lengths of the
    documents in the row, in order; () is one.
    """

    ids: tuple[int, ...]
    prompt: int
    tail: int = 0
    whole: bool = False
    cut: int | None = None
    answers: tuple[Span, ...] | None = None
    pads: tuple[Span, ...] = ()
    documents: tuple[int, ...] = ()

    @property
    def scored(self) -> tuple[Span, ...]:
        """Where noise may fall and the loss may speak."""
        if self.answers is not None:
            return self.answers
        return ((0 if self.whole else self.prompt, len(self.ids)),)


@dataclass(frozen=True)
class Batch:
    """Tensors of shape [B, T].

    ids: clean tokens, padded on the right. real: True where a token exists for the model (its key is attended).
    scored: True where noise may fall and the loss may speak. tail: True on EOS tokens behind the first one.
    hidden: True on the places of rows with a cut that are masked whatever the noise says, their other places stay.
    pads: True where a token only fills a block up: real, never scored; which id stands there is the objective's choice
    (`with_pads`), EOS until then. documents: number of the document inside its row, -1 where nothing is real. Without
    the last two there are no pads, and a row is one document.
    """

    ids: Tensor
    real: Tensor
    scored: Tensor
    tail: Tensor
    hidden: Tensor
    pads: Tensor = _DERIVED
    documents: Tensor = _DERIVED

    def __post_init__(self) -> None:
        if self.pads is _DERIVED:
            object.__setattr__(self, "pads", torch.zeros_like(self.real))
        if self.documents is _DERIVED:
            object.__setattr__(self, "documents", self.real.long() - 1)

    @property
    def tokens(self) -> int:
        """Tokens of the data: what the model computes, without what only fills blocks up."""
        return int((self.real & ~self.pads).sum())

    def to(self, device: torch.device) -> Batch:
        return Batch(*(t.to(device) for t in self._all))

    def cut(self, length: int) -> Batch:
        """The first `length` columns."""
        return Batch(*(t[:, :length] for t in self._all))

    @property
    def _all(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))

    def without_tail(self) -> Batch:
        """The EOS padding taken off the canvas."""
        return replace(self._without(self.tail), tail=torch.zeros_like(self.tail))

    def without_pads(self) -> Batch:
        """What fills blocks up taken off the canvas, for objectives that know no blocks. Positions stay."""
        return self._without(self.pads)

    def with_pads(self, token: int) -> Batch:
        """`token` where something fills a block up."""
        return replace(self, ids=self.ids.masked_fill(self.pads, token))

    def _without(self, taken: Tensor) -> Batch:
        mine = ~taken
        return replace(
            self,
            real=self.real & mine,
            scored=self.scored & mine,
            hidden=self.hidden & mine,
            pads=self.pads & mine,
            documents=self.documents.masked_fill(taken, -1),
        )

    def split_documents(self) -> Batch:
        """The same tokens with each document as a row of its own, shortest first.

        Rows never see each other and RoPE is relative, so this is attention under a document mask. A batch of single
        documents comes back as it is.
        """
        if int(self.documents.max()) <= 0:
            return self
        row, column = (self.documents >= 0).nonzero(as_tuple=True)
        document = self.documents[row, column]
        first = torch.ones_like(row, dtype=torch.bool)
        first[1:] = (row[1:] != row[:-1]) | (document[1:] != document[:-1])
        number = first.cumsum(0) - 1
        slot = column - column[first][number]
        length = torch.zeros_like(column[first]).scatter_reduce(0, number, slot + 1, "amax")
        place = length.argsort(stable=True).argsort()[number]

        def moved(t: Tensor, fill: int = 0) -> Tensor:
            out = t.new_full((length.numel(), int(length.max())), fill)
            out[place, slot] = t[row, column]
            return out

        ids, real, scored, tail, hidden, pads = (moved(t) for t in self._all[:-1])
        return Batch(ids, real, scored, tail, hidden, pads, moved(torch.zeros_like(self.documents), -1))


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Pads rows on the right with `pad_id`, shortest row first; padding is not real, not scored, never attended."""
    rows = sorted(rows, key=lambda r: len(r.ids))
    shape = (len(rows), max(len(r.ids) for r in rows))
    ids, documents = torch.full(shape, pad_id), torch.full(shape, -1)
    real, scored, tail, hidden, pads = (torch.zeros(shape, dtype=torch.bool) for _ in range(5))
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.tensor(row.ids)
        real[i, :n] = True
        for start, stop in row.scored:
            scored[i, start:stop] = True
        for start, stop in row.pads:
            pads[i, start:stop] = True
        tail[i, n - row.tail : n] = True
        if row.cut is not None:
            hidden[i, row.cut : n] = True
        lengths = torch.tensor(row.documents or (n,))
        documents[i, :n] = torch.arange(len(lengths)).repeat_interleave(lengths)
    return Batch(ids, real, scored, tail, hidden, pads, documents)
