"""A model -> a checkpoint directory in its family's published names, whole or not at all.

Files are written into a hidden directory beside the target, flushed to disk, and moved into place at the end: a reader
never sees half a checkpoint, and a failed write leaves the target as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from unmask.core.errors import CheckpointError
from unmask.models.backbone import Backbone
from unmask.models.family import find_family, pieces
from unmask.models.weights import INDEX, SINGLE

CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
SHARD_BYTES = 4 << 30
CHUNK_ROWS_BYTES = 64 << 20


def save_checkpoint(
    model: Backbone,
    config: Mapping[str, Any],
    directory: str | Path,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    files: Mapping[str, bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
    merge: bool = False,
    parameters: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes config.json and safetensors under the published names; loading gives back the same bits.

    Args:
        config: the published config; its shape must be the model's.
        dtype: store as this (bf16, fp16, fp32); None keeps the model's own.
        overwrite: replace an existing checkpoint. A non-empty directory that is none is always refused.
        files: further files by name (tokenizer, unmask.json), written with the rest.
        shard_bytes: start a new shard above this size.
        merge: put the files into the directory one by one, beside what is there (as save_pretrained does).
        parameters: tensors by our parameter names to save instead of the model's own (gathered ones, EMA).

    Raises:
        CheckpointError: a config of another shape, a target in the way, or a write that failed (nothing is changed).
    """
    target = Path(directory)
    tensors = _published(model, config, parameters)
    stored = dtype or model.head_weight.dtype
    if stored not in CODES:
        raise CheckpointError("dtype to store", expected="bf16, fp16 or fp32", got=str(stored))
    _check_target(target, overwrite, merge)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _failed(target, error) from error
    try:
        _write_all(work, tensors, {**config}, stored, files or {}, shard_bytes)
        _merge(work, target) if merge and target.exists() else _move(work, target)
    except OSError as error:
        raise _failed(target, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def published_tensors(
    model: Backbone, config: Mapping[str, Any], parameters: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Views of the parameters under their published names."""
    family, parameters = find_family(config), parameters or dict(model.named_parameters())
    return {
        p.published: parameters[p.parameter].detach()[p.start : p.start + p.shape[0]]
        for p in pieces(family.names, model.cfg)
    }


def _published(
    model: Backbone, config: Mapping[str, Any], parameters: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    expected = find_family(config).shape(config)
    if expected != model.cfg:
        differ = [k for k, v in vars(expected).items() if v != getattr(model.cfg, k)]
        raise CheckpointError(
            "config to save", expected="the model's own shape", got=f"other values of {', '.join(differ)}"
        )
    return published_tensors(model, config, parameters)


def _check_target(target: Path, overwrite: bool, merge: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(str(target), expected="a directory to write", got="a file")
    if merge or not any(target.iterdir()):
        return
    if not (target / "config.json").is_file():
        remedy = "Choose another directory."
        raise CheckpointError(
            str(target), expected="a new or empty directory", got="files that are no checkpoint", remedy=remedy
        )
    if not overwrite:
        raise CheckpointError(
            str(target), expected="a new or empty directory", got="a checkpoint", remedy="Ask for overwriting."
        )


def _failed(target: Path, error: OSError) -> CheckpointError:
    got = error.strerror or str(error)
    return CheckpointError(
        f"writing {target}", expected="a writable place with room", got=got, remedy="Nothing was changed."
    )


def _write_all(
    work: Path,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    dtype: torch.dtype,
    files: Mapping[str, bytes],
    limit: int,
) -> None:
    shards = list(_shards(tensors, dtype, limit))
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        with (work / name).open("wb") as file:
            write_safetensors(file, shard, dtype)
            _flush(file)
    if len(shards) > 1:
        table = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        size = sum(prod(t.shape) * dtype.itemsize for t in tensors.values())
        _put(work / INDEX, _json({"metadata": {"total_size": size}, "weight_map": table}))
    _put(
        work / "config.json",
        _json({k: v for k, v in config.items() if k != "dtype"} | {"torch_dtype": str(dtype).removeprefix("torch.")}),
    )
    for name, content in files.items():
        _put(work / name, content)


def _shards(tensors: dict[str, Tensor], dtype: torch.dtype, limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        need = prod(tensor.shape) * dtype.itemsize
        if shard and size + need > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += need
    yield shard


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """One safetensors file, streamed: a tensor is converted a slice at a time and never copied whole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        size = prod(tensor.shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    file.write(struct.pack("<Q", len(raw)) + raw)
    for tensor in tensors.values():
        _write_rows(file, tensor, dtype)


def _write_rows(file: BinaryIO, tensor: Tensor, dtype: torch.dtype) -> None:
    step = max(1, CHUNK_ROWS_BYTES // max(1, prod(tensor.shape[1:]) * dtype.itemsize))
    for rows in tensor.split(step):
        file.write(rows.to("cpu", dtype).contiguous().view(torch.uint8).numpy().data)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _put(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        _flush(file)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _move(work: Path, target: Path) -> None:
    """`work` takes the target's place; what was there is put aside first and restored if the move fails."""
    if not target.exists():
        work.chmod(0o755)
        work.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(aside / "was")
    try:
        work.chmod(0o755)
        work.rename(target)
    except OSError:
        (aside / "was").rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _merge(work: Path, target: Path) -> None:
    """Each file takes its place at once; weights of an earlier save that are not among the new files go."""
    new = {p.name for p in work.iterdir()}
    for name in sorted(new, key=lambda n: n == "config.json"):
        (work / name).replace(target / name)
    for old in (*target.glob("model*.safetensors"), target / INDEX):
        if old.name not in new:
            old.unlink(missing_ok=True)
