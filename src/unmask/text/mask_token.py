"""A mask token for a tokenizer that has none.

Enters: a tokenizer directory and the token's text. Leaves: the directory's tokenizer files with that token as a special
one at the first free id, and the id. A tokenizer that knows the text, or names a mask token of its own, keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from unmask.core.errors import CheckpointError
from unmask.text.files import copied_tokenizer, read_tokenizer

MASK_TOKEN = "|<MASK>|"
"""The text of Fast-dLLM v2's mask token."""


@dataclass(frozen=True)
class MaskToken:
    """files: the tokenizer's, by name. size: ids below it are tokens (those before the new one, if it was added)."""

    token: str
    id: int
    added: bool
    size: int
    files: Mapping[str, bytes]


def mask_token(directory: str | Path, token: str = MASK_TOKEN) -> MaskToken:
    """The tokenizer of `directory` with a mask token.

    Args:
        token: its text, unless the tokenizer names a mask token of its own.

    Raises:
        CheckpointError: no tokenizer there; or a text that does not come out as one id of its own.
    """
    directory = Path(directory)
    found = read_tokenizer(directory)
    backend, files = found.backend, copied_tokenizer(directory)
    known = backend.get_vocab(with_added_tokens=True)
    name = token if token in known else found.named.get("mask_token", token)
    if name not in known:
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    elif not _is_special(backend, name):
        raise CheckpointError(
            f"{directory}: token {name!r}",
            expected="a special token",
            got="an ordinary one",
            remedy="choose another text",
        )
    ids = backend.encode(name, add_special_tokens=False).ids
    taken = {i: t for t, i in known.items() if t != name}
    if len(ids) != 1 or ids[0] in taken:
        got = f"ids {ids}" + (f", where {taken[ids[0]]!r} is" if len(ids) == 1 else "")
        raise CheckpointError(f"{directory}: mask token {name!r}", expected="one id of its own", got=got)
    added = name not in known
    new = _edited(files, backend, name, ids[0], added)
    return MaskToken(name, ids[0], added, max(known.values()) + 1, {**files, **new})


def _is_special(backend: Tokenizer, name: str) -> bool:
    return any(t.content == name and t.special for t in backend.get_added_tokens_decoder().values())


def _edited(files: Mapping[str, bytes], backend: Tokenizer, name: str, id: int, added: bool) -> dict[str, bytes]:
    """The files that change: the role in the configs and, for a new token, the token itself."""
    config = _read(files, "tokenizer_config.json")
    config["mask_token"] = name
    out: dict[str, bytes] = {}
    if added:
        out["tokenizer.json"] = backend.to_str(pretty=True).encode()
        if "added_tokens_decoder" in config:
            flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
            config["added_tokens_decoder"] = {**config["added_tokens_decoder"], str(id): {"content": name, **flags}}
        if "added_tokens.json" in files:
            out["added_tokens.json"] = _json({**_read(files, "added_tokens.json"), name: id})
    if "special_tokens_map.json" in files:
        out["special_tokens_map.json"] = _json({**_read(files, "special_tokens_map.json"), "mask_token": name})
    out["tokenizer_config.json"] = _json(config)
    return out


def _read(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return dict(json.loads(files[name])) if name in files else {}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
