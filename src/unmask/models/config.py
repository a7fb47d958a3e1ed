"""Shape and numerics of the backbone as plain numbers: what a family maps a published config to. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Betas = Literal["linear", "cosine", "sigmoid"]
"""Names of the published tables of noise levels."""


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


@dataclass(frozen=True)
class BiRWKVConfig:
    """Shape and numerics of the bidirectional recurrent backbone.

    Args:
        vocab_size: rows of the token table. dim: width of the layers. embed_dim: width of a token's vector, the space
            in which continuous diffusion runs.
        attention_every: every so many layers one mixes by attention instead; 0 none, 1 all (the baseline).
        heads: of those layers.
        conditioning: "adaln" (scale, shift and gate of every sub-layer from the noise level, zero at the start) or
            "origin" (the published parameters: a projection of the level added to every linear layer, one gate).
        ff_gate: where the gate of the feed-forward part stands: "after" its output matrix (RWKV) or on its "hidden"
            units.
        positions: learned position vectors, which limit the length; without them nothing does.
        tied: the output matrix is the token table.
        key_cap: keys are cap * tanh(k / cap); None leaves them.
        prediction: what the diffusion head says: the clean vector ("sample", through the token distribution), the noise
            ("epsilon") or the velocity ("v_prediction").
        evidence: add the exact Bayes evidence of the noised vector to the logits (Plaid).
        levels: lowest and highest log signal-to-noise ratio in nats.
        steps: of the noise levels' index that the time embedding reads, spread evenly over `levels`.
        betas: name, first and last beta of a published table (`unmask.ops.vp.betas_of`): the index counts its steps
            instead.
        max_len: longest context the checkpoint was made for.
        normed: rows of the token table are used with norm sqrt(embed_dim), whatever their length is.
        embed_scale, logit_scale: factors on the input and the logits. dropout: on the input while training.
        noise: the origin's noise on every layer's output while training.
    """

    vocab_size: int
    dim: int
    layers: int
    mlp_dim: int
    embed_dim: int
    attention_every: int = 0
    heads: int = 1
    conditioning: Literal["adaln", "origin"] = "adaln"
    ff_gate: Literal["after", "hidden"] = "after"
    positions: bool = False
    tied: bool = True
    norm_eps: float = 1e-5
    key_cap: float | None = 12.0
    prediction: Literal["sample", "epsilon", "v_prediction"] = "sample"
    evidence: bool = True
    levels: tuple[float, float] = (-7.0, 5.0)
    steps: int = 1000
    betas: tuple[Betas, float, float] | None = None
    max_len: int = 2048
    normed: bool = True
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    dropout: float = 0.0
    noise: bool = False

    def attends(self, layer: int) -> bool:
        """Whether that layer mixes by attention."""
        return bool(self.attention_every) and (layer + 1) % self.attention_every == 0


Shape = TransformerConfig | BiRWKVConfig
