"""Shape and numerics of the backbone as plain numbers: what a family maps a published config to. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TransformerConfig:
    """Shape and numerics of the backbone. Sizes are counts, `norm_eps` and `rope_theta` as in the published configs.

    Args:
        vocab_size: rows of the embedding and of the head.
        qk_norm: "head" normalises each head's q and k (Qwen3), "full" the whole projection (OLMo, LLaDA's
            `attention_layer_norm`), None neither.
        rope_float32: rotate in float32 and cast back (LLaDA); otherwise cos and sin are cast to the hidden dtype first
            (Dream, Qwen2).
        embed_scale, logit_scale: factors on embeddings and logits (1 for every published checkpoint).
        max_len: longest context the checkpoint was made for, in tokens.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_float32: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["head", "full"] | None = None
    tied: bool = False
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    max_len: int = 4096

    @property
    def q_dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.kv_heads * self.head_dim
