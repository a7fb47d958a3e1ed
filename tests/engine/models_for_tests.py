"""Tiny random transformers of every kind of traits, quick to run and decided enough to have no ties."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from unmask.core.types import BlockCausal, Traits
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.transformer import Transformer, TransformerConfig

VOCAB, MASK, EOS = 48, 47, 46


def traits(kind: str, eos: tuple[int, ...] = ()) -> Traits:
    return {
        "llada": Traits(MASK, eos_ids=eos),
        "dream": Traits(MASK, shift=1, eos_ids=eos),
        "block-causal": Traits(MASK, shift=1, attention=BlockCausal(4), grid_origin="zero", eos_ids=eos),
        "context-causal": Traits(MASK, shift=1, attention=BlockCausal(4, "causal"), grid_origin="zero", eos_ids=eos),
        "causal": Traits(None, shift=1, attention=BlockCausal(1), grid_origin="zero", eos_ids=eos),
    }[kind]


@cache
def backbone(seed: int = 0, dtype: torch.dtype = torch.float32, kv_heads: int = 2) -> Transformer:
    """Three layers, grouped-query attention, wide weights so that tokens depend on the whole context."""
    cfg = TransformerConfig(VOCAB, 32, 3, 4, kv_heads, 8, 48, norm_eps=1e-6, qkv_bias=True)
    model = Transformer(cfg)
    model.init_weights(seed, 0.35)
    return model.to(dtype).eval()


@cache
def wider(dtype: torch.dtype) -> TransformerDenoiser:
    """Sums long enough for bf16 matrix products to round by the shape of the batch."""
    cfg = TransformerConfig(600, 256, 4, 8, 8, 32, 704)
    model = Transformer(cfg)
    model.init_weights(0, 0.09)
    return TransformerDenoiser(model.to(dtype).eval(), Traits(599))


def denoiser(
    kind: str = "llada", seed: int = 0, eos: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
) -> TransformerDenoiser:
    return TransformerDenoiser(backbone(seed, dtype), traits(kind, eos))


def dense_logits(found: TransformerDenoiser) -> Callable[[Tensor], Tensor]:
    """ids [B, T] -> logits [B, T, V] without a store."""
    causal = found.traits.attention == BlockCausal(1)

    def logits(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            return found.model.logits(found.model(ids, causal=causal))

    return logits


def prompt(seed: int, length: int) -> list[int]:
    return torch.randint(0, EOS, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
