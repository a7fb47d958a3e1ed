"""A mask token for tokenizers and models that have none: ids, shapes, and everything else as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_tokenizers
import torch
from models.tiny import QWEN2, build
from safetensors.torch import load_file

from unmask.core.errors import CheckpointError
from unmask.models.load import load_model
from unmask.models.save import save_checkpoint
from unmask.text.codec import Codec
from unmask.text.mask_token import MASK_TOKEN, mask_token
from unmask.train.mask_token import with_mask_token
from unmask.train.tokenizer import train_tokenizer


def no_mask(path: Path, kind: str = "Qwen2Tokenizer") -> Path:
    """A tokenizer directory of the Qwen2 kind (vocab.json and merges.txt) without a mask token."""
    config_file = tiny_tokenizers.dream_dir(path, kind) / "tokenizer_config.json"
    config = json.loads(config_file.read_text())
    config["added_tokens_decoder"] = {
        i: t for i, t in config["added_tokens_decoder"].items() if t["content"] != "<|mask|>"
    }
    config_file.write_text(json.dumps({k: v for k, v in config.items() if k != "mask_token"}))
    return path


def parent(path: Path, rows_above: int, tied: bool = True, dtype: str = "fp32") -> Path:
    """A checkpoint whose vocabulary has `rows_above` rows more than its tokenizer has tokens."""
    size = Codec.from_dir(no_mask(path)).size
    eos = Codec.from_dir(path).token_id("<|endoftext|>")
    config = QWEN2 | {"vocab_size": size + rows_above, "tie_word_embeddings": tied, "eos_token_id": eos}
    return build(path, config | {"pad_token_id": eos}, dtype=dtype, merge=True)


def write(directory: Path, files) -> Path:
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("room", [70, 1, 0, -3])
def test_the_token_gets_the_first_free_id_and_a_row(tmp_path, tied, room):
    loaded = load_model(parent(tmp_path / "p", room, tied), dtype="fp32", device="cpu")
    size, before = Codec.from_dir(tmp_path / "p").size, {n: p.clone() for n, p in loaded.model.named_parameters()}
    made = with_mask_token(loaded.model, tmp_path / "p", config=loaded.config)
    assert (made.mask_id, made.added, made.token) == (size, True, MASK_TOKEN)
    rows = size + room if room > 0 else -(-(size + 1) // 64) * 64
    assert made.model.cfg.vocab_size == rows == size + room + made.rows
    for name, p in made.model.named_parameters():
        if name in ("embed.weight", "head.weight"):
            assert p.shape[0] == rows
            old, kept = before[name], min(size, size + room)
            assert torch.equal(p[:kept], old[:kept])
            assert torch.allclose(p[made.mask_id], old[:size].mean(0), atol=1e-6)
            if room > 0:
                assert torch.equal(p[size + 1 :], old[size + 1 :])
        else:
            assert torch.equal(p, before[name])
    assert (made.model.head is None) == tied


@pytest.mark.parametrize("room", [9, 0])
def test_the_new_checkpoint_loads_and_encodes_one_id(tmp_path, room):
    loaded = load_model(parent(tmp_path / "p", room), dtype="fp32", device="cpu")
    old = Codec.from_dir(tmp_path / "p")
    made = with_mask_token(loaded.model, tmp_path / "p")
    config = loaded.config | {"vocab_size": made.model.cfg.vocab_size}
    out = save_checkpoint(made.model, config, tmp_path / "new", files=made.files)
    again, codec = load_model(out, dtype="fp32", device="cpu"), Codec.from_dir(out)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), made.model.parameters(), strict=True))
    assert codec.encode(MASK_TOKEN) == [made.mask_id] == [codec.named("mask_token")]
    assert codec.encode(f"a{MASK_TOKEN}b").count(made.mask_id) == 1
    assert codec.decode([made.mask_id]) == "" and codec.piece(made.mask_id) == MASK_TOKEN
    for text in tiny_tokenizers.TEXTS:
        assert codec.encode(text) == old.encode(text)
    talk = [{"role": "user", "content": "hi"}]
    assert codec.encode_chat(talk) == old.encode_chat(talk)
    ids = torch.tensor([old.encode("The quick brown fox")])
    plain = load_model(tmp_path / "p", dtype="fp32", device="cpu").model
    assert torch.equal(again.model(ids), plain(ids))


@pytest.mark.parametrize("kind", ["json", "old files"])
def test_every_file_of_the_tokenizer_says_the_same(tmp_path, kind):
    path = no_mask(tmp_path / "t")
    if kind == "json":
        Codec.from_dir(path)._backend.save(str(path / "tokenizer.json"))
    else:
        (path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 3}))
        (path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    found = mask_token(path)
    out = write(tmp_path / "new", found.files)
    read = {n: json.loads(c) for n, c in found.files.items() if n.endswith(".json")}
    assert read["tokenizer_config.json"]["added_tokens_decoder"][str(found.id)]["content"] == MASK_TOKEN
    assert read["tokenizer_config.json"]["mask_token"] == MASK_TOKEN
    if kind == "old files":
        assert read["added_tokens.json"] == {"<|im_end|>": 3, MASK_TOKEN: found.id}
        assert read["special_tokens_map.json"]["mask_token"] == MASK_TOKEN
    assert Codec.from_dir(out).token_id(MASK_TOKEN) == found.id
    assert mask_token(out).files["tokenizer.json"] == found.files["tokenizer.json"]
    again = mask_token(out)
    assert (again.id, again.added) == (found.id, False)


def test_transformers_reads_the_token_too(tmp_path):
    from transformers import AutoTokenizer

    found = mask_token(no_mask(tmp_path / "t"))
    loaded = AutoTokenizer.from_pretrained(write(tmp_path / "new", found.files))
    assert loaded.mask_token_id == found.id
    assert loaded(MASK_TOKEN, add_special_tokens=False)["input_ids"] == [found.id]


def test_a_mask_token_of_its_own_is_kept(tmp_path):
    train_tokenizer(["some text"], 300, tmp_path)
    names = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    found = mask_token(tmp_path)
    assert (found.token, found.added) == ("<|mask|>", False)
    assert found.files["tokenizer.json"] == names["tokenizer.json"]
    assert json.loads(found.files["tokenizer_config.json"]) == json.loads(names["tokenizer_config.json"])
    other = mask_token(tmp_path, "<|user|>")  # a text that is known wins
    assert other.token == "<|user|>" and not other.added


@pytest.mark.parametrize(("row", "same"), [("auto", True), ("keep", True), ("mean", False)])
def test_the_row_of_a_known_token_is_kept_unless_asked(tmp_path, row, same):
    loaded = load_model(parent(tmp_path / "p", 5), dtype="fp32", device="cpu")
    new = write(tmp_path / "t", mask_token(tmp_path / "p").files)
    before = loaded.model.embed.weight.detach().clone()
    made = with_mask_token(loaded.model, new, row=row)
    assert not made.added and made.rows == 0
    assert torch.equal(loaded.model.embed.weight, before) == same
    assert torch.equal(loaded.model.embed.weight[made.mask_id], before[made.mask_id]) == same


def test_low_precision_rows_stay_in_their_dtype(tmp_path):
    loaded = load_model(parent(tmp_path / "p", 0, dtype="bf16"), dtype="bf16", device="cpu")
    made = with_mask_token(loaded.model, tmp_path / "p")
    assert made.rows > 0 and {p.dtype for p in made.model.parameters()} == {torch.bfloat16}
    config = loaded.config | {"vocab_size": made.model.cfg.vocab_size}
    out = save_checkpoint(made.model, config, tmp_path / "new", files=made.files)
    stored = load_file(out / "model.safetensors")["model.embed_tokens.weight"]
    old = load_file(tmp_path / "p" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(stored[: len(old)], old)


def test_ids_in_use_are_refused(tmp_path):
    loaded = load_model(parent(tmp_path / "p", 5), dtype="fp32", device="cpu")
    size, before = Codec.from_dir(tmp_path / "p").size, loaded.model.embed.weight.detach().clone()
    for key, taken in (("pad_token_id", size), ("eos_token_id", [3, size])):
        with pytest.raises(CheckpointError, match=key):
            with_mask_token(loaded.model, tmp_path / "p", config=loaded.config | {key: taken})
    assert torch.equal(loaded.model.embed.weight, before)
    with pytest.raises(CheckpointError, match="an ordinary one"):
        mask_token(tmp_path / "p", "a")
    with pytest.raises(CheckpointError, match="no tokenizer"):
        mask_token(tmp_path)


def test_an_id_that_the_library_would_give_twice_is_refused(tmp_path):
    data = json.loads(tiny_tokenizers.byte_level().to_str())
    vocab = data["model"]["vocab"]
    last = max(vocab, key=vocab.get)
    data["model"]["vocab"] = {**vocab, last: len(vocab)}  # a hole in the ids: the number of tokens is the id of one
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="one id of its own"):
        mask_token(tmp_path)
