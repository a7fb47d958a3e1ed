"""Published configs: mapping, class defaults, traits, and every variant that is refused by its key."""

from __future__ import annotations

import pytest
from models.tiny import CONFIGS, DREAM, LLADA, LLAMA, QWEN2

from unmask.core.errors import CheckpointError
from unmask.core.types import BlockCausal, Full
from unmask.models.family import find_family, pieces
from unmask.models.shapes import SHAPES, shape_config


def shape_of(config):
    return find_family(config).shape(config)


def traits_of(config):
    return find_family(config).traits(config)


def test_llada_maps_every_key():
    cfg = shape_of(LLADA | {"rms_norm_eps": 1e-6, "rope_full_precision": False, "include_qkv_bias": True})
    assert (cfg.dim, cfg.layers, cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.mlp_dim) == (32, 2, 4, 4, 8, 48)
    assert (cfg.norm_eps, cfg.rope_theta, cfg.rope_float32, cfg.qkv_bias, cfg.max_len) == (1e-6, 5e5, False, True, 256)
    cfg = shape_of(LLADA | {"scale_logits": True, "input_emb_norm": True, "mlp_hidden_size": None, "mlp_ratio": 3})
    assert (cfg.logit_scale, cfg.embed_scale, cfg.mlp_dim) == (32**-0.5, 32**0.5, 96)
    biased = {"weight_tying": True, "include_bias": True, "bias_for_layer_norm": False}
    cfg = shape_of(LLADA | {"attention_layer_norm": True} | biased)
    assert cfg.qk_norm == "full" and cfg.tied and cfg.qkv_bias and cfg.out_bias and cfg.mlp_bias


def test_llada_rows_are_embedding_size_or_vocab_size():
    assert shape_of(LLADA | {"embedding_size": 128}).vocab_size == 128
    assert shape_of(LLADA | {"embedding_size": None}).vocab_size == 64
    no_key = {k: v for k, v in LLADA.items() if k != "embedding_size"}
    assert shape_of(no_key).vocab_size == 50304  # the class default, as in the published class


@pytest.mark.parametrize(
    ("kv", "multi_query", "expected"), [(None, None, 4), (None, True, 1), (None, False, 4), (2, None, 2), (1, True, 1)]
)
def test_llada_kv_heads(kv, multi_query, expected):
    assert shape_of(LLADA | {"n_kv_heads": kv, "multi_query_attention": multi_query}).kv_heads == expected


def test_absent_keys_take_the_class_default():
    cfg = shape_of({"model_type": "llada", "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms",
                    "rope": True})  # fmt: skip
    assert (cfg.dim, cfg.layers, cfg.heads, cfg.mlp_dim, cfg.vocab_size, cfg.tied) == (768, 12, 12, 3072, 50304, True)
    assert (cfg.rope_theta, cfg.max_len) == (10_000.0, 1024)
    cfg = shape_of({"model_type": "Dream"})
    assert (cfg.dim, cfg.mlp_dim, cfg.layers, cfg.kv_heads, cfg.vocab_size) == (4096, 22016, 32, 32, 151936)
    assert (cfg.norm_eps, cfg.rope_theta, cfg.qkv_bias, cfg.rope_float32, cfg.tied) == (1e-6, 1e4, True, False, False)
    assert traits_of({"model_type": "Dream"}).mask_id == 151666


def test_traits():
    t = traits_of(LLADA | {"eot_token_id": 62})
    assert (t.mask_id, t.shift, t.attention, t.eos_ids, t.pad_id, t.max_len) == (60, 0, Full(), (61, 62), 61, 256)
    assert t.grid_origin == "prompt"
    assert traits_of(LLADA | {"mask_token_id": 5}).mask_id == 5
    t = traits_of(DREAM)
    assert (t.mask_id, t.shift, t.attention, t.eos_ids, t.grid_origin) == (60, 1, Full(), (61,), "prompt")
    for config in (QWEN2, LLAMA):
        t = traits_of(config | {"eos_token_id": [61, 62, 61]})
        assert (t.mask_id, t.shift, t.attention, t.eos_ids, t.grid_origin) == (
            None,
            1,
            BlockCausal(1),
            (61, 62),
            "zero",
        )


@pytest.mark.parametrize(
    ("base", "key", "value"),
    [
        (LLADA, "alibi", True),
        (LLADA, "block_group_size", 2),
        (LLADA, "block_type", "sequential"),
        (LLADA, "layer_norm_type", "default"),
        (LLADA, "activation_type", "swiglu"),
        (LLADA, "rope", False),
        (LLADA, "rope_scaling", {"type": "linear", "factor": 2}),
        (LLADA, "layer_norm_with_affine", False),
        (LLADA, "bias_for_layer_norm", True),
        (LLADA, "include_bias", True),
        (LLADA, "multi_query_attention", True),
        (LLADA, "n_kv_heads", 3),
        (LLADA, "n_heads", 5),
        (LLADA, "n_layers", 0),
        (LLADA, "n_layers", "2"),
        (LLADA, "n_layers", 2.0),
        (LLADA, "n_layers", True),
        (LLADA, "d_model", -32),
        (LLADA, "d_model", None),
        (LLADA, "mlp_ratio", 1 << 40),
        (LLADA, "rms_norm_eps", 0),
        (LLADA, "rms_norm_eps", "1e-5"),
        (LLADA, "rope_theta", float("nan")),
        (LLADA, "rope_full_precision", "true"),
        (LLADA, "weight_tying", None),
        (LLADA, "embedding_size", 8),
        (LLADA, "mask_token_id", 64),
        (LLADA, "mask_token_id", None),
        (LLADA, "eos_token_id", [1, "2"]),
        (LLADA, "pad_token_id", -1),
        (LLADA, "quantization_config", {"bits": 4}),
        (DREAM, "hidden_act", "gelu"),
        (DREAM, "use_sliding_window", True),
        (DREAM, "use_mrope", True),
        (DREAM, "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        (DREAM, "rope_parameters", {"rope_type": "default", "rope_theta": 1e6, "factor": 2}),
        (DREAM, "layer_types", ["full_attention", "sliding_attention"]),
        (DREAM, "num_key_value_heads", 3),
        (DREAM, "head_dim", 7),
        (DREAM, "mask_token_id", 99),
        (LLAMA, "sliding_window", 128),
        (LLAMA, "rope_interleaved", True),
        (LLAMA, "eos_token_id", 64),
    ],
)
def test_a_variant_is_refused_by_its_key(base, key, value):
    config = {k: v for k, v in base.items() if not (key == "mlp_ratio" and k == "mlp_hidden_size")} | {key: value}
    with pytest.raises(CheckpointError) as caught:
        shape_of(config), traits_of(config)
    named = {"n_kv_heads": "n_heads", "n_heads": "d_model", "num_key_value_heads": "num_attention_heads"}.get(key, key)
    assert f"config.json: {named}" in str(caught.value)
    assert caught.value.expected and caught.value.got


@pytest.mark.parametrize("config", [{}, {"model_type": 3}, {"model_type": "gpt2"}, {"model_type": "dream"}])
def test_unknown_family(config):
    with pytest.raises(CheckpointError, match="model_type") as caught:
        find_family(config)
    assert "llada" in caught.value.expected and "Dream" in caught.value.expected


def test_rope_parameters_of_transformers_5():
    config = {k: v for k, v in DREAM.items() if k != "rope_theta"}
    assert shape_of(config | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}).rope_theta == 1e6
    with pytest.raises(CheckpointError, match="rope_parameters"):
        shape_of(config | {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}})


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_pieces_cover_every_parameter_once(config):
    import torch

    from unmask.models.load import empty_model

    family = find_family(config)
    cfg = family.shape(config)
    model = empty_model(cfg, torch.float32, torch.device("cpu"))
    rows = {name: [0] * p.shape[0] for name, p in model.named_parameters()}
    for piece in pieces(family.names, cfg):
        for r in range(piece.start, piece.start + piece.shape[0]):
            rows[piece.parameter][r] += 1
    assert all(set(counts) == {1} for counts in rows.values())


def test_published_sizes():
    from math import prod

    sizes = {"llada-8b": 8_015_581_184, "dream-7b": 7_615_616_512}
    for shape, expected in sizes.items():
        config = shape_config(shape)
        family = find_family(config)
        assert sum(prod(p.shape) for p in pieces(family.names, family.shape(config))) == expected
    assert set(SHAPES) == {"llada-mid", "dream-mid", "v2-mid", "llada-8b", "dream-7b"}


def test_published_llada_names():
    names = [p.published for p in pieces(find_family(LLADA).names, shape_of(LLADA))]
    assert names[0] == "model.transformer.wte.weight" and names[-1] == "model.transformer.ff_out.weight"
    assert "model.transformer.blocks.1.ff_out.weight" in names and "model.transformer.ln_f.weight" in names
