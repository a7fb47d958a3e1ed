"""Block-diffusion families: Fast-dLLM v2 and SDAR configs, where the mask id comes from, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models.tiny import CONTEXT_CAUSAL, FAST_DLLM, SDAR, build, edit_config
from tiny_checkpoints import v2_checkpoint

from unmask.core import catalog
from unmask.core.errors import CheckpointError
from unmask.core.types import BlockCausal
from unmask.models.family import find_family, pieces
from unmask.models.load import load_model
from unmask.models.shapes import shape_config

PUBLISHED_7B = {
    "model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": 32,
    "conplemenrary_mask": True, "bos_token_id": 151_643, "eos_token_id": 151_645, "pad_token_id": 151_645,
    "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 32_768,
    "max_window_layers": 28, "layer_types": ["full_attention"] * 28, "use_sliding_window": False,
    "vocab_size": 152_064, "rope_theta": 1e6, "tie_word_embeddings": False,
}  # fmt: skip


CAUSAL_7B = PUBLISHED_7B | {"model_type": "unmask_context_causal"}


def shape_of(config: dict[str, Any]) -> Any:
    return find_family(config).shape(config)


def traits_of(config: dict[str, Any]) -> Any:
    return find_family(config).traits(config)


def test_the_published_7b_config() -> None:
    cfg, t = shape_of(PUBLISHED_7B), traits_of(PUBLISHED_7B)
    assert (cfg.dim, cfg.mlp_dim, cfg.layers, cfg.heads, cfg.kv_heads, cfg.head_dim) == (3584, 18_944, 28, 28, 4, 128)
    assert (cfg.qkv_bias, cfg.out_bias, cfg.rope_float32, cfg.tied, cfg.rope_theta) == (True, False, False, False, 1e6)
    assert (t.shift, t.attention, t.grid_origin, t.eos_ids, t.pad_id) == (
        1,
        BlockCausal(32),
        "zero",
        (151_645,),
        151_645,
    )
    assert t.mask_id is None, "the published config leaves it to the tokenizer"
    names = {p.published for p in pieces(find_family(PUBLISHED_7B).names, cfg)}
    assert {"model.layers.27.self_attn.q_proj.bias", "model.norm.weight", "lm_head.weight"} <= names
    assert "model.layers.0.self_attn.o_proj.bias" not in names


def test_absent_keys_take_the_class_default() -> None:
    cfg = shape_of({"model_type": "Fast_dLLM_Qwen", "bd_size": 32})
    assert (cfg.vocab_size, cfg.dim, cfg.mlp_dim, cfg.layers, cfg.heads, cfg.kv_heads, cfg.rope_theta) == (
        151_936, 4096, 22_016, 32, 32, 32, 10_000.0)  # fmt: skip
    sdar = {"model_type": "sdar", "block_size": 4}
    cfg = shape_of(sdar)
    assert (cfg.dim, cfg.head_dim, cfg.qk_norm, cfg.qkv_bias, cfg.rope_float32) == (4096, 128, "head", False, False)
    assert traits_of(sdar).mask_id == 151_669


def test_sdar_has_no_shift_and_its_own_block() -> None:
    t = traits_of(SDAR)
    assert (t.shift, t.attention, t.grid_origin, t.mask_id) == (0, BlockCausal(4), "zero", 60)
    names = {p.published for p in pieces(find_family(SDAR).names, shape_of(SDAR))}
    assert "model.layers.1.self_attn.q_norm.weight" in names
    assert not [n for n in names if n.endswith("bias")]


def test_a_causal_context_is_fast_dllm_v2_with_another_rule() -> None:
    ours, theirs = traits_of(CONTEXT_CAUSAL), traits_of(FAST_DLLM)
    assert ours == replace(theirs, attention=BlockCausal(8, "causal")) != theirs
    assert shape_of(CONTEXT_CAUSAL) == shape_of(FAST_DLLM)
    family, published = find_family(CONTEXT_CAUSAL), find_family(FAST_DLLM)
    assert (family.names, family.mask_token, family.kind) == (published.names, published.mask_token, published.kind)
    assert family.recommended(CONTEXT_CAUSAL, True, 64).cache == "block"


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({k: v for k, v in CONTEXT_CAUSAL.items() if k != "bd_size"}, "bd_size"),
        ({k: v for k, v in FAST_DLLM.items() if k != "bd_size"}, "bd_size"),
        (FAST_DLLM | {"bd_size": None}, "bd_size"),
        (FAST_DLLM | {"bd_size": 0}, "bd_size"),
        (FAST_DLLM | {"bd_size": "32"}, "bd_size"),
        (FAST_DLLM | {"use_sliding_window": True}, "use_sliding_window"),
        (FAST_DLLM | {"mask_token_id": 64}, "mask_token_id"),
        (FAST_DLLM | {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({k: v for k, v in SDAR.items() if k != "block_size"}, "block_size"),
        (SDAR | {"block_size": 4.0}, "block_size"),
        (SDAR | {"hidden_act": "gelu"}, "hidden_act"),
        (SDAR | {"model_type": "sdar_moe"}, "model_type"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_key(config: dict[str, Any], key: str) -> None:
    with pytest.raises(CheckpointError, match=key):
        shape_of(config), traits_of(config)


def test_recommended_settings_parse_and_alternatives_are_the_papers() -> None:
    for config, specs in ((PUBLISHED_7B, ("blocks(length=8)", "threshold", "block")),
                          (CAUSAL_7B, ("blocks(length=8)", "threshold(order='left_to_right')", "block")),
                          (SDAR, ("blocks(length=4)", "threshold(threshold=0.85)", "block"))):  # fmt: skip
        r = find_family(config).recommended(config, True, 128)
        parsed = tuple(repr(catalog.parse(k, getattr(r, k))) for k in ("schedule", "policy", "cache"))
        assert parsed == specs
        for other in r.alternatives.values():
            for kind in ("schedule", "policy", "cache"):
                catalog.parse(kind, getattr(other, kind))
    paper = find_family(PUBLISHED_7B).recommended(PUBLISHED_7B, True, 128).alternatives
    assert paper["paper"].policy == "threshold(1.0)" and paper["sub-block"].cache == "sub_block"


def test_v2_mid_is_the_family_itself() -> None:
    config = shape_config("v2-mid", vocab=600, layers=2)
    assert config["model_type"] == "Fast_dLLM_Qwen" and config["num_hidden_layers"] == 2
    assert traits_of(config).attention == BlockCausal(32) and traits_of(config).mask_id == 599


# ---- the mask id -----------------------------------------------------------------------------------------------------


def without_tokenizer(path: Path) -> Path:
    build(path, FAST_DLLM)
    edit_config(path, mask_token_id=...)
    return path


def test_the_config_comes_first_then_the_tokenizer(tmp_path: Path) -> None:
    place = v2_checkpoint(tmp_path / "v2")
    table = json.loads((place / "tokenizer_config.json").read_text("utf-8"))["added_tokens_decoder"]
    expected = next(int(i) for i, entry in table.items() if entry["content"] == "|<MASK>|")
    assert load_model(place, device="cpu").traits.mask_id == expected
    edit_config(place, mask_token_id=7)
    assert load_model(place, device="cpu").traits.mask_id == 7


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", {"added_tokens": [{"id": 3, "content": "<pad>"}, {"id": 61, "content": "|<MASK>|"}]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"61": {"content": "|<MASK>|"}}}),
        ("added_tokens.json", {"|<MASK>|": 61}),
    ],
)
def test_every_file_of_a_tokenizer_is_asked(name: str, content: dict[str, Any], tmp_path: Path) -> None:
    place = without_tokenizer(tmp_path / "v2")
    (place / name).write_text(json.dumps(content), "utf-8")
    assert load_model(place, device="cpu").traits.mask_id == 61


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (None, "neither"),
        ({"|<MASK>|": "61"}, "neither"),
        ({"<mask>": 61}, "neither"),
        ({"|<MASK>|": 64}, "id 64 in the tokenizer"),
    ],
)
def test_without_a_mask_id_the_checkpoint_is_refused_with_a_remedy(
    content: dict[str, Any] | None, got: str, tmp_path: Path
) -> None:
    place = without_tokenizer(tmp_path / "v2")
    if content is not None:
        (place / "added_tokens.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(CheckpointError) as caught:
        load_model(place, device="cpu")
    text = str(caught.value)
    assert "mask id" in text and got in text and "|<MASK>|" in text
    assert "Add mask_token_id" in caught.value.remedy
