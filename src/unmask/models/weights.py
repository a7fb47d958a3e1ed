"""safetensors files by their headers: what a directory holds, checked before a single tensor is read. No torch here.

Enters: a checkpoint directory. Leaves: `{published name: Stored}`, or a `CheckpointError` that names the file and what
is wrong with it (truncated, damaged header, missing shard, a dtype that is not bf16, fp16 or fp32).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from unmask.core.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOAT_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
HEADER_LIMIT = 100_000_000
"""The format's own limit on the header, in bytes."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
AGAIN = "Download or copy the file again."


@dataclass(frozen=True)
class Stored:
    """One tensor as its file's header describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * FLOAT_BYTES[self.dtype]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: missing, unreadable, not UTF-8, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(str(path), expected="a file", got="nothing there") from None
    except OSError as error:
        raise CheckpointError(str(path), expected="a readable file", got=error.strerror or str(error)) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(
            str(path), expected="JSON", got=f"text that does not parse ({error})", remedy=AGAIN
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(str(path), expected="a JSON object", got=type(value).__name__)
    return value


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory."""
    if not os.path.exists(directory):  # Path.exists raises for a name longer than the system allows
        raise CheckpointError(f"checkpoint {directory}", expected="a directory", got="nothing there")
    if not directory.is_dir():
        raise CheckpointError(f"checkpoint {directory}", expected="a directory with config.json", got="a file")
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            f"checkpoint {directory}",
            expected="config.json and safetensors files",
            got="no config.json",
            remedy="Point to the folder that holds config.json.",
        )
    return read_json(directory / "config.json")


def find_tensors(directory: Path) -> dict[str, Stored]:
    """All tensors of a directory: from the index and its shards, or from the single file.

    Raises:
        CheckpointError: no weights (or pickles only), missing shards, damaged or truncated files.
    """
    if (directory / INDEX).is_file():
        return _sharded(directory)
    if (directory / SINGLE).is_file():
        return read_header(directory / SINGLE)
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLES)
    raise CheckpointError(
        f"checkpoint {directory}",
        expected=f"{SINGLE}, or {INDEX} and its shards",
        got=f"only pickles ({', '.join(pickles[:3])})" if pickles else "no weights",
        remedy="Pickles are never loaded; run `unmask convert FILE.pt` once." if pickles else "",
    )


def _sharded(directory: Path) -> dict[str, Stored]:
    index = directory / INDEX
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise CheckpointError(str(index), expected="weight_map: tensor name -> file name", got=type(table).__name__)
    files = sorted(set(table.values()))
    _check_shards(index, files)
    found: dict[str, Stored] = {}
    for name in files:
        for tensor, stored in read_header(directory / name).items():
            if tensor in found:
                raise CheckpointError(str(index), expected="each tensor once", got=f"{tensor} in two shards")
            found[tensor] = stored
    wrong = [t for t, file in table.items() if t not in found or found[t].file.name != file]
    if wrong:
        raise CheckpointError(
            str(index), expected="tensors where the index says", got=f"not there: {few(wrong)}", remedy=AGAIN
        )
    return found


def _check_shards(index: Path, files: list[str]) -> None:
    foreign = [f for f in files if Path(f).name != f or "\\" in f or f in {"", ".", ".."}]
    if foreign:
        raise CheckpointError(str(index), expected="file names inside the directory", got=few(foreign))
    missing = [f for f in files if not (index.parent / f).is_file()]
    if missing:
        raise CheckpointError(str(index), expected=f"{len(files)} shards", got=f"missing: {few(missing)}", remedy=AGAIN)


def read_header(path: Path) -> dict[str, Stored]:
    """Every tensor of one safetensors file, by name; sizes and offsets are checked against the file's length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(HEADER_LIMIT, max(0, size - 8)):
            got = f"{size} bytes with a header of {length}: truncated, or not safetensors"
            raise CheckpointError(str(path), expected="a safetensors file", got=got, remedy=AGAIN)
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise CheckpointError(str(path), expected="a safetensors header", got="damaged JSON", remedy=AGAIN) from None
    if not isinstance(header, dict):
        raise CheckpointError(str(path), expected="a safetensors header", got="JSON that is no object", remedy=AGAIN)
    header.pop("__metadata__", None)
    return _entries(path, header, size - 8 - length)


def _entries(path: Path, header: Mapping[str, Any], body: int) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        dtype, shape, span = _entry(path, name, entry)
        if dtype not in FLOAT_BYTES:
            remedy = "Quantised and integer weights are not read; use the original checkpoint."
            raise CheckpointError(f"{path}: {name}", expected="dtype BF16, F16 or F32", got=dtype, remedy=remedy)
        stored = Stored(path, dtype, shape)
        if span[1] - span[0] != stored.bytes:
            raise CheckpointError(
                f"{path}: {name}", expected=f"{stored.bytes} bytes", got=f"{span[1] - span[0]}", remedy=AGAIN
            )
        found[name] = stored
        spans.append(span)
    end = _contiguous(path, sorted(spans))
    if end != body:
        word = "truncated" if body < end else "bytes after the last tensor"
        raise CheckpointError(str(path), expected=f"{end} bytes of tensors", got=f"{body} ({word})", remedy=AGAIN)
    return found


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    given = entry if isinstance(entry, dict) else {}
    dtype, shape, span = given.get("dtype"), given.get("shape"), given.get("data_offsets")
    if isinstance(dtype, str) and _naturals(shape) and _naturals(span) and len(span) == 2:
        return dtype, tuple(shape), (span[0], span[1])
    raise CheckpointError(
        f"{path}: {name}", expected="dtype, shape and data_offsets", got="a damaged entry", remedy=AGAIN
    )


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _contiguous(path: Path, spans: list[tuple[int, int]]) -> int:
    at = 0
    for start, stop in spans:
        if start != at:
            raise CheckpointError(
                str(path), expected="tensors back to back", got=f"a gap or overlap at byte {at}", remedy=AGAIN
            )
        at = stop
    return at


def few(names: Iterable[str], limit: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
