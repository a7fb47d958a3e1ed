"""Small tokenizers of every shape a checkpoint directory has, trained here in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from unmask.text.files import QWEN2_WORDS

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Why is the sky blue? It's because of Rayleigh scattering.",
    "def f(x):\n    return x + 1\n\nprint(f(41))  # 42",
    "Ein Bär läuft über die Straße; 你好，世界。 Ünïcödé 12345 67.8",
] * 3
LLADA_SPECIALS = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|mdm_mask|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
LLADA_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
CHATML = (
    "{%- if messages[0]['role'] != 'system' %}\n"
    "    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}\n{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
TEXTS = [
    "The quick brown fox",
    "  two spaces,\ttab\n\nlines\r\n",
    "naïve café — 你好 🦊🦊 e\u0301",
    "it's 2024, don't",
    "<|endoftext|> and <|mdm_mask|> typed by a user",
    "",
    "\x00\x07 control",
]


def byte_level(
    words: str = QWEN2_WORDS, specials: list[str] | None = None, nfc: bool = False, vocab: int = 420
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=alphabet, special_tokens=specials or [], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def llada_dir(path: Path) -> Path:
    """As LLaDA ships it: tokenizer.json, the template inside tokenizer_config.json."""
    path.mkdir(parents=True, exist_ok=True)
    byte_level(specials=LLADA_SPECIALS).save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>", "add_bos_token": False, "add_eos_token": False,
        "clean_up_tokenization_spaces": False, "chat_template": LLADA_TEMPLATE,
    }  # fmt: skip
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def dream_dir(path: Path, tokenizer_class: str = "DreamTokenizer") -> Path:
    """As Dream ships it: vocab.json, merges.txt, special tokens only in the config, a class that is remote code."""
    path.mkdir(parents=True, exist_ok=True)
    plain = byte_level(nfc=True, vocab=400)
    plain.model.save(str(path))
    size = plain.get_vocab_size()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<|beginoftext|>", "<|mask|>"]
    added = {
        str(size + i): {"content": n, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
                        "special": n.startswith("<|")}
        for i, n in enumerate(names)
    }  # fmt: skip
    config = {
        "tokenizer_class": tokenizer_class, "added_tokens_decoder": added, "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
        "mask_token": "<|mask|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "clean_up_tokenization_spaces": False, "errors": "replace", "chat_template": CHATML,
    }  # fmt: skip
    if tokenizer_class == "DreamTokenizer":
        config["auto_map"] = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def metaspace_dir(path: Path) -> Path:
    """Llama-like: a leading space belongs to the token, bytes fall back."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    names = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=names + fallback, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat", "a dog saw the cat"] * 4, trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in names]
    (path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "clean_up_tokenization_spaces": False}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
