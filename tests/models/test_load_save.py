"""Checkpoints on disk: round trips are bit-equal, and every kind of damage is refused before a tensor is read."""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path

import pytest
import torch
from models.tiny import CONFIGS, DREAM, LLADA, build, edit_config, read_raw, write_raw
from safetensors.torch import load_file, save_file

from unmask.core.errors import CheckpointError, InputError
from unmask.models import save as save_module
from unmask.models.load import load_model, locate
from unmask.models.save import save_checkpoint
from unmask.models.shapes import random_from_config


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return build(tmp_path / "model")


def refused(source, *words: str, **options) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_model(source, **{"device": "cpu"} | options)
    text = f"{caught.value} {caught.value.remedy}"
    for word in words:
        assert word in text, text
    assert caught.value.exit_code == 2
    return caught.value


def listing(directory: Path) -> list[tuple[str, bytes]]:
    return sorted((str(p.relative_to(directory)), p.read_bytes()) for p in directory.rglob("*") if p.is_file())


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_is_bit_equal(tmp_path, name):
    first = build(tmp_path / "a", CONFIGS[name])
    loaded = load_model(first, dtype="fp32", device="cpu")
    second = save_checkpoint(loaded.model, loaded.config, tmp_path / "b")
    a, b = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert json.loads((first / "config.json").read_text()) == json.loads((second / "config.json").read_text())
    assert sorted(p.name for p in second.iterdir()) == ["config.json", "model.safetensors"]


def test_fused_rows_are_the_published_tensors(tiny):
    loaded, raw = load_model(tiny, device="cpu"), load_file(tiny / "model.safetensors")
    far, layer = "model.transformer.blocks.1.", loaded.model.layers[1]
    qkv = torch.cat([raw[f"{far}{n}_proj.weight"] for n in "qkv"])
    assert torch.equal(layer.qkv.weight, qkv)
    assert torch.equal(layer.gate_up.weight, torch.cat([raw[far + "ff_proj.weight"], raw[far + "up_proj.weight"]]))
    assert torch.equal(layer.down.weight, raw[far + "ff_out.weight"])
    assert torch.equal(loaded.model.head_weight, raw["model.transformer.ff_out.weight"])
    assert not loaded.model.training and loaded.family.name == "LLaDA" and loaded.tokenizer_dir is None


@pytest.mark.parametrize("stored", ["bf16", "fp16", "fp32"])
def test_stored_dtypes_load_into_every_dtype(tmp_path, stored):
    directory = build(tmp_path / "m", dtype=stored)
    raw = load_file(directory / "model.safetensors")["model.transformer.wte.weight"]
    for wanted, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("float32", torch.float32)):
        model = load_model(directory, dtype=wanted, device="cpu").model
        assert torch.equal(model.embed.weight, raw.to(dtype)) and model.layers[0].attn_norm.dtype == dtype


def test_dtype_auto_never_narrows_float32(tiny, tmp_path, monkeypatch):
    assert load_model(tiny, device="cpu").model.head_weight.dtype == torch.float32
    half = build(tmp_path / "half", dtype="bf16")
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("unmask.ops.placement.bf16_supported", lambda device, s=supported: s)
        assert load_model(half, device="cpu").model.head_weight.dtype == dtype
    assert load_model(half, device="cpu").stored == ("BF16",)


def test_saving_as_another_dtype(tiny, tmp_path):
    loaded = load_model(tiny, device="cpu")
    out = save_checkpoint(loaded.model, loaded.config, tmp_path / "bf16", dtype=torch.bfloat16)
    raw = load_file(out / "model.safetensors")
    assert {t.dtype for t in raw.values()} == {torch.bfloat16}
    assert torch.equal(raw["model.transformer.wte.weight"], loaded.model.embed.weight.bfloat16())
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_shards_round_trip(tmp_path):
    whole = build(tmp_path / "whole")
    parts = build(tmp_path / "parts", shard_bytes=20_000)
    assert len(list(parts.glob("model-*.safetensors"))) > 2 and (parts / "model.safetensors.index.json").is_file()
    a, b = load_model(whole, device="cpu").model, load_model(parts, device="cpu").model
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_hugging_face_files_are_read(tmp_path):
    """Written by the safetensors package itself, in its own order, with rotary buffers of old checkpoints."""
    tensors = load_file(build(tmp_path / "a", DREAM) / "model.safetensors")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text(json.dumps(DREAM))
    save_file(
        tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, tmp_path / "b/model.safetensors"
    )
    a, b = (load_model(tmp_path / d, device="cpu").model for d in "ab")
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_tied_checkpoint_with_a_head(tmp_path):
    directory = build(tmp_path / "m", CONFIGS["llada-tied-mqa"])
    file = directory / "model.safetensors"
    tensors = load_file(file)
    embed = tensors["model.transformer.wte.weight"]
    save_file(tensors | {"model.transformer.ff_out.weight": embed.clone()}, file)
    assert load_model(directory, device="cpu").model.head is None
    save_file(tensors | {"model.transformer.ff_out.weight": embed + 1}, file)
    refused(directory, "model.transformer.ff_out.weight", "ties", "other values")
    save_file(tensors | {"model.transformer.ff_out.weight": embed[:8].clone()}, file)
    refused(directory, "model.transformer.ff_out.weight", "shape [64, 32]")


def test_generation_config_adds_eos(tiny):
    (tiny / "generation_config.json").write_text('{"eos_token_id": [61, 7]}')
    assert load_model(tiny, device="cpu").traits.eos_ids == (61, 7)
    (tiny / "generation_config.json").write_text('{"eos_token_id": "x"}')
    refused(tiny, "generation_config.json", "eos_token_id")


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_missing_directory_and_files(tiny, tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "nothing there")
    refused(tiny / "config.json", "a directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no config.json")
    (tiny / "model.safetensors").unlink()
    refused(tiny, "no weights", "model.safetensors")


def test_only_pickles(tiny):
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    refused(tiny, "pytorch_model.bin", "unmask convert")


@pytest.mark.parametrize("text", ["{", "[]", "", "\xff", '{"model_type": "llada"'])
def test_bad_config_json(tiny, text):
    (tiny / "config.json").write_bytes(text.encode("latin-1"))
    refused(tiny, "config.json")


@pytest.mark.parametrize("keep", [0, 4, 7, 8, 100, -1, -1000])
def test_truncated_file(tiny, keep):
    file = tiny / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    refused(tiny, "model.safetensors", "Download or copy the file again")


def test_longer_file(tiny):
    with (tiny / "model.safetensors").open("ab") as file:
        file.write(b"junk")
    refused(tiny, "bytes after the last tensor")


@pytest.mark.parametrize("raw", [b"\x00" * 64, b"PK\x03\x04" + b"x" * 200, struct.pack("<Q", 1 << 60) + b"{}" * 40,
                                 struct.pack("<Q", 4) + b"[1] ", struct.pack("<Q", 4) + b"{{{{"])  # fmt: skip
def test_not_safetensors(tiny, raw):
    (tiny / "model.safetensors").write_bytes(raw)
    refused(tiny, "model.safetensors")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dtype": "I64"}, "I64"),
        ({"dtype": "F8_E4M3"}, "F8_E4M3"),
        ({"dtype": None}, "damaged entry"),
        ({"shape": [-1, 2]}, "damaged entry"),
        ({"shape": "x"}, "damaged entry"),
        ({"shape": [1, 1]}, "bytes"),
        ({"data_offsets": [0]}, "damaged entry"),
        ({"data_offsets": [0, 4]}, "bytes"),
    ],
)
def test_damaged_header_entries(tiny, change, word):
    header, body = read_raw(tiny / "model.safetensors")
    header["model.transformer.ln_f.weight"] |= change
    write_raw(tiny / "model.safetensors", header, body)
    refused(tiny, "model.transformer.ln_f.weight", word)


def test_overlapping_tensors(tiny):
    header, body = read_raw(tiny / "model.safetensors")
    first, second = (header[f"model.transformer.blocks.{i}.attn_norm.weight"] for i in (0, 1))
    first["data_offsets"] = second["data_offsets"]
    write_raw(tiny / "model.safetensors", header, body)
    refused(tiny, "gap or overlap")


def test_missing_and_unexpected_names(tiny):
    file = tiny / "model.safetensors"
    tensors = load_file(file)
    few = {k: v for k, v in tensors.items() if ".blocks.1." not in k}
    save_file(few, file)
    refused(tiny, "missing: model.transformer.blocks.1.", "more")
    save_file(tensors | {"extra.weight": torch.ones(2)}, file)
    refused(tiny, "not expected: extra.weight")
    save_file({"lora." + k: v for k, v in tensors.items()}, file)
    refused(tiny, "missing", "not expected")


def test_wrong_shapes(tiny):
    edit_config(tiny, mlp_hidden_size=64)
    refused(tiny, "model.transformer.blocks.0.ff_proj.weight", "shape [64, 32]", "[48, 32]")
    edit_config(tiny, mlp_hidden_size=48, embedding_size=80)
    refused(tiny, "model.transformer.wte.weight", "[80, 32]")


def test_index_and_shards(tmp_path):
    directory = build(tmp_path / "m", shard_bytes=20_000)
    index = directory / "model.safetensors.index.json"
    good = index.read_text()
    table = json.loads(good)["weight_map"]
    shard = directory / table["model.transformer.ln_f.weight"]
    shard.rename(directory / "away")
    refused(directory, "missing", shard.name)
    (directory / "away").rename(shard)
    for wrong in ("../model.safetensors", "/etc/passwd", "a\\b", ""):
        index.write_text(json.dumps({"weight_map": table | {"model.transformer.ln_f.weight": wrong}}))
        refused(directory, "inside the directory")
    index.write_text(json.dumps({"weight_map": table | {"nothing.weight": shard.name}}))
    refused(directory, "not there: nothing.weight")
    for wrong in ("{}", "[]", '{"weight_map": {"a": 1}}', "{"):
        index.write_text(wrong)
        refused(directory, index.name)
    index.write_text(good)
    shard.write_bytes(shard.read_bytes()[:-3])
    refused(directory, shard.name, "truncated")


def test_config_values_are_refused_on_loading(tiny):
    edit_config(tiny, block_type="sequential")
    refused(tiny, "block_type", "'llama'", "'sequential'")
    edit_config(tiny, model_type="gpt2")
    refused(tiny, "model_type")


def test_device_and_dtype_names(tiny):
    for device in ("gpu", "cuda:99", "meta", "xla"):
        with pytest.raises(InputError, match="device"):
            load_model(tiny, device=device)
    for dtype in ("int8", "f32", torch.int64):
        with pytest.raises(InputError, match="dtype"):
            load_model(tiny, device="cpu", dtype=dtype)


# ---- hub -------------------------------------------------------------------------------------------------------------


def test_hub_offline_is_explained(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(repo, **options):
        raise hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    refused("GSAI-ML/LLaDA-8B-Instruct", "cannot be reached", "embedded")
    refused("./nowhere/at/all", "nothing there")
    refused("name-without-owner", "nothing there")


def test_hub_snapshot_is_loaded(tiny, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    seen = {}

    def snapshot(repo, **options):
        seen.update(repo=repo, **options)
        return str(tiny)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert locate("owner/name", "v1") == tiny
    assert seen["repo"] == "owner/name" and seen["revision"] == "v1"
    assert not any(p.endswith((".py", ".bin", ".pt", "*")) and p != "tokenizer*" for p in seen["allow_patterns"])
    with pytest.raises(CheckpointError, match="revision"):
        locate(tiny, "main")


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_saving_refuses_what_is_in_the_way(tiny, tmp_path):
    loaded = load_model(tiny, device="cpu")
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match="a checkpoint"):
        save_checkpoint(loaded.model, loaded.config, tiny)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            save_checkpoint(loaded.model, loaded.config, tmp_path / "other", overwrite=overwrite)
    with pytest.raises(CheckpointError, match="a file"):
        save_checkpoint(loaded.model, loaded.config, tiny / "config.json")
    with pytest.raises(CheckpointError, match="dim"):
        save_checkpoint(loaded.model, loaded.config | {"d_model": 64}, tmp_path / "new")
    with pytest.raises(CheckpointError, match="bf16, fp16 or fp32"):
        save_checkpoint(loaded.model, loaded.config, tmp_path / "new", dtype=torch.int8)
    (tmp_path / "other" / "thesis.tex").unlink()
    (tmp_path / "other").rmdir()
    assert listing(tmp_path) == before


def test_overwriting_replaces_the_whole_checkpoint(tmp_path):
    target = build(tmp_path / "m", shard_bytes=20_000)
    other = random_from_config(LLADA, 5, "fp32", "cpu")
    save_checkpoint(other, LLADA, target, overwrite=True, files={"unmask.json": b"{}"})
    assert sorted(p.name for p in target.iterdir()) == ["config.json", "model.safetensors", "unmask.json"]
    assert torch.equal(load_model(target, device="cpu").model.embed.weight, other.embed.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_write_changes_nothing(tmp_path, monkeypatch, overwrite):
    model = random_from_config(LLADA, 5, "fp32", "cpu")
    if overwrite:
        build(tmp_path / "m")
    before = listing(tmp_path)

    def full(file, tensor, dtype):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save_module, "_write_rows", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(model, LLADA, tmp_path / "m", overwrite=overwrite)
    assert listing(tmp_path) == before and len(list(tmp_path.iterdir())) == overwrite


def test_an_interrupted_write_changes_nothing(tmp_path, monkeypatch):
    target = build(tmp_path / "m")
    before = listing(tmp_path)

    def interrupt(file, tensor, dtype):
        raise KeyboardInterrupt

    monkeypatch.setattr(save_module, "_write_rows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(random_from_config(LLADA, 5, "fp32", "cpu"), LLADA, target, overwrite=True)
    assert listing(tmp_path) == before


def test_a_failed_move_restores_the_old_checkpoint(tmp_path, monkeypatch):
    target = build(tmp_path / "m")
    before = listing(tmp_path)
    rename = Path.rename

    def fail_into_place(self, other):
        if Path(other) == target and "was" not in str(self):
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(CheckpointError, match="Permission denied"):
        save_checkpoint(random_from_config(LLADA, 5, "fp32", "cpu"), LLADA, target, overwrite=True)
    assert listing(tmp_path) == before
