"""How much memory a model will take, from its config and file headers, before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from unmask.core.errors import CheckpointError, InputError
from unmask.models.config import BiRWKVConfig, Shape
from unmask.models.family import find_family, pieces
from unmask.models.load import HUB_ID, hub_file, inspect, locate
from unmask.models.shapes import SHAPES, shape_config
from unmask.models.weights import INDEX, SINGLE, read_config, read_json
from unmask.ops.placement import pick_device, pick_dtype
from unmask.ops.score import CHUNK

DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class Part:
    """One line of a plan."""

    name: str
    bytes: int
    how: str


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes for weights, the key/value store and the largest working set of one forward.

    Args:
        model: what was asked about. parameters: their number. dtype: what they are held in.
        stored_bytes: size of the tensors in the files, None without files. parts: the sums, line by line.
    """

    model: str
    parameters: int
    dtype: str
    batch: int
    length: int
    stored_bytes: int | None
    parts: tuple[Part, ...]

    def _sum(self, kind: str) -> int:
        return sum(p.bytes for p in self.parts if p.name.startswith(kind))

    @property
    def weights(self) -> int:
        return self._sum("weights")

    @property
    def store(self) -> int:
        return self._sum("store")

    @property
    def workspace(self) -> int:
        return self._sum("workspace")

    @property
    def total(self) -> int:
        return self.weights + self.store + self.workspace


def plan(
    source: str | Path,
    batch: int = 1,
    length: int | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    revision: str | None = None,
) -> MemoryPlan:
    """The plan for a directory, an embedded model, a hub id or a named shape.

    Args:
        batch: sequences decoded at once.
        length: canvas length of each, prompt and answer; None takes 2048, or the model's context where that is shorter.
        dtype, device: as in `load_model`.

    Raises:
        CheckpointError: the checkpoint's config or files are wrong. InputError: numbers out of range.
    """
    for what, value in (("batch", batch), ("length", length)):
        if value is not None and value < 1:
            raise InputError(what, expected="an integer from 1", got=str(value))
    config, stored_bytes, wide = _facts(source, revision)
    family = find_family(config)
    shape, traits = family.shape(config), family.traits(config)
    length = min(DEFAULT_LENGTH, traits.max_len) if length is None else length
    if length > traits.max_len:
        remedy = "A longer canvas would leave the trained context."
        raise InputError(
            "length", expected=f"at most {traits.max_len} (the model's context)", got=str(length), remedy=remedy
        )
    kind = pick_dtype(dtype, pick_device(device), not wide)
    parts = (
        *_weights(family.names, shape, kind.itemsize),
        _store(shape, batch, length, kind),
        *_workspace(shape, batch * length, kind),
    )
    parameters = sum(prod(p.shape) for p in pieces(family.names, shape))
    return MemoryPlan(str(source), parameters, str(kind).removeprefix("torch."), batch, length, stored_bytes, parts)


def _facts(source: str | Path, revision: str | None) -> tuple[dict[str, Any], int | None, bool]:
    """Config, bytes stored, and whether the files are float32."""
    if isinstance(source, str) and source in SHAPES:
        if revision is not None:
            raise CheckpointError("revision", expected="a hub id to go with it", got=f"the shape {source}")
        return shape_config(source), None, False
    if os.path.exists(Path(source).expanduser()) or not isinstance(source, str) or not HUB_ID.fullmatch(source):
        path = locate(source, revision)
        config = read_config(path)
        if not (path / SINGLE).is_file() and not (path / INDEX).is_file():
            return config, None, _says_float32(config)
        found = inspect(path)
        return config, sum(s.bytes for _, s in found.parts), "F32" in found.stored
    config = read_json(hub_file(source, "config.json", revision))
    return config, None, _says_float32(config)


def _says_float32(config: Mapping[str, Any]) -> bool:
    return config.get("torch_dtype", config.get("dtype")) in ("float32", "torch.float32")


def _weights(names: Any, shape: Shape, size: int) -> tuple[Part, ...]:
    table = list(pieces(names, shape))
    embed = sum(prod(p.shape) for p in table if p.parameter in ("embed.weight", "transformer.wte.weight"))
    head = sum(prod(p.shape) for p in table if p.parameter in ("head.weight", "transformer.ff_out.weight"))
    layers = sum(prod(p.shape) for p in table) - embed - head
    return (
        Part("weights: embedding", embed * size, f"{shape.vocab_size} x {shape.dim}"),
        Part("weights: layers", layers * size, f"{shape.layers} layers and the final norm"),
        Part(
            "weights: head", head * size, "tied to the embedding" if shape.tied else f"{shape.vocab_size} x {shape.dim}"
        ),
    )


def _store(shape: Shape, batch: int, length: int, kind: torch.dtype) -> Part:
    if isinstance(shape, BiRWKVConfig):
        size = shape.layers * 10 * shape.dim * batch * 4
        return Part(
            "store: states at a block's ends", size, f"{shape.layers} layers x {batch} x 10 vectors of {shape.dim}"
        )
    size = 2 * shape.layers * shape.kv_heads * shape.head_dim * batch * length * kind.itemsize
    how = f"2 x {shape.layers} layers x {batch} x {length} rows x {shape.kv_heads} heads x {shape.head_dim}"
    return Part("store: keys and values", size, how)


def _workspace(shape: Shape, rows: int, kind: torch.dtype) -> tuple[Part, ...]:
    """The larger of the attention and the MLP half of one layer, over all rows, and one chunk of logits."""
    logits = min(rows, CHUNK) * shape.vocab_size * (kind.itemsize + 2 * 4)
    said = Part(
        "workspace: logits", logits, f"{min(rows, CHUNK)} rows x {shape.vocab_size} at a time, with float32 copies"
    )
    if isinstance(shape, BiRWKVConfig):
        per_row = 8 * shape.dim + max(4 * shape.dim, 2 * shape.mlp_dim)
        return (Part("workspace: one layer", rows * per_row * 4, f"{rows} rows, the widest moment of a layer"), said)
    attention = 3 * shape.dim + 2 * (shape.q_dim + 2 * shape.kv_dim) + shape.q_dim
    rotated = (shape.q_dim + shape.kv_dim) * (2 * 4 // kind.itemsize if shape.rope_float32 else 2)
    mlp = 3 * shape.dim + 4 * shape.mlp_dim
    per_row = max(attention + rotated, mlp)
    return (
        Part("workspace: one layer", rows * per_row * kind.itemsize, f"{rows} rows, the widest moment of a layer"),
        said,
    )
