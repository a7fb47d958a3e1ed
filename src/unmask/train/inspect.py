"""Training samples as the loss will see them.

Enters: a built trainer. Leaves: per sample a list of (text, kind) for every place of the row, so that a person can see
what is kept, masked, scored and padding before a run begins. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from unmask.train.batch import Batch
from unmask.train.trainer import Trainer

Kind = Literal["kept", "masked", "open", "tail", "tail masked", "padding"]
"""kept: never masked; masked: hidden, in the loss; open: may be masked, is not this time; tail: EOS behind the first
one; padding: not part of the canvas."""


def inspect_data(trainer: Trainer, skip: int = 0) -> Iterator[list[tuple[str, Kind]]]:
    """Endless samples, in the order and with the noise of a run of this recipe.

    Args:
        skip: batches to leave out first.
    """
    for _ in range(skip):
        trainer.stream.next()
    while True:
        batch = trainer.stream.next()
        masked, scored = trainer.objective.shown(batch, trainer.rng)
        for row in range(batch.ids.shape[0]):
            yield _sample(trainer, batch, masked, scored, row)


def _sample(trainer: Trainer, batch: Batch, masked: Tensor, scored: Tensor, row: int) -> list[tuple[str, Kind]]:
    marks = zip(*(t[row].tolist() for t in (batch.ids, batch.real, scored, batch.tail, masked)), strict=True)
    return [(trainer.codec.piece(token), _kind(*flags)) for token, *flags in marks]


def _kind(real: bool, scored: bool, tail: bool, masked: bool) -> Kind:
    if not real:
        return "padding"
    if tail:
        return "tail masked" if masked else "tail"
    return "masked" if masked else "open" if scored else "kept"
