"""Autoregressive Qwen2 and Qwen2.5 checkpoints: baseline, and the parents of Dream and Fast-dLLM v2."""

from __future__ import annotations

from unmask.core.types import Traits
from unmask.models.config import TransformerConfig
from unmask.models.family import Config, Family
from unmask.models.llama import NAMES, autoregressive, causal_traits, decoder
from unmask.models.settings import ConfigReader

DEFAULTS: dict[str, object] = {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False, "use_sliding_window": False,
    "sliding_window": 4096, "pad_token_id": None, "eos_token_id": None,
}  # fmt: skip


def shape_of(config: Config) -> TransformerConfig:
    return decoder(ConfigReader(config, DEFAULTS), qkv_bias=True)


def traits(config: Config) -> Traits:
    return causal_traits(ConfigReader(config, DEFAULTS))


FAMILY = Family(
    name="Qwen2",
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    names=NAMES,
    shape=shape_of,
    traits=traits,
    recommended=autoregressive,
    turn_end=("<|im_end|>",),
    known_issues=("Autoregressive: no parallel decoding.",),
    kind="autoregressive",
)
