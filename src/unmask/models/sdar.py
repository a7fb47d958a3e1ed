"""SDAR (block diffusion continued from Qwen3): config mapping, traits and recommended settings; dense models only.

Source: the published `SDARForCausalLM` format. The decoder and its tensors are Qwen3's (q and k normalised per head);
blocks of `block_size` tokens (4 to 64) are bidirectional inside and causal among each other. Row p predicts the token
at p: no shift.
"""

from __future__ import annotations

from dataclasses import replace

from unmask.core.types import Traits
from unmask.models.config import TransformerConfig
from unmask.models.family import Config, Family, Recommended
from unmask.models.llama import NAMES, block_size, block_traits, decoder
from unmask.models.settings import ConfigReader

DEFAULTS: dict[str, object] = {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "hidden_act": "silu",
    "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False,
    "attention_bias": False, "use_sliding_window": False, "sliding_window": 4096, "block_size": None,
    "mask_token_id": 151_669, "pad_token_id": None, "eos_token_id": None,
}  # fmt: skip

BLOCK = 4
"""Block size of the published pretrained checkpoints; fine-tuned ones have up to 64."""


def shape_of(config: Config) -> TransformerConfig:
    """The backbone of an SDAR config: Qwen3's."""
    r = ConfigReader(config, DEFAULTS)
    block_size(r, "block_size", BLOCK)
    bias = r.flag("attention_bias")
    return decoder(r, qkv_bias=bias, out_bias=bias, qk_norm="head")


def traits(config: Config) -> Traits:
    """Block-causal attention, no shift."""
    r = ConfigReader(config, DEFAULTS)
    mask_id = r.token("mask_token_id", r.count("vocab_size", 2))
    return block_traits(r, block_size(r, "block_size", BLOCK), mask_id, 0)


def recommended(config: Config, chat: bool, max_tokens: int) -> Recommended:
    """The model's own blocks, threshold 0.85 (its dynamic decoding) and the exact block cache."""
    size = config.get("block_size") or BLOCK
    base = Recommended(
        f"blocks({size})", "threshold(0.85)", "block", max_tokens, max_tokens, size,
        note="The model's own blocks; finished blocks are kept exactly.",
    )  # fmt: skip
    static = replace(base, policy=f"low_confidence(steps={max_tokens})", note="One token per forward.")
    return replace(base, alternatives={"static": static})


FAMILY = Family(
    name="SDAR",
    model_type="sdar",
    architecture="SDARForCausalLM",
    names=NAMES,
    shape=shape_of,
    traits=traits,
    recommended=recommended,
    turn_end=("<|im_end|>",),
    kind="block",
    known_issues=("Mixture-of-experts variants (model_type sdar_moe) are not implemented.",),
)
