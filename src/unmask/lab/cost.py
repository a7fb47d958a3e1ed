"""What a decode's executed work costs in operations and bytes, from the model's shape: counts, not measurements.

Enters: a shape, and the counters of what ran (`Executed`). Leaves: floating point operations of the matrix products,
and bytes that must be read at least. Norms, rotations and the softmax are left out, and so are bytes of activations.
"""

from __future__ import annotations

from dataclasses import dataclass

from unmask.core.types import Stats
from unmask.models.config import TransformerConfig


@dataclass(frozen=True)
class Executed:
    """Counters of a run, as the engine keeps them (`core.types.Stats` says what each is)."""

    row_layers: int = 0
    key_layers: int = 0
    read_layers: int = 0
    layer_calls: int = 0
    head_rows: int = 0
    head_calls: int = 0

    def __add__(self, other: Executed) -> Executed:
        return Executed(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))


NOTHING = Executed()


def executed_of(stats: Stats) -> Executed:
    """What an engine has executed."""
    return Executed(
        stats.row_layers, stats.key_layers, stats.read_layers, stats.layer_calls, stats.head_rows, stats.head_calls
    )


def flops(shape: TransformerConfig, work: Executed) -> int:
    """Operations: two per weight of a layer and row, four per query component and key seen, two per head weight."""
    layers = work.row_layers * layer_weights(shape) + 2 * work.key_layers * shape.q_dim
    return 2 * (layers + work.head_rows * shape.vocab_size * shape.dim)


def bytes_read(shape: TransformerConfig, work: Executed, itemsize: int) -> int:
    """Bytes: a layer's weights once per call in which it ran, the head's once per scored call, and the keys and values
    that a sequence's rows saw once per layer.

    Args:
        itemsize: bytes per number, of weights and store alike.
    """
    weights = work.layer_calls * layer_weights(shape) + work.head_calls * shape.vocab_size * shape.dim
    return itemsize * (weights + 2 * work.read_layers * shape.kv_dim)


def layer_weights(shape: TransformerConfig) -> int:
    """Matrix weights of one layer."""
    return shape.dim * (2 * shape.q_dim + 2 * shape.kv_dim + 3 * shape.mlp_dim)


def _values(work: Executed) -> tuple[int, ...]:
    return work.row_layers, work.key_layers, work.read_layers, work.layer_calls, work.head_rows, work.head_calls
