"""Dream (v0 Base and Instruct 7B): config mapping, traits and recommended settings; tensors are named as in Qwen2.

Source: the published `DreamModel` format. Qwen2 without a causal mask; the head keeps the autoregressive shift, so the
token at p is predicted by row p - 1.
"""

from __future__ import annotations

from dataclasses import replace

from unmask.core.types import Full, Traits
from unmask.models.config import TransformerConfig
from unmask.models.family import Config, Family, Recommended
from unmask.models.llama import NAMES, decoder
from unmask.models.settings import ConfigReader

DEFAULTS: dict[str, object] = {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False, "use_sliding_window": False,
    "sliding_window": 4096, "use_mrope": False, "mask_token_id": 151_666, "pad_token_id": 151_643,
    "eos_token_id": None,
}  # fmt: skip

CONTEXT = 2048
"""Prompt and answer together that the published model was made for; the config's 131072 is its parent's."""


def shape_of(config: Config) -> TransformerConfig:
    """The backbone of a Dream config: biased q, k, v and RoPE in the hidden dtype."""
    r = ConfigReader(config, DEFAULTS)
    r.must("use_mrope", False)
    return decoder(r, qkv_bias=True)


def traits(config: Config) -> Traits:
    """Full attention with shift 1."""
    r = ConfigReader(config, DEFAULTS)
    vocab = r.count("vocab_size", 2)
    return Traits(
        mask_id=r.token("mask_token_id", vocab),
        shift=1,
        attention=Full(),
        eos_ids=r.tokens("eos_token_id", vocab),
        pad_id=r.token_or_none("pad_token_id", vocab),
        max_len=r.count("max_position_embeddings"),
        grid_origin="prompt",
    )


def recommended(config: Config, chat: bool, max_tokens: int) -> Recommended:
    """Entropy order over the whole canvas with one step per token; sampling for Instruct as its README shows it."""
    base = Recommended("whole", f"entropy(steps={max_tokens})", "none", max_tokens, max_tokens, max_tokens)
    block = min(32, max_tokens)
    note = "Faster (Fast-dLLM): blocks, confidence threshold 0.9, dual cache."
    fast = replace(
        base, schedule=f"blocks({block})", policy="threshold(0.9)", cache="dual", block_length=block, note=note
    )
    sampled = replace(base, sampling={"temperature": 0.2, "top_p": 0.95}, note="As in the published example: sampled.")
    kind = "Instruct" if chat else "Base"
    note = f"{kind}: whole canvas, lowest entropy first, as many steps as tokens; greedy."
    issues = (f"Prompt and answer together should stay within {CONTEXT} tokens.",)
    return replace(base, note=note, known_issues=issues, alternatives={"fast": fast, "sampled": sampled})


FAMILY = Family(
    name="Dream",
    model_type="Dream",
    architecture="DreamModel",
    names=NAMES,
    shape=shape_of,
    traits=traits,
    recommended=recommended,
    turn_end=("<|im_end|>",),
    known_issues=(
        "The published code decodes with top_k 50 when top_k is omitted; here nothing is filtered unless asked for.",
        "The published eps schedule commits nothing in its first step when steps equal the length (profile `dream`).",
    ),
)
