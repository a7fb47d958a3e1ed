"""The transformers bridge: Auto classes, published names on disk, options that are refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")

from models.tiny import DREAM, LLADA, LLAMA, QWEN2, build
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from unmask.core.errors import CheckpointError, InputError
from unmask.models.hf import DreamConfig, LLaDAConfig, register
from unmask.models.load import load_model

TIED = LLADA | {"weight_tying": True}
CASES = {"llada": LLADA, "llada-tied": TIED, "dream": DREAM, "dream-tied": DREAM | {"tie_word_embeddings": True}}


@pytest.fixture(autouse=True, scope="module")
def registered():
    register()
    register()


@pytest.mark.parametrize("name", CASES)
def test_round_trip(tmp_path, name):
    source = build(tmp_path / "a", CASES[name])
    model = AutoModelForMaskedLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "b")
    a, b = (load_file(tmp_path / d / "model.safetensors") for d in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    again = AutoModel.from_pretrained(tmp_path / "b")
    assert type(again) is type(model) and again.model.cfg == model.model.cfg
    model.config.save_pretrained(tmp_path / "c")
    assert AutoConfig.from_pretrained(tmp_path / "c").published() == model.config.published()
    assert load_model(tmp_path / "b", device="cpu").model.cfg == model.model.cfg


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_forward_is_the_backbone_with_padding_and_loss(tmp_path, name):
    source = build(tmp_path / "a", CASES[name])
    model, own = AutoModel.from_pretrained(source), load_model(source, device="cpu")
    ids = torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    places = torch.arange(7).expand(2, 7) + 3
    out = model(ids, attention_mask=mask, position_ids=places)
    with torch.no_grad():
        expected = own.model.logits(own.model(ids, mask, places))
    assert torch.equal(out.logits, expected) and out.loss is None
    shift = own.traits.shift
    labels = torch.full_like(ids, -100)
    labels[:, 3] = 5
    loss = model(ids, labels=labels).loss
    rows = model(ids).logits[:, 3 - shift]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(rows, torch.tensor([5, 5])))
    loss.backward()
    assert model(ids, return_dict=False)[0].shape == (2, 7, 64)
    with pytest.raises(InputError, match="attention_mask"):
        model(ids, attention_mask=mask[:, :3])


def test_dtypes_and_causal_auto_class(tmp_path):
    source = build(tmp_path / "a", dtype="bf16")
    assert AutoModel.from_pretrained(source).dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(source, torch_dtype=torch.float32).dtype == torch.float32
    model, info = AutoModel.from_pretrained(source, dtype="auto", device_map={"": "cpu"}, output_loading_info=True)
    assert model.dtype == torch.bfloat16 and info["missing_keys"] == [] and not model.training


def test_saving_stays_beside_other_files(tmp_path):
    target = build(tmp_path / "a", shard_bytes=20_000)
    (target / "tokenizer.json").write_text("{}")
    model = AutoModel.from_pretrained(target)
    model.save_pretrained(target, state_dict={k: v + 1 for k, v in model.state_dict().items()})
    assert sorted(p.name for p in target.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert torch.equal(AutoModel.from_pretrained(target).model.embed.weight, model.model.embed.weight + 1)
    model.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert len(list((tmp_path / "b").glob("model-*"))) > 2
    assert json.loads((tmp_path / "b/config.json").read_text())["architectures"] == ["LLaDAModelLM"]


def test_class_defaults_and_changed_configs(tmp_path):
    assert LLaDAConfig().published()["block_type"] == "sequential" and LLaDAConfig().hidden_size == 768
    assert DreamConfig().published()["mask_token_id"] == 151666
    new = AutoModel.from_config(LLaDAConfig(**LLADA))
    assert new.model.head_weight.data_ptr() != new.model.embed.weight.data_ptr()
    assert abs(float(new.model.embed.weight.detach().std()) - 0.02) < 5e-3
    v5 = {"rope_type": "default", "rope_theta": 1e6}
    assert AutoModel.from_config(DreamConfig(**DREAM | {"rope_parameters": v5})).model.cfg.rope_theta == 1e6
    source = build(tmp_path / "a")
    config = AutoConfig.from_pretrained(source)
    config.rope_theta = 123.0
    assert AutoModel.from_pretrained(source, config=config).model.cfg.rope_theta == 123.0


def test_refusals(tmp_path):
    source = build(tmp_path / "a")
    with pytest.raises(InputError, match="load_in_8bit"):
        AutoModel.from_pretrained(source, load_in_8bit=True)
    with pytest.raises(InputError, match="device_map"):
        AutoModel.from_pretrained(source, device_map={"a": 0, "b": 1})
    model = AutoModel.from_pretrained(source)
    with pytest.raises(InputError, match="safe_serialization"):
        model.save_pretrained(tmp_path / "b", safe_serialization=False)
    with pytest.raises(InputError, match="max_shard_size"):
        model.save_pretrained(tmp_path / "b", max_shard_size="lots")
    (source / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        AutoModel.from_pretrained(source)
    with pytest.raises(CheckpointError, match="block_type"):
        AutoModel.from_config(LLaDAConfig())


@pytest.mark.parametrize("config", [QWEN2, LLAMA], ids=["qwen2", "llama"])
def test_autoregressive_families_equal_transformers(tmp_path, config):
    source = build(tmp_path / "a", config | {"rope_theta": 1e5})
    theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa").eval()
    ours = load_model(source, device="cpu").model
    ids = torch.randint(0, 60, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(ids, causal=True)), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    theirs.save_pretrained(tmp_path / "b")
    again = load_model(tmp_path / "b", device="cpu").model
    assert again.cfg == ours.cfg and all(
        torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True)
    )
