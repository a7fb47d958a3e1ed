"""The tokenizer inside a GGUF file's metadata -> the files of an ordinary tokenizer directory.

Enters: metadata as plain values by key. Leaves: tokenizer.json and tokenizer_config.json (chat template included).
Byte-level BPE only. The file names its way of splitting text into words; the expressions behind the names are known,
not stored, so an unknown name is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from unmask.core.errors import CheckpointError
from unmask.text.files import QWEN2_WORDS

PREFIX = "tokenizer.ggml."
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask"}
LLAMA3_WORDS = QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
WORDS = {"qwen2": QWEN2_WORDS, "llama-bpe": LLAMA3_WORDS}
WAYS = ("gpt-2", "smollm", *WORDS)
"""Known ways of splitting text into words."""
REMEDY = "Give the model's original tokenizer directory with --tokenizer DIR."


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Files by name.

    Raises:
        CheckpointError: no tokenizer in the metadata, one of another kind, or one that is damaged.
    """
    kind, way = metadata.get(f"{PREFIX}model"), metadata.get(f"{PREFIX}pre", "gpt-2")
    if kind != "gpt2" or way not in WAYS:
        expected = f"byte-level BPE (gpt2) split as one of {', '.join(WAYS)}"
        raise CheckpointError("the tokenizer of the GGUF file", expected=expected, got=f"{kind} / {way}", remedy=REMEDY)
    tokens, kinds = _tokens(metadata)
    backend = _backend(tokens, kinds, _merges(metadata), way)
    config = _config(metadata, tokens, kinds)
    return {
        "tokenizer.json": backend.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
    }


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = metadata.get(f"{PREFIX}tokens")
    kinds = metadata.get(f"{PREFIX}token_type") or [1] * len(tokens or ())
    if not tokens or len(kinds) != len(tokens):
        got = f"{len(tokens or ())} tokens with {len(kinds)} types"
        raise CheckpointError(
            "the tokenizer of the GGUF file", expected="tokens and their types", got=got, remedy=REMEDY
        )
    return tokens, kinds


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = [tuple(line.split(" ")) for line in metadata.get(f"{PREFIX}merges") or ()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise CheckpointError(
            "the tokenizer of the GGUF file", expected="merges of two pieces", got="others or none", remedy=REMEDY
        )
    return [(pair[0], pair[1]) for pair in pairs]


def _backend(tokens: list[str], kinds: list[int], merges: list[tuple[str, str]], way: str) -> Tokenizer:
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
    try:
        model = models.BPE(vocab, merges, ignore_merges=way == "llama-bpe")
    except Exception as error:  # noqa: BLE001 - the library raises nothing more specific
        raise CheckpointError(
            "the tokenizer of the GGUF file", expected="merges of its own tokens", got=str(error), remedy=REMEDY
        ) from None
    backend = Tokenizer(model)
    if way == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _words(way)
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            special = kind == CONTROL
            add = backend.add_special_tokens if special else backend.add_tokens
            add([AddedToken(token, special=special, normalized=False)])
    return backend


def _words(way: str) -> pre_tokenizers.PreTokenizer:
    if way in WORDS:
        split = pre_tokenizers.Split(Regex(WORDS[way]), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain]) if way == "smollm" else plain


def _config(metadata: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    named = {f"{role}_token": metadata.get(f"{PREFIX}{name}_token_id") for role, name in ROLES.items()}
    outside = [f"{role} {i}" for role, i in named.items() if i is not None and not 0 <= i < len(tokens)]
    if outside:
        raise CheckpointError("the tokenizer of the GGUF file", expected=f"ids below {len(tokens)}", got=outside[0])
    texts = {role: tokens[i] for role, i in named.items() if i is not None}
    rest = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL and t not in texts.values()]
    template = metadata.get("tokenizer.chat_template")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **texts,
        "additional_special_tokens": rest,
        "add_bos_token": bool(metadata.get(f"{PREFIX}add_bos_token", False)),
        "add_eos_token": bool(metadata.get(f"{PREFIX}add_eos_token", False)),
        "clean_up_tokenization_spaces": False,
        **({} if template is None else {"chat_template": template}),
    }
