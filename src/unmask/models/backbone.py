"""From a shape to its module, and from a module to what the engine drives: the two backbones of this package."""

from __future__ import annotations

from typing import TypeAlias

import torch

from unmask.core.errors import InputError
from unmask.core.types import Traits
from unmask.models.birwkv_denoiser import BiRWKVDenoiser
from unmask.models.birwkv_net import BiRWKV
from unmask.models.config import BiRWKVConfig, Shape, TransformerConfig
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.transformer import Transformer

Backbone: TypeAlias = Transformer | BiRWKV
AnyDenoiser: TypeAlias = TransformerDenoiser | BiRWKVDenoiser


def backbone(shape: Shape) -> Backbone:
    """The module of a shape, its parameters as torch makes them."""
    return BiRWKV(shape) if isinstance(shape, BiRWKVConfig) else Transformer(shape)


def empty_model(shape: Shape, dtype: torch.dtype, device: torch.device) -> Backbone:
    """The module with uninitialised parameters of the final dtype, allocated once."""
    with torch.device("meta"):
        model = backbone(shape)
    return model.to(dtype).to_empty(device=device)


def denoiser_of(model: Backbone, traits: Traits) -> AnyDenoiser:
    """The module with declared traits, as the engine sees it."""
    return BiRWKVDenoiser(model, traits) if isinstance(model, BiRWKV) else TransformerDenoiser(model, traits)


def transformer_of(model: Backbone, what: str) -> Transformer:
    """The model where only a transformer will do.

    Raises:
        InputError: a recurrent model; `what` names the part that cannot take it.
    """
    if not isinstance(model, Transformer):
        raise InputError(what, expected="a transformer", got="a recurrent model (birwkv)")
    return model


def transformer_shape(shape: Shape, what: str) -> TransformerConfig:
    """The same for a shape."""
    if not isinstance(shape, TransformerConfig):
        raise InputError(what, expected="a transformer", got="a recurrent model (birwkv)")
    return shape
