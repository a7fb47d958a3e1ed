"""A checkpoint directory or hub id -> a model with its family and traits. Nothing is unpickled, no code is run.

Every check (config, names, shapes, dtypes, file lengths) comes first, from config.json and the files' headers. Then
tensors are copied one by one from the memory-mapped files into the fused parameters: peak memory is about one model.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unmask.core.errors import CheckpointError
from unmask.core.types import Traits
from unmask.models.backbone import Backbone, empty_model
from unmask.models.config import Shape
from unmask.models.embedded import EMBEDDED, NAMES, embedded
from unmask.models.family import Family, Piece, find_family, pieces
from unmask.models.weights import Stored, few, find_tensors, read_config, read_json
from unmask.ops.placement import pick_device, pick_dtype

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.txt"]
ROTARY = re.compile(r"(^|\.)rotary_emb\.")
OFFLINE = "no such directory, the hub cannot be reached, and it is not in the local cache"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What a checkpoint is, ready to decode.

    Args:
        config: config.json as published. path: the local directory.
        tokenizer_dir: the directory if it holds a tokenizer, else None.
        stored: the dtypes found in the files, e.g. ("BF16",).
    """

    model: Backbone
    config: dict[str, Any]
    family: Family
    traits: Traits
    path: Path
    tokenizer_dir: Path | None
    stored: tuple[str, ...]


@dataclass(frozen=True)
class Inspected:
    """A checkpoint whose headers agree with its config; no tensor has been read."""

    path: Path
    config: dict[str, Any]
    family: Family
    shape: Shape
    traits: Traits
    parts: tuple[tuple[Piece, Stored], ...]
    tied_copy: tuple[Stored, Stored] | None

    @property
    def stored(self) -> tuple[str, ...]:
        return tuple(sorted({s.dtype for _, s in self.parts}))


def load_model(
    source: str | Path,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    config: Mapping[str, Any] | None = None,
) -> LoadedCheckpoint:
    """The model of a local directory or hub id, in evaluation mode.

    Args:
        source: a directory with config.json and safetensors files, "owner/name" on the hub, or an embedded model.
        revision: branch, tag or commit of a hub id.
        dtype: "bf16", "fp16", "fp32" or "auto": bf16 if the device supports it and the files are 16-bit, else float32.
        device: "auto" (cuda, mps, cpu) or a torch device.
        config: read instead of the directory's config.json.

    Raises:
        CheckpointError: anything missing, damaged, foreign or inconsistent; says what was expected and what to do.
    """
    found = inspect(locate(source, revision), config)
    place = pick_device(device)
    kind = pick_dtype(dtype, place, "F32" not in found.stored)
    model = empty_model(found.shape, kind, place)
    _fill(model, found)
    tokenizer = found.path if any((found.path / n).is_file() for n in TOKENIZER_FILES) else None
    return LoadedCheckpoint(model.eval(), found.config, found.family, found.traits, found.path, tokenizer, found.stored)


def inspect(directory: Path, override: Mapping[str, Any] | None = None) -> Inspected:
    """All checks of a local checkpoint, from config.json (or `override`) and headers only."""
    config = dict(override) if override is not None else read_config(directory)
    family = find_family(config)
    shape, traits = family.shape(config), _with_generation_eos(directory, family.traits(config))
    traits = _with_mask(directory, family, shape, traits)
    tensors = {n: s for n, s in find_tensors(directory).items() if not ROTARY.search(n)}
    tied_copy = _tied_copy(directory, family, shape, tensors)
    parts = match(directory, tuple(pieces(family.names, shape)), tensors)
    return Inspected(directory, config, family, shape, traits, parts, tied_copy)


def locate(source: str | Path, revision: str | None = None, hub: Mapping[str, Any] | None = None) -> Path:
    """A local directory for a path, the name of an embedded model, or a hub id (downloaded, or from the local cache).

    A path that exists wins over the name of an embedded model.

    Args:
        hub: further options of huggingface_hub's snapshot_download, such as cache_dir or token.

    Raises:
        CheckpointError: neither an existing directory nor a hub id, or the hub cannot give it.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise CheckpointError("model", expected="a directory or a hub id", got=repr(source)[:80])
    path = Path(source).expanduser()
    if source in EMBEDDED and not os.path.exists(path):
        path = embedded(str(source))
    if os.path.exists(path) or not isinstance(source, str) or not HUB_ID.fullmatch(source):
        if revision is not None:
            raise CheckpointError("revision", expected="a hub id to go with it", got=f"the directory {path}")
        if not os.path.exists(path):
            remedy = f"Models inside the package: {NAMES}."
            raise CheckpointError(f"checkpoint {path}", expected="a directory", got="nothing there", remedy=remedy)
        return path
    return _asked(
        source,
        revision,
        lambda api: Path(api.snapshot_download(source, revision=revision, allow_patterns=HUB_FILES, **(hub or {}))),
    )


def hub_file(repo: str, name: str, revision: str | None) -> Path:
    """One file of a hub repository, downloaded or from the local cache."""
    return _asked(repo, revision, lambda hub: Path(hub.hf_hub_download(repo, name, revision=revision)))


def _asked(repo: str, revision: str | None, ask: Callable[[Any], Path]) -> Path:
    """What the hub answers, its failures in plain words."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError as error:
        got = "no such directory, and huggingface_hub is not installed"
        remedy = "pip install huggingface_hub, or give a directory."
        raise CheckpointError(f"model {repo}", expected="a directory or a hub id", got=got, remedy=remedy) from error
    log = logging.getLogger("huggingface_hub")
    shown = log.level
    log.setLevel(logging.ERROR)  # its retries would bury our one line
    try:
        return ask(hub)
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        got = "no such directory here and no such repository there (a private or gated one needs a login)"
    except errors.RevisionNotFoundError:
        got = f"no revision {revision!r} there"
    except errors.EntryNotFoundError as error:
        local = isinstance(error, errors.LocalEntryNotFoundError)
        got = OFFLINE if local else "a repository without that file: not a model"
    except (errors.OfflineModeIsEnabled, ConnectionError):
        got = OFFLINE
    except (errors.HfHubHTTPError, OSError) as error:
        got = f"the hub's answer: {str(error).splitlines()[0]}"
    finally:
        log.setLevel(shown)
    remedy = f"Download it where there is a network and give its directory, or use an embedded one: {NAMES}."
    raise CheckpointError(f"model {repo}", expected="a directory or a hub id", got=got, remedy=remedy)


def _with_generation_eos(directory: Path, traits: Traits) -> Traits:
    """EOS ids of generation_config.json count as well, after the config's own (instruct models name theirs there)."""
    path = directory / "generation_config.json"
    eos = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise CheckpointError(f"{path}: eos_token_id", expected="an id, a list of ids, or null", got=repr(eos))
    return replace(traits, eos_ids=tuple(dict.fromkeys((*traits.eos_ids, *ids))))


def _with_mask(directory: Path, family: Family, shape: Shape, traits: Traits) -> Traits:
    """A mask id that the config leaves out is the tokenizer's id of the family's mask token."""
    if traits.mask_id is not None or not family.mask_token:
        return traits
    found = added_token(directory, family.mask_token)
    if found is None or not 0 <= found < shape.vocab_size:
        token = f"{family.mask_token} (id below {shape.vocab_size})"
        raise CheckpointError(
            f"{directory}: the mask id",
            expected=f"mask_token_id in config.json, or {token} in its tokenizer",
            got="neither" if found is None else f"id {found} in the tokenizer",
            remedy="Add mask_token_id to config.json, or put the tokenizer files that belong to the weights beside it.",
        )
    return replace(traits, mask_id=found)


def added_token(directory: Path, text: str) -> int | None:
    """The id of an added token by a directory's tokenizer.json, tokenizer_config.json or added_tokens.json."""

    def read(name: str) -> dict[str, Any]:
        return read_json(directory / name) if (directory / name).is_file() else {}

    listed = read("tokenizer.json").get("added_tokens")
    decoder = read("tokenizer_config.json").get("added_tokens_decoder")
    entries = [(e.get("content"), e.get("id")) for e in listed or [] if isinstance(e, dict)]
    entries += [(e.get("content"), int(i)) for i, e in (decoder or {}).items() if isinstance(e, dict) and i.isdigit()]
    entries += read("added_tokens.json").items()
    return next((i for content, i in entries if content == text and type(i) is int), None)


def _tied_copy(
    directory: Path, family: Family, shape: Shape, tensors: dict[str, Stored]
) -> tuple[Stored, Stored] | None:
    """A head stored although the config ties it: taken out of the table, to be compared with the embedding later."""
    names = family.names
    if names is None or not shape.tied or names.head not in tensors or names.embed not in tensors:
        return None
    head, embed = tensors.pop(names.head), tensors[names.embed]
    if head.shape != embed.shape:
        raise CheckpointError(
            f"{directory}: {names.head}", expected=f"shape {list(embed.shape)}", got=str(list(head.shape))
        )
    return head, embed


def match(
    directory: Path, wanted: tuple[Piece, ...], tensors: Mapping[str, Stored]
) -> tuple[tuple[Piece, Stored], ...]:
    """Each wanted piece with its stored tensor; names and shapes must agree exactly."""
    names = {p.published for p in wanted}
    missing = [p.published for p in wanted if p.published not in tensors]
    unexpected = sorted(set(tensors) - names)
    if missing or unexpected:
        got = "; ".join(
            f"{word}: {few(found)}" for word, found in (("missing", missing), ("not expected", unexpected)) if found
        )
        remedy = "The config and the weights do not belong together, or the format is another one."
        raise CheckpointError(
            f"{directory}: tensor names", expected=f"the {len(wanted)} of this config", got=got, remedy=remedy
        )
    for piece in wanted:
        got_shape = tensors[piece.published].shape
        if got_shape != piece.shape:
            what = f"{tensors[piece.published].file}: {piece.published}"
            raise CheckpointError(what, expected=f"shape {list(piece.shape)}", got=str(list(got_shape)))
    return tuple((p, tensors[p.published]) for p in wanted)


def _fill(model: Backbone, found: Inspected) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for piece, stored in found.parts:
            rows = parameters[piece.parameter][piece.start : piece.start + piece.shape[0]]
            rows.copy_(_read(stored, piece.published))
    if found.tied_copy is not None:
        _check_tied(found)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(path), expected="a readable safetensors file", got=str(error)) from error


def _check_tied(found: Inspected) -> None:
    names = found.family.names
    assert found.tied_copy is not None and names is not None
    head, embed = (_read(s, n) for s, n in zip(found.tied_copy, (names.head, names.embed), strict=True))
    if not torch.equal(head, embed):
        expected = f"a copy of {names.embed}, since the config ties them"
        remedy = "Set the tying key of config.json to false if the head is its own matrix."
        raise CheckpointError(f"{found.path}: {names.head}", expected=expected, got="other values", remedy=remedy)


def _read(stored: Stored, name: str) -> Tensor:
    """One tensor; the mapping is closed again, so that pages of tensors already copied do not pile up."""
    with _open(stored.file) as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor
