"""A model family: how a published config and published tensor names map to the one transformer.

Enters: a config dict as found in config.json. Leaves: a shape (`TransformerConfig` or `BiRWKVConfig`), `Traits`, the
list of `Piece`s (which rows of which of our parameters each published tensor is) and recommended settings. Pieces are
the only name map: loading, saving, planning and the transformers bridge all walk the same list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from unmask.core import catalog
from unmask.core.errors import CheckpointError, SpecError
from unmask.models.config import BiRWKVConfig, Shape, TransformerConfig

if TYPE_CHECKING:
    from unmask.core.types import Traits

Config = Mapping[str, Any]


@dataclass(frozen=True)
class WeightNames:
    """Published names; `layer` holds `{i}`, the names below it are relative to it and without `.weight` / `.bias`."""

    embed: str
    final_norm: str
    head: str
    layer: str
    attn_norm: str
    mlp_norm: str
    q: str
    k: str
    v: str
    out: str
    gate: str
    up: str
    down: str
    q_norm: str = "q_norm"
    k_norm: str = "k_norm"


@dataclass(frozen=True)
class Piece:
    """One published tensor: rows [start, start + shape[0]) of our parameter `parameter`."""

    published: str
    parameter: str
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Recommended:
    """Decoding settings a checkpoint asks for, as plain specs; used when the user says nothing.

    Args:
        schedule, policy, cache: complete specs of the catalog, such as "blocks(32)" and "random(steps=128)".
        gen_length, steps, block_length: the same numbers for display: tokens, forwards in all, tokens per block.
        sampling: options by their published names (temperature, top_p, logits_eos_inf, confidence_eos_eot_inf).
        note: why, in one line. known_issues: what to expect. alternatives: other published choices, by name.
    """

    schedule: str
    policy: str
    cache: str = "none"
    gen_length: int = 128
    steps: int = 128
    block_length: int = 32
    sampling: Mapping[str, float | int | bool | None] = field(default_factory=dict)
    note: str = ""
    known_issues: tuple[str, ...] = ()
    alternatives: Mapping[str, Recommended] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Everything the toolkit knows about one published checkpoint format.

    Args:
        names: None where tensors are stored under our parameters' names.
        shape, traits: read a config; a key that this format cannot honour is refused by name.
        recommended: (config, chat, max_tokens) -> settings; `chat` says that the checkpoint has a chat template.
        turn_end: special tokens, besides EOS, that end an assistant's turn.
        mask_token: text of the mask token where the config may leave its id to the tokenizer.
        kind: what is decoded: a whole canvas ("canvas", or "recurrent"), blocks that see no later one ("block"), or
            one token at a time ("autoregressive").
    """

    name: str
    model_type: str
    architecture: str
    names: WeightNames | None
    shape: Callable[[Config], Shape]
    traits: Callable[[Config], Traits]
    recommended: Callable[[Config, bool, int], Recommended]
    turn_end: tuple[str, ...] = ()
    known_issues: tuple[str, ...] = ()
    mask_token: str = ""
    kind: Literal["canvas", "recurrent", "block", "autoregressive"] = "canvas"


def find_family(config: Config) -> Family:
    """The family of a config by its `model_type` (a line of the catalog).

    Raises:
        CheckpointError: no or unknown model_type.
    """
    kind = config.get("model_type")
    known = ", ".join(catalog.entries("model"))
    if not isinstance(kind, str):
        raise CheckpointError("config.json: model_type", expected=f"one of: {known}", got=repr(kind))
    try:
        family = catalog.load("model", kind)
    except SpecError as error:
        remedy = "A package can add a family by entry point `unmask.models`; see `unmask ls models`."
        raise CheckpointError(
            "config.json: model_type", expected=f"one of: {known}", got=repr(kind), remedy=remedy
        ) from error
    if not isinstance(family, Family):
        raise CheckpointError(f"catalog line of model {kind!r}", expected="a Family object", got=type(family).__name__)
    return family


def pieces(names: WeightNames | None, cfg: Shape) -> Iterator[Piece]:
    """Every published tensor of a checkpoint of this shape, in the order of the layers."""
    if isinstance(cfg, BiRWKVConfig):
        yield from _own_pieces(cfg)
        return
    assert names is not None
    yield Piece(names.embed, "embed.weight", 0, (cfg.vocab_size, cfg.dim))
    for i in range(cfg.layers):
        yield from _layer_pieces(names, cfg, i)
    yield Piece(names.final_norm, "final_norm", 0, (cfg.dim,))
    if not cfg.tied:
        yield Piece(names.head, "head.weight", 0, (cfg.vocab_size, cfg.dim))


def _own_pieces(cfg: BiRWKVConfig) -> Iterator[Piece]:
    import torch

    from unmask.models.birwkv_net import BiRWKV

    with torch.device("meta"):
        model = BiRWKV(cfg)
    for name, parameter in model.named_parameters():
        yield Piece(name, name, 0, tuple(parameter.shape))


def _layer_pieces(names: WeightNames, cfg: TransformerConfig, i: int) -> Iterator[Piece]:
    far, near = names.layer.format(i=i), f"layers.{i}."
    yield Piece(f"{far}{names.attn_norm}.weight", f"{near}attn_norm", 0, (cfg.dim,))
    yield Piece(f"{far}{names.mlp_norm}.weight", f"{near}mlp_norm", 0, (cfg.dim,))
    qkv = ((names.q, cfg.q_dim), (names.k, cfg.kv_dim), (names.v, cfg.kv_dim))
    yield from _linear(far, qkv, f"{near}qkv", cfg.dim, cfg.qkv_bias)
    yield from _linear(far, ((names.out, cfg.dim),), f"{near}out", cfg.q_dim, cfg.out_bias)
    gate_up = ((names.gate, cfg.mlp_dim), (names.up, cfg.mlp_dim))
    yield from _linear(far, gate_up, f"{near}gate_up", cfg.dim, cfg.mlp_bias)
    yield from _linear(far, ((names.down, cfg.dim),), f"{near}down", cfg.mlp_dim, cfg.mlp_bias)
    if cfg.qk_norm is not None:
        full = cfg.qk_norm == "full"
        yield Piece(f"{far}{names.q_norm}.weight", f"{near}q_norm", 0, (cfg.q_dim if full else cfg.head_dim,))
        yield Piece(f"{far}{names.k_norm}.weight", f"{near}k_norm", 0, (cfg.kv_dim if full else cfg.head_dim,))


def _linear(far: str, parts: tuple[tuple[str, int], ...], ours: str, width: int, bias: bool) -> Iterator[Piece]:
    """The published matrices stacked in one of our projections, then their biases."""
    start = 0
    for name, rows in parts:
        yield Piece(f"{far}{name}.weight", f"{ours}.weight", start, (rows, width))
        if bias:
            yield Piece(f"{far}{name}.bias", f"{ours}.bias", start, (rows,))
        start += rows
