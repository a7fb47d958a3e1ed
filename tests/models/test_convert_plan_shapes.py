"""The door for old pickles, memory plans, and named random shapes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from models.tiny import CONFIGS, LLADA, build
from safetensors.torch import load_file

from unmask.core.errors import CheckpointError, InputError
from unmask.models.convert import convert_pickle
from unmask.models.load import load_model
from unmask.models.plan import plan
from unmask.models.shapes import random_model, shape_config


class Evil:
    """What a hostile pickle looks like."""

    def __reduce__(self):
        return (os.mkdir, ("pwned",))


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, torch.Tensor]:
    return load_file(build(tmp_path / "source") / "model.safetensors")


WRAPS = {
    "flat": lambda t: t,
    "model": lambda t: {"model": t, "step": 3},
    "nested": lambda t: {"state_dict": {"module": t}},
    "prefixed": lambda t: {f"module.{k}": v for k, v in t.items()},
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_convert(tmp_path, tensors, wrap):
    torch.save(wrap(tensors), tmp_path / "old.pt")
    out = convert_pickle(tmp_path / "old.pt", tmp_path / "new", LLADA)
    assert all(torch.equal(v, tensors[k]) for k, v in load_file(out / "model.safetensors").items())
    assert load_model(out, device="cpu").family.name == "LLaDA"


def test_convert_reads_a_config_beside_the_file_and_old_zip_free_files(tmp_path, tensors):
    torch.save(tensors, tmp_path / "source" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert_pickle(tmp_path / "source" / "pytorch_model.bin", tmp_path / "a")
    convert_pickle(tmp_path / "source" / "pytorch_model.bin", tmp_path / "b", tmp_path / "source")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    (tmp_path / "source" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        convert_pickle(tmp_path / "source" / "pytorch_model.bin", tmp_path / "c")


def test_unsafe_pickles_are_refused(tmp_path, tensors, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": tensors, "args": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="run code"):
        convert_pickle(tmp_path / "evil.pt", tmp_path / "new", LLADA)
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "new").exists()


def test_bad_pickles_are_refused(tmp_path, tensors):
    def refused(value, *words):
        path = tmp_path / "x.pt"
        path.write_bytes(value) if isinstance(value, bytes) else torch.save(value, path)
        with pytest.raises(CheckpointError) as caught:
            convert_pickle(path, tmp_path / "new", LLADA)
        assert all(w in str(caught.value) for w in words), caught.value
        assert not (tmp_path / "new").exists()

    refused(b"", "x.pt")
    refused(b"PK\x03\x04 not a zip", "x.pt")
    refused(b"hello world, this is text", "x.pt")
    refused([1, 2], "a dict of tensors")
    refused({"epoch": 3}, "epoch")
    refused({k: v for k, v in tensors.items() if "ln_f" not in k}, "missing", "ln_f")
    refused(tensors | {"model.transformer.ln_f.weight": torch.ones(3)}, "shape [32]", "[3]")
    refused(tensors | {"model.transformer.ln_f.weight": torch.ones(32, dtype=torch.int64)}, "int64")
    with pytest.raises(CheckpointError, match="nothing there"):
        convert_pickle(tmp_path / "none.pt", tmp_path / "new", LLADA)


# ---- plan ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_plan_counts_what_is_allocated(tmp_path, name):
    from unmask.models.denoiser import TransformerDenoiser

    directory = build(tmp_path / "m", CONFIGS[name])
    found = plan(directory, batch=3, length=50, dtype="bf16", device="cpu")
    loaded = load_model(directory, dtype="bf16", device="cpu")
    assert found.weights == sum(p.nbytes for p in loaded.model.parameters()) and found.dtype == "bfloat16"
    assert found.parameters == sum(p.numel() for p in loaded.model.parameters())
    store = TransformerDenoiser(loaded.model, loaded.traits).new_store(3, 50)
    assert found.store == store.keys.nbytes + store.values.nbytes
    assert found.stored_bytes == found.parameters * 4
    assert found.workspace > 0 and found.total == sum(p.bytes for p in found.parts)


def test_plan_of_published_shapes_allocates_nothing():
    found = plan("llada-8b", batch=1, length=4096, dtype="bf16", device="cpu")
    assert found.weights == 2 * 8_015_581_184 and found.store == 2 * 32 * 4096 * 4096 * 2
    assert plan("dream-7b", length=1, dtype="bf16", device="cpu").store == 2 * 28 * 512 * 2
    assert plan("llada-8b", dtype="fp32", device="cpu").weights == 2 * found.weights


def test_plan_from_a_config_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLADA | {"torch_dtype": "float32"}))
    found = plan(tmp_path, length=64, device="cpu")
    assert found.dtype == "float32" and found.stored_bytes is None


def test_plan_of_a_hub_id_reads_its_config_only(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "config.json").write_text(json.dumps(LLADA | {"torch_dtype": "float32"}))
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, name, revision: str(tmp_path / name))
    assert plan("owner/name", length=64, device="cpu").dtype == "float32"


def test_plan_refuses(tmp_path):
    for options in ({"batch": 0}, {"length": 0}, {"length": 4097}):
        with pytest.raises(InputError):
            plan("llada-8b", **options)
    with pytest.raises(CheckpointError):
        plan(tmp_path / "none")


# ---- shapes ----------------------------------------------------------------------------------------------------------


def test_random_model_is_seeded():
    (a, config), (b, _), (c, _) = (
        random_model("llada-mid", seed, vocab=64, layers=1, dtype="fp32", device="cpu") for seed in (1, 1, 2)
    )
    assert config["vocab_size"] == 64 and config["mask_token_id"] == 63 and a.cfg.layers == 1 and a.cfg.dim == 1024
    assert torch.equal(a.head_weight, b.head_weight) and not torch.equal(a.head_weight, c.head_weight)
    assert abs(float(a.head_weight.detach().std()) - 0.02) < 1e-3


def test_shapes_refuse():
    for options in ({"shape": "llada-9b"}, {"shape": "dream-mid", "vocab": 3}, {"shape": "dream-mid", "layers": 0}):
        with pytest.raises(InputError):
            shape_config(**options)
