"""Autoregressive Llama-shaped checkpoints (Llama 2 and 3 without RoPE scaling, SmolLM2): baseline and parents.

Also the common reading of every config with transformers' decoder keys (`hidden_size`, `num_hidden_layers` ...);
Qwen2 and Dream differ from it by biases, defaults and traits only.
"""

from __future__ import annotations

from typing import Literal

from unmask.core.types import BlockCausal, Traits
from unmask.models.config import TransformerConfig
from unmask.models.family import Config, Family, Recommended, WeightNames
from unmask.models.settings import ConfigReader, refuse_common, rope_theta

NAMES = WeightNames(
    embed="model.embed_tokens.weight",
    final_norm="model.norm.weight",
    head="lm_head.weight",
    layer="model.layers.{i}.",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    out="self_attn.o_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
)

DEFAULTS: dict[str, object] = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False, "pad_token_id": None, "eos_token_id": 2,
}  # fmt: skip


def decoder(
    r: ConfigReader,
    qkv_bias: bool,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: Literal["head"] | None = None,
) -> TransformerConfig:
    """The backbone of a config with transformers' decoder keys; what it cannot be is refused by key."""
    refuse_common(r)
    r.must("hidden_act", "silu")
    r.must("rope_interleaved", None, False)
    refuse_windows(r)
    dim, heads = r.count("hidden_size"), r.count("num_attention_heads")
    kv_heads = r.count_or_none("num_key_value_heads") or heads
    r.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    return TransformerConfig(
        vocab_size=r.count("vocab_size", 2),
        dim=dim,
        layers=r.count("num_hidden_layers", high=4096),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(r, dim, heads),
        mlp_dim=r.count("intermediate_size"),
        norm_eps=r.positive("rms_norm_eps", 1.0),
        rope_theta=rope_theta(r),
        rope_float32=False,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        tied=r.flag("tie_word_embeddings"),
        max_len=r.count("max_position_embeddings"),
    )


def _head_dim(r: ConfigReader, dim: int, heads: int) -> int:
    given = r.count_or_none("head_dim", 2)
    if given is None:
        r.divides("2 * num_attention_heads", 2 * heads, "hidden_size", dim)
        return dim // heads
    r.divides("2 (rotary halves)", 2, "head_dim", given)
    return given


def refuse_windows(r: ConfigReader) -> None:
    """Sliding-window attention in any of its spellings."""
    if r.value("use_sliding_window") is None:
        r.must("sliding_window", None)
    r.must("use_sliding_window", None, False, why="Sliding-window attention is not implemented.")
    kinds = r.value("layer_types")
    if kinds is not None and set(kinds if isinstance(kinds, list) else [kinds]) - {"full_attention"}:
        raise r.refuse("layer_types", "null or only 'full_attention'", "Sliding-window attention is not implemented.")


def causal_traits(r: ConfigReader) -> Traits:
    """Row p predicts the token at p + 1 and sees the rows before it; there is no mask id."""
    return block_traits(r, 1, None, 1)


def block_size(r: ConfigReader, key: str, published: int) -> int:
    """The tokens of a block, which a block-diffusion config must name."""
    if r.value(key) is None:
        raise r.refuse(key, "the block size, in tokens", f"Add the one it was trained with (published: {published}).")
    return r.count(key)


def block_traits(r: ConfigReader, size: int, mask_id: int | None, shift: int) -> Traits:
    """Traits of a model whose rows see their block of `size` tokens and all before it, on a grid from 0."""
    vocab = r.count("vocab_size", 2)
    return Traits(
        mask_id=mask_id,
        shift=shift,
        attention=BlockCausal(size),
        eos_ids=r.tokens("eos_token_id", vocab),
        pad_id=r.token_or_none("pad_token_id", vocab),
        max_len=r.count("max_position_embeddings"),
        grid_origin="zero",
    )


def autoregressive(config: Config, chat: bool, max_tokens: int) -> Recommended:
    """One token per forward from left to right, with the exact cache of a causal model."""
    note = "Autoregressive: one token per forward, greedy, exact cache."
    return Recommended("growing(1)", "left_to_right", "block", max_tokens, max_tokens, 1, note=note)


def shape_of(config: Config) -> TransformerConfig:
    r = ConfigReader(config, DEFAULTS)
    bias = r.flag("attention_bias")
    return decoder(r, qkv_bias=bias, out_bias=bias, mlp_bias=r.flag("mlp_bias"))


def traits(config: Config) -> Traits:
    return causal_traits(ConfigReader(config, DEFAULTS))


FAMILY = Family(
    name="Llama",
    model_type="llama",
    architecture="LlamaForCausalLM",
    names=NAMES,
    shape=shape_of,
    traits=traits,
    recommended=autoregressive,
    turn_end=("<|im_end|>", "<|eot_id|>"),
    known_issues=("Autoregressive: no parallel decoding; RoPE scaling (Llama 3.1 and later) is refused.",),
    kind="autoregressive",
)
