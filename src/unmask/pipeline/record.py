"""What a recording needs to know about its run besides the events.

Enters: a model and its prepared requests. Leaves: the header of a recording, the text of token ids, the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unmask.core.versions import versions
from unmask.pipeline.generation import Generation
from unmask.pipeline.model import Model
from unmask.pipeline.request import Prepared
from unmask.sinks.cells import Piece
from unmask.sinks.recorder import Answer


def header(model: Model, prepared: Sequence[Prepared], seed: int) -> dict[str, Any]:
    """Everything the run depended on, as JSON values."""
    return {
        "versions": versions(),
        "model": model.name,
        "family": model.family,
        "config": dict(model.config),
        "dtype": str(model.denoiser.head.weight.dtype).removeprefix("torch."),
        "device": str(model.denoiser.device),
        "seed": seed,
        "settings": {p.request.id: p.settings.table for p in prepared},
        "strategies": {p.request.id: str(p.settings.strategy) for p in prepared},
    }


def piece_of(model: Model) -> Piece:
    """The text of a token id; ids themselves for a model without tokenizer."""
    codec = model.codec
    return (lambda i: f" {i}") if codec is None else codec.piece


def answers(generations: Mapping[str, Generation]) -> dict[str, Answer]:
    """What a reader saw, by request id."""
    return {i: Answer(g.text, g.completion_tokens) for i, g in generations.items()}
