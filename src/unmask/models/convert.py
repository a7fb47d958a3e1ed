"""The only door for old pickles: one `.pt` / `.bin` state dict -> a safetensors checkpoint, by weights-only loading.

torch's weights-only unpickler builds tensors and plain containers and refuses everything else; nothing is executed.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.core.errors import CheckpointError
from unmask.models.backbone import empty_model
from unmask.models.family import find_family, pieces
from unmask.models.load import ROTARY
from unmask.models.save import save_checkpoint
from unmask.models.weights import few, read_json

NESTS = ("state_dict", "model", "module", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")


def convert_pickle(
    file: str | Path,
    out: str | Path,
    config: Mapping[str, Any] | str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes `out` as a checkpoint directory from a pickled state dict.

    Args:
        file: a torch.save file: a flat dict of tensors, or one nested under "model" or "state_dict".
        config: the published config, its config.json, or None for the config.json beside `file`.
        dtype: store as this; None keeps the widest dtype found.

    Raises:
        CheckpointError: an unsafe or damaged pickle, wrong names or shapes, or a target in the way; nothing is written.
    """
    path = Path(file)
    table = _config(path, config)
    family = find_family(table)
    shape, names = family.shape(table), family.names
    tensors = {n: t for n, t in state_dict(path).items() if not ROTARY.search(n)}
    if names is not None and shape.tied and names.embed in tensors and names.head in tensors:
        if not torch.equal(tensors[names.embed], tensors[names.head]):
            raise CheckpointError(
                f"{path}: {names.head}", expected="a copy of the embedding (tied)", got="other values"
            )
        del tensors[names.head]
    parts = tuple(pieces(family.names, shape))
    _check(path, {p.published: p.shape for p in parts}, tensors)
    model = empty_model(shape, dtype or _widest(tensors), torch.device("cpu"))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for p in parts:
            parameters[p.parameter][p.start : p.start + p.shape[0]].copy_(tensors[p.published])
    return save_checkpoint(model, table, out)


def _config(path: Path, config: Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    if config is None:
        beside = path.parent / "config.json"
        if not beside.is_file():
            remedy = "Give the model's config.json."
            raise CheckpointError(
                f"config of {path}", expected=f"config.json in {path.parent}", got="none", remedy=remedy
            )
        return read_json(beside)
    place = Path(config)
    return read_json(place / "config.json" if place.is_dir() else place)


def state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle by name, memory-mapped where the file allows it."""
    if not path.is_file():
        raise CheckpointError(
            str(path), expected="a .pt, .pth or .bin file", got="a directory" if path.is_dir() else "nothing there"
        )
    value: Any = _load(path)
    while isinstance(value, Mapping) and not any(isinstance(v, Tensor) for v in value.values()):
        inner = next((value[k] for k in NESTS if k in value), None)
        if inner is None:
            raise CheckpointError(
                str(path), expected="tensors by name", got=f"a dict of {few(map(str, value)) or 'nothing'}"
            )
        value = inner
    if not isinstance(value, Mapping):
        raise CheckpointError(str(path), expected="a dict of tensors", got=type(value).__name__)
    tensors = {_plain(str(k)): v for k, v in value.items() if isinstance(v, Tensor)}
    wrong = [n for n, t in tensors.items() if t.dtype not in (torch.bfloat16, torch.float16, torch.float32)]
    if wrong:
        raise CheckpointError(f"{path}: {wrong[0]}", expected="bf16, fp16 or fp32", got=str(tensors[wrong[0]].dtype))
    return tensors


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        remedy = (
            "Only tensors and plain containers are read. Save the state dict alone with torch.save and convert that."
        )
        got = "objects that would run code on loading, or a damaged pickle"
        raise CheckpointError(str(path), expected="a weights-only pickle", got=got, remedy=remedy) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise CheckpointError(
            str(path), expected="a torch.save file", got=f"a damaged one ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _plain(name: str) -> str:
    """Without the prefixes that wrappers (data parallel, torch.compile) put before names."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _check(path: Path, wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    missing, unexpected = [n for n in wanted if n not in tensors], [n for n in tensors if n not in wanted]
    if missing or unexpected:
        words = (("missing", missing), ("not expected", unexpected))
        got = "; ".join(f"{word}: {few(names)}" for word, names in words if names)
        raise CheckpointError(f"{path}: tensor names", expected=f"the {len(wanted)} of this config", got=got)
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{path}: {name}", expected=f"shape {list(shape)}", got=str(list(tensors[name].shape))
            )


def _widest(tensors: Mapping[str, Tensor]) -> torch.dtype:
    kinds = {t.dtype for t in tensors.values()}
    return kinds.pop() if len(kinds) == 1 else torch.float32
