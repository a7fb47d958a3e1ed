"""Training a tokenizer: byte-level BPE with single digits, the special tokens of a diffusion model and a chat template.

Enters: texts (or files of them) and a vocabulary size. Leaves: tokenizer.json, tokenizer_config.json and
chat_template.jinja in a directory that `transformers` loads without our code. Byte level means that every text has a
tokenisation and comes back unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from unmask.core.errors import ConfigError
from unmask.sinks.files import write_text

EOS, MASK, USER, ASSISTANT, SYSTEM = "<|eos|>", "<|mask|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIALS = (EOS, MASK, USER, ASSISTANT, SYSTEM)
SMALLEST = 256 + len(SPECIALS)
"""Entries of the smallest vocabulary: every byte and special token."""
# a word or a run of signs takes the space before it along; a digit is always a token of its own
PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] | trim }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(
    source: Iterable[str | Path], vocab_size: int, out: str | Path, max_length: int = 4096
) -> Tokenizer:
    """Trains on texts (str) and text files (Path) and writes the tokenizer's three files into `out`.

    Args:
        source: texts and paths, mixed as wanted.
        vocab_size: entries in all: 5 special tokens, 256 bytes, the rest merges; at least 261.
        max_length: context length written into the config, in tokens.
    """
    if vocab_size < SMALLEST:
        raise ConfigError(
            f"vocab_size {vocab_size} is too small", expected=f"at least {SMALLEST} (all bytes and special tokens)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(source), trainer)
    save_tokenizer(tokenizer, out, max_length)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: str | Path, max_length: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja, or none of them."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "mask_token": MASK,
        "additional_special_tokens": [USER, ASSISTANT, SYSTEM],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
    texts = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "chat_template.jinja": CHAT_TEMPLATE,
    }
    _write_all(Path(out), texts)


def _write_all(out: Path, texts: Mapping[str, str]) -> None:
    """All files or, after an error of the system, none that was not there before."""
    made, fresh = not out.exists(), [out / name for name in texts if not (out / name).exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(out / name, text)
    except OSError:
        for path in fresh:
            path.unlink(missing_ok=True)
        if made:
            with suppress(OSError):
                out.rmdir()
        raise


def _texts(source: Iterable[str | Path]) -> Iterator[str]:
    for item in source:
        yield read_text(item) if isinstance(item, Path) else item


def read_text(path: Path) -> str:
    """A whole UTF-8 file; missing, empty and foreign files are refused by name."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no file {path}", remedy="check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory", expected="a text file") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 text", got=f"byte {e.object[e.start]:#04x} at {e.start}") from None
    if not text.strip():
        raise ConfigError(f"{path} is empty", expected="text to train on")
    return text
