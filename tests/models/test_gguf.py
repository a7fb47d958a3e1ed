"""GGUF files, written here with the gguf package: weights, config, tokenizer and refusals. No download is needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tokenizers
import torch

from unmask.cli.main import main
from unmask.core.errors import CheckpointError, InputError
from unmask.models.gguf import convert_gguf, read_gguf
from unmask.models.load import load_model
from unmask.models.save import published_tensors
from unmask.models.shapes import random_from_config
from unmask.text.codec import Codec
from unmask.text.files import QWEN2_WORDS
from unmask.text.gguf_tokenizer import LLAMA3_WORDS, tokenizer_files

gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SMOLLM_WORDS = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TOKENIZER = tiny_tokenizers.byte_level(QWEN2_WORDS, SPECIALS, nfc=True)
VOCAB = 448  # the tokenizer has 420: the rest is padding
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 100_000.0, "hidden_act": "silu", "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1,
}  # fmt: skip
LLAMA = SHAPE | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
QWEN2 = SHAPE | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False}
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
IDS = torch.arange(7, 47).view(2, 20) * 5 % 400


def made_from(config: dict[str, Any], dtype: str = "fp32"):
    model = random_from_config(config, 0, dtype, "cpu")
    for p in model.parameters():
        if p.dim() == 1:
            p.data += 0.1 * p.data.new_tensor(range(len(p))).sin()
    return model


def far_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, i, rest = stem.split(".", 3)
        return f"blk.{i}.{NAMES[rest]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def turned(name: str, value: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """llama.cpp's order of the rows of q and k, written from its definition: row 2i of a head is row i of its first
    half, row 2i + 1 is row i of the second."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    count = next((n for part, n in heads.items() if part in name), 0)
    if config["model_type"] != "llama" or not count:
        return value
    width = len(value) // count
    order = [h * width + i // 2 + (i % 2) * (width // 2) for h in range(count) for i in range(width)]
    return value[order]


def write(
    path: Path, config: dict[str, Any], model, kind: str = "F32", extra=None, tensors=None, tokenizer=True
) -> Path:
    """A GGUF file as llama.cpp's converter writes it: norms and biases in F32, matrices as `kind`."""
    writer = gguf.GGUFWriter(path, config["model_type"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if config["model_type"] == "llama":
        writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    if tokenizer:
        add_tokenizer(writer)
    for key, value in (extra or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    for name, value in published_tensors(model, config).items():
        array = turned(name, value.float().numpy(), config)
        as_kind = kind if array.ndim == 2 else "F32"
        number = gguf.GGMLQuantizationType[as_kind]
        writer.add_tensor(far_name(name), gguf.quantize(array, number), raw_dtype=number)
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer) -> None:
    data = json.loads(TOKENIZER.to_str())["model"]
    tokens = sorted(data["vocab"], key=data["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*tokens, *(f"[PAD{i}]" for i in range(len(tokens), VOCAB))])
    kinds = [3 if t in SPECIALS else 1 for t in tokens]
    writer.add_token_types([*kinds, *([5] * (VOCAB - len(tokens)))])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in data["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tiny_tokenizers.CHATML)


@pytest.mark.parametrize(
    "config", [LLAMA, QWEN2, LLAMA | {"tie_word_embeddings": False}], ids=["llama", "qwen2", "untied"]
)
def test_a_converted_file_computes_what_its_model_did(tmp_path, config):
    model = made_from(config)
    file = read_gguf(write(tmp_path / "m.gguf", config, model))
    out = convert_gguf(file, tmp_path / "out", files=tokenizer_files(file.metadata))
    loaded = load_model(out, device="cpu")
    assert loaded.config["model_type"] == config["model_type"] and loaded.stored == ("F32",)
    assert loaded.traits.eos_ids == (2,) and loaded.model.cfg == model.cfg
    mine = dict(model.named_parameters())
    assert all(torch.equal(p, mine[n]) for n, p in loaded.model.named_parameters())
    assert torch.equal(loaded.model.logits(loaded.model(IDS, causal=True)), model.logits(model(IDS, causal=True)))


def test_transformers_agrees_with_a_converted_file(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = read_gguf(write(tmp_path / "m.gguf", LLAMA, made_from(LLAMA)))
    out = convert_gguf(file, tmp_path / "out", files=tokenizer_files(file.metadata))
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ours = load_model(out, dtype="fp32", device="cpu").model
    with torch.no_grad():
        assert torch.allclose(ours.logits(ours(IDS, causal=True)), theirs(IDS).logits, atol=1e-5)
    tokenizer, codec = AutoTokenizer.from_pretrained(out), Codec.from_dir(out)
    for text in tiny_tokenizers.TEXTS:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == codec.encode(text)


KINDS = [("F16", "F16", 2e-3), ("BF16", "BF16", 2e-2), ("Q8_0", "F32", 2e-2), ("Q4_1", "F32", 0.2)]


@pytest.mark.parametrize(("kind", "stored", "far"), KINDS)
def test_every_kind_of_number_is_read(tmp_path, kind, stored, far):
    model = made_from(QWEN2)
    file = read_gguf(write(tmp_path / "m.gguf", QWEN2, model, kind))
    loaded = load_model(convert_gguf(file, tmp_path / "out"), dtype="fp32", device="cpu")
    assert loaded.stored == (stored,)
    mine = dict(model.named_parameters())
    errors = [(p - mine[n]).norm() / mine[n].norm() for n, p in loaded.model.named_parameters() if p.dim() == 2]
    assert 0 < max(errors) < far
    smaller = load_model(convert_gguf(file, tmp_path / "half", torch.bfloat16), device="cpu")
    assert smaller.stored == ("BF16",)


def test_slices_give_the_same_weights(tmp_path, monkeypatch):
    file = read_gguf(write(tmp_path / "m.gguf", LLAMA, made_from(LLAMA), "Q8_0"))
    convert_gguf(file, tmp_path / "whole")
    monkeypatch.setattr("unmask.models.gguf.SLICE", 64 * 37)
    convert_gguf(file, tmp_path / "slices")
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "slices/model.safetensors").read_bytes()


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


def test_the_tokenizer_comes_out_as_it_was(tmp_path):
    metadata = read_gguf(write(tmp_path / "m.gguf", LLAMA, made_from(LLAMA))).metadata
    for name, content in tokenizer_files(metadata).items():
        (tmp_path / name).write_bytes(content)
    codec = Codec.from_dir(tmp_path)
    assert codec.size == TOKENIZER.get_vocab_size()  # padding tokens are left out, their ids are free
    for text in [*tiny_tokenizers.TEXTS, *tiny_tokenizers.CORPUS, "<|im_start|>user\nhi<|im_end|>"]:
        assert codec.encode(text) == TOKENIZER.encode(text).ids
    assert codec.decode(codec.encode("naïve — 你好 🦊 12345"), skip_special=False) == "naïve — 你好 🦊 12345"
    assert [codec.named(r) for r in ("bos_token", "eos_token", "pad_token")] == [1, 2, 0]
    assert codec.special_ids == {0, 1, 2}
    talk = [{"role": "user", "content": "hi"}]
    assert codec.render_chat(talk).endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


WAYS = {
    "qwen2": (QWEN2_WORDS, "it's 12345\n\n  x"),
    "llama-bpe": (LLAMA3_WORDS, "it's 12345\n\n  x"),
    "smollm": (SMOLLM_WORDS, "price 12345 it's  x"),
    "gpt-2": (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", "it's 12345  x"),
}


@pytest.mark.parametrize("way", WAYS)
def test_text_is_split_as_the_file_says(tmp_path, way):
    words, text = WAYS[way]
    trained = tiny_tokenizers.byte_level(words, SPECIALS)
    data = json.loads(trained.to_str())["model"]
    tokens = sorted(data["vocab"], key=data["vocab"].get)
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": way, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in SPECIALS else 1 for t in tokens],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in data["merges"]],
    }  # fmt: skip
    for name, content in tokenizer_files(metadata).items():
        (tmp_path / name).write_bytes(content)
    codec = Codec.from_dir(tmp_path)
    for sample in (text, *tiny_tokenizers.CORPUS):
        assert codec.encode(sample) == trained.encode(sample).ids


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer.ggml.model": "llama"}, "byte-level BPE"),
        ({"tokenizer.ggml.pre": "deepseek-llm"}, "deepseek-llm"),
        ({"tokenizer.ggml.model": None}, "byte-level BPE"),
        ({"tokenizer.ggml.merges": []}, "merges of two pieces"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "merges of two pieces"),
        ({"tokenizer.ggml.merges": ["nowhere b"]}, "merges of its own tokens"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "tokens and their types"),
        ({"tokenizer.ggml.eos_token_id": 9}, "ids below 3"),
    ],
)
def test_other_tokenizers_are_refused(change, words):
    whole = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.merges": ["a b"],
    }  # fmt: skip
    assert set(tokenizer_files(whole)) == {"tokenizer.json", "tokenizer_config.json"}
    with pytest.raises(CheckpointError, match=words):
        tokenizer_files(whole | change)


# ---- refusals --------------------------------------------------------------------------------------------------------

VARIANTS = [
    ({"llama.rope.scaling.type": "linear"}, None, "rope.scaling.type"),
    ({"llama.expert_count": 8}, None, "expert_count"),
    ({"llama.attention.sliding_window": 128}, None, "sliding_window"),
    ({"llama.attention.key_length": 32}, None, "rope.dimension_count"),
    ({}, {"rope_freqs.weight": np.array([1.0, 4.0], np.float32)}, "RoPE|rope_freqs"),
    ({}, {"blk.0.attn_sub_norm.weight": np.ones(64, np.float32)}, "attn_sub_norm"),
    ({"split.count": 3}, None, "one part of 3"),
]


@pytest.mark.parametrize(("extra", "tensors", "words"), VARIANTS)
def test_variants_of_the_model_are_refused_by_name(tmp_path, extra, tensors, words):
    path = write(tmp_path / "m.gguf", LLAMA, made_from(LLAMA), extra=extra, tensors=tensors)
    with pytest.raises(CheckpointError, match=words):
        convert_gguf(read_gguf(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rope_factors_of_one_change_nothing(tmp_path):
    ones = {"rope_freqs.weight": np.ones(8, np.float32)}
    path = write(tmp_path / "m.gguf", LLAMA, made_from(LLAMA), tensors=ones)
    assert load_model(convert_gguf(read_gguf(path), tmp_path / "out"), device="cpu").model.cfg.layers == 2


def test_other_architectures_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma3")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="gemma3") as caught:
        convert_gguf(read_gguf(tmp_path / "m.gguf"), tmp_path / "out")
    assert "llama or qwen2" in str(caught.value)


def test_a_quantisation_the_package_cannot_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "m.gguf", LLAMA, made_from(LLAMA), "Q8_0")

    def only_plain(data, kind):
        if kind.name == "Q8_0":
            raise NotImplementedError
        return data.view(np.float32)

    monkeypatch.setattr(gguf, "dequantize", only_plain)
    with pytest.raises(CheckpointError, match="Q8_0") as caught:
        convert_gguf(read_gguf(path), tmp_path / "out")
    assert "another quantisation" in caught.value.remedy


def test_damaged_and_foreign_files_are_refused(tmp_path):
    whole = write(tmp_path / "m.gguf", LLAMA, made_from(LLAMA)).read_bytes()
    for name, content in {"half": whole[: len(whole) // 2], "head": whole[:300], "text": b"hello", "no": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            read_gguf(tmp_path / name)
    for name in (".", "missing.gguf"):
        with pytest.raises(CheckpointError, match=r"a \.gguf file"):
            read_gguf(tmp_path / name)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError) as caught:
        read_gguf(tmp_path / "m.gguf")
    assert "unmask[gguf]" in caught.value.remedy


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_checkpoint_that_decodes(tmp_path, capsys):
    import unmask

    path = write(tmp_path / "m.gguf", LLAMA, made_from(LLAMA), "Q8_0")
    assert main(["convert", str(path), str(tmp_path / "out"), "--dtype", "bf16"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    model = unmask.load(str(tmp_path / "out"), device="cpu", dtype="fp32")
    answer = model.generate("The quick brown fox", max_tokens=8)
    ids = model.codec.encode_chat([{"role": "user", "content": "The quick brown fox"}])
    want: list[int] = []
    while len(want) < 8 and (not want or want[-1] != 2):
        logits = model.denoiser.model.logits(model.denoiser.model(torch.tensor([ids + want]), causal=True)[0, -1])
        want.append(int(logits.argmax()))
    assert list(answer.ids) == [i for i in want if i != 2]


def test_the_command_takes_another_tokenizer(tmp_path):
    tiny_tokenizers.dream_dir(tmp_path / "other", "Qwen2Tokenizer")
    path = write(tmp_path / "m.gguf", LLAMA, made_from(LLAMA), tokenizer=False)
    assert main(["convert", str(path), str(tmp_path / "a")]) == 2
    assert not (tmp_path / "a").exists()
    assert main(["convert", str(path), "--out", str(tmp_path / "a"), "--tokenizer", str(tmp_path / "other")]) == 0
    assert Codec.from_dir(tmp_path / "a").encode("fox") == Codec.from_dir(tmp_path / "other").encode("fox")


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--config", "c.json"], "--config"), (["--out", "a", "b"], "the folder once"), (["there"], "one with files")],
)
def test_options_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.txt").write_text("mine")
    assert main(["convert", "m.gguf", *options]) == InputError.exit_code
    assert words in capsys.readouterr().err


def test_pickles_take_no_tokenizer(tmp_path, capsys):
    (tmp_path / "m.pt").write_bytes(b"PK")
    assert main(["convert", str(tmp_path / "m.pt"), "--tokenizer", str(tmp_path)]) == InputError.exit_code
    assert "--tokenizer" in capsys.readouterr().err
