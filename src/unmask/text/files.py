"""The tokenizer of a checkpoint directory, read without its code and, where possible, without transformers.

Enters: a directory. Leaves: `TokenizerFiles` (a `tokenizers.Tokenizer`, the named special tokens, the chat templates).
Three doors, in this order: `tokenizer.json`; `vocab.json` + `merges.txt` of the Qwen2 kind (Dream ships only these,
with a class of its own that would be remote code); anything else goes through transformers' AutoTokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from unmask.core.errors import CheckpointError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
QWEN2_KIND = ("DreamTokenizer", "DreamTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast")
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OTHER_FILES = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
FILES = ("tokenizer.json", "merges.txt", *OTHER_FILES, *CONFIG_FILES)
"""Everything that may belong to a tokenizer."""


@dataclass(frozen=True)
class TokenizerFiles:
    """What a directory says about text. named: special tokens by role ("bos_token" ...); templates: by name."""

    backend: Tokenizer
    named: Mapping[str, str]
    extra: tuple[str, ...]
    templates: Mapping[str, str]


def read_tokenizer(directory: Path) -> TokenizerFiles:
    """Everything about text in `directory`.

    Raises:
        CheckpointError: no tokenizer there, or one that is damaged or needs remote code.
    """
    config = _read_json(directory / "tokenizer_config.json")
    old = _read_json(directory / "special_tokens_map.json")
    try:
        return _read(directory, config, old)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = directory / "tokenizer_config.json"
        raise _damaged(what, f"{type(error).__name__}: {error}") from None


def _read(directory: Path, config: Mapping[str, Any], old: Mapping[str, Any]) -> TokenizerFiles:
    named = {k: text for k in NAMED if (text := _content(config.get(k, old.get(k)))) is not None}
    extra = _extra_names(config) or _extra_names(old)
    backend = _backend(directory, config)
    backend.no_padding()
    backend.no_truncation()
    _declare(backend, config, (*named.values(), *extra), directory)
    return TokenizerFiles(backend, named, extra, _templates(directory, config))


def copied_tokenizer(directory: Path) -> dict[str, bytes]:
    """The files that make up the tokenizer of a directory, by name, once they have been read without complaint.

    Raises:
        CheckpointError: no tokenizer there, or one that is damaged or needs remote code.
    """
    read_tokenizer(directory)
    return {n: (directory / n).read_bytes() for n in FILES if (directory / n).is_file()}


# ---- the three doors -------------------------------------------------------------------------------------------------


def _backend(directory: Path, config: Mapping[str, Any]) -> Tokenizer:
    if (directory / "tokenizer.json").is_file():
        return _from_json(directory / "tokenizer.json")
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    if config.get("tokenizer_class") in QWEN2_KIND and vocab.is_file() and merges.is_file():
        return _qwen2_kind(vocab, merges)
    if any((directory / name).is_file() for name in OTHER_FILES):
        return _through_transformers(directory)
    raise CheckpointError(
        f"no tokenizer in {directory}",
        expected="tokenizer.json, or vocab.json and merges.txt",
        got="neither",
        remedy="Copy the checkpoint's tokenizer files into the directory, or give the prompt as ids.",
    )


def _from_json(path: Path) -> Tokenizer:
    _read_json(path)  # says where a truncated file breaks; the library below does not
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises nothing more specific
        raise _damaged(path, str(error)) from None


def _qwen2_kind(vocab: Path, merges: Path) -> Tokenizer:
    """Byte-level BPE as Qwen2 splits text: NFC first, single digits, no prefix space."""
    try:
        model = models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # noqa: BLE001 - the library raises nothing more specific
        raise _damaged(vocab, str(error)) from None
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _through_transformers(directory: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "Save it once as tokenizer.json (save_pretrained of its fast class) next to the weights."
        raise CheckpointError(
            f"tokenizer in {directory}", expected="one that loads without remote code", got=first, remedy=remedy
        ) from None
    if not loaded.is_fast:
        raise CheckpointError(
            f"tokenizer in {directory}", expected="one with a fast form (tokenizer.json)", got=type(loaded).__name__
        )
    backend: Tokenizer = loaded.backend_tokenizer
    return backend


# ---- special tokens and templates ------------------------------------------------------------------------------------


def _declare(backend: Tokenizer, config: Mapping[str, Any], names: tuple[str, ...], directory: Path) -> None:
    """Adds the tokens of the config that the backend does not know yet; ids must come out as written."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    wanted = {
        int(i): entry
        for i, entry in (config.get("added_tokens_decoder") or {}).items()
        if entry["content"] not in known
    }
    for i, entry in sorted(wanted.items()):
        flags = {k: entry[k] for k in ("lstrip", "rstrip", "single_word", "normalized") if k in entry}
        special = bool(entry.get("special", False))
        token = AddedToken(entry["content"], special=special, **flags)
        (backend.add_special_tokens if special else backend.add_tokens)([token])
        if backend.token_to_id(entry["content"]) != i:
            got = str(backend.token_to_id(entry["content"]))
            raise CheckpointError(
                f"{directory}: token {entry['content']!r} of tokenizer_config.json", expected=f"id {i}", got=got
            )
        known.add(entry["content"])
    in_vocab = [n for n in dict.fromkeys(names) if n not in known and backend.token_to_id(n) is not None]
    if in_vocab:
        backend.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in in_vocab])


def _extra_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    found = config.get("additional_special_tokens") or config.get("extra_special_tokens") or ()
    items = found.values() if isinstance(found, dict) else found
    return tuple(text for item in items if (text := _content(item)) is not None)


def _content(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; a file beside the config wins over the config."""
    inside = config.get("chat_template")
    found = {"default": inside} if isinstance(inside, str) else {t["name"]: t["template"] for t in inside or ()}
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _read_text(path)
    if (directory / "chat_template.jinja").is_file():
        found["default"] = _read_text(directory / "chat_template.jinja")
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file, {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(_read_text(path))
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(data, dict):
        raise _damaged(path, type(data).__name__)
    return data


def _damaged(path: Path, got: str) -> CheckpointError:
    return CheckpointError(
        f"{path}", expected="a complete tokenizer file", got=got, remedy="Copy or download the file again."
    )
