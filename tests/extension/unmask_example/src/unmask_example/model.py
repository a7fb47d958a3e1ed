"""A model family of its own: a bidirectional transformer with normalised queries and keys, under other tensor names."""

from __future__ import annotations

from unmask.core.types import Traits
from unmask.models.family import Config, Family, Recommended, WeightNames
from unmask.models.settings import ConfigReader
from unmask.models.transformer import TransformerConfig

DEFAULTS: dict[str, object] = {"heads": 4, "mask_token_id": None, "eos_token_id": None, "context": 1024}

NAMES = WeightNames(
    embed="tokens.weight",
    final_norm="last_norm.weight",
    head="out.weight",
    layer="stack.{i}.",
    attn_norm="norm_a",
    mlp_norm="norm_b",
    q="query",
    k="key",
    v="value",
    out="join",
    gate="gate",
    up="up",
    down="down",
    q_norm="query_norm",
    k_norm="key_norm",
)


def shape_of(config: Config) -> TransformerConfig:
    """The backbone; what it cannot be is refused by key."""
    r = ConfigReader(config, DEFAULTS)
    r.must("dropout", None)
    width, heads = r.count("width"), r.count("heads")
    r.divides("2 * heads", 2 * heads, "width", width)
    return TransformerConfig(
        vocab_size=r.count("vocab_size", 4),
        dim=width,
        layers=r.count("depth", high=256),
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        mlp_dim=4 * width,
        qk_norm="head",
        max_len=r.count("context"),
    )


def traits(config: Config) -> Traits:
    """Full attention, no shift."""
    r = ConfigReader(config, DEFAULTS)
    vocab = r.count("vocab_size", 4)
    return Traits(
        mask_id=r.token("mask_token_id", vocab), eos_ids=r.tokens("eos_token_id", vocab), max_len=r.count("context")
    )


def recommended(config: Config, chat: bool, max_tokens: int) -> Recommended:
    """Blocks and a threshold."""
    return Recommended("blocks(32)", "threshold(0.9)", "dual", max_tokens, max_tokens, 32, note="As in the example.")


FAMILY = Family(
    name="Example",
    model_type="example",
    architecture="ExampleModel",
    names=NAMES,
    shape=shape_of,
    traits=traits,
    recommended=recommended,
)
