"""An autoregressive checkpoint as the start of a block-diffusion model.

Enters: a parent (directory or hub id) and the wanted block size. Leaves: a checkpoint directory in the child's
published format whose weights are the parent's, with a mask token, ready to train; and the recipe of that training.
Nothing here trains: the Trainer does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unmask.core.errors import ConfigError
from unmask.core.types import BlockCausal
from unmask.models.backbone import transformer_of
from unmask.models.load import LoadedCheckpoint, load_model
from unmask.models.save import save_checkpoint
from unmask.models.transformer import Transformer
from unmask.text.codec import Codec
from unmask.text.mask_token import MASK_TOKEN
from unmask.train.config import build
from unmask.train.export import published_config, with_ends
from unmask.train.mask_token import with_mask_token
from unmask.train.objectives.block_diffusion import BlockDiffusion
from unmask.train.recipe import FineTuneConfig, Recipe

STORED = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
SAMPLED = 20  # batches whose mean length turns tokens into steps

DEFAULTS: dict[str, Any] = {
    "optim": {"kind": "adamw", "lr": 2e-5, "betas": [0.9, 0.999], "weight_decay": 0.0, "warmup": 50, "schedule": "wsd"},
    "run": {"save_every": 200, "log_every": 10},
}
"""What a recipe for `unmask adapt` has when nothing is said: Fast-dLLM v2's optimiser, at the scale of one machine."""


@dataclass(frozen=True)
class Start:
    """The child before training. mask_id: of its mask token; stored: dtype of the parent's files in recipe words."""

    path: Path
    mask_id: int
    stored: str


def make_start(
    parent: str | Path, objective: BlockDiffusion, out: Path, revision: str | None = None, mask_token: str = MASK_TOKEN
) -> Start:
    """Writes `out`: the parent in the child's format. An earlier one of the same block size is used again.

    Raises:
        ConfigError: a parent that is no autoregressive model, has no tokenizer, or a shape the format cannot hold.
        CheckpointError: a parent that cannot be read.
    """
    if (out / "config.json").is_file():
        found = load_model(out, dtype="fp32", device="cpu")
        assert found.traits.mask_id is not None
        attention = found.traits.attention
        wanted = BlockCausal(objective.block, objective.context)
        if isinstance(attention, BlockCausal) and attention.size == wanted.size and attention != wanted:
            expected = f"{attention.context}, as in {out}"
            raise ConfigError("objective.context (--context)", expected=expected, got=wanted.context)
        if attention != wanted:
            size = attention.size if isinstance(attention, BlockCausal) else "none"
            raise ConfigError("objective.block (--block)", expected=f"{size}, as in {out}", got=str(objective.block))
        return Start(out, found.traits.mask_id, STORED[found.stored[0]])
    found = load_model(parent, revision, torch.float32, "cpu")
    _check_parent(found, parent)
    assert found.tokenizer_dir is not None
    made = with_mask_token(transformer_of(found.model, "adapt"), found.tokenizer_dir, mask_token, config=found.config)
    model = _with_biases(made.model) if objective.shift else made.model
    config = published_config(model.cfg, objective, (made.mask_id, _eos(found)), _with_ends(found))
    stored = STORED[found.stored[0]] if len(found.stored) == 1 else "fp32"
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    save_checkpoint(model, config, out, dtypes[stored], files=made.files)
    return Start(out, made.mask_id, stored)


def _check_parent(found: LoadedCheckpoint, parent: str | Path) -> None:
    if found.traits.mask_id is not None:
        remedy = "Train it further with `unmask train` (model: {path: ...})."
        raise ConfigError(
            f"parent {parent}", expected="an autoregressive checkpoint", got=f"a {found.family.name} one", remedy=remedy
        )
    if found.tokenizer_dir is None:
        raise ConfigError(f"parent {parent}", expected="tokenizer files beside the weights", got="none")


def _eos(found: LoadedCheckpoint) -> int:
    if found.traits.eos_ids:
        return found.traits.eos_ids[0]
    assert found.tokenizer_dir is not None
    own = Codec.from_dir(found.tokenizer_dir).named("eos_token")
    if own is None:
        raise ConfigError(f"{found.path}", expected="an eos_token_id in config.json", got="none")
    return own


def _with_ends(found: LoadedCheckpoint) -> dict[str, Any]:
    """The parent's config with every EOS id it stops at, and a pad id."""
    config = with_ends(found)
    if not found.traits.eos_ids:
        config = {**config, "eos_token_id": _eos(found)}
    return config if config.get("pad_token_id") is not None else {**config, "pad_token_id": _eos(found)}


def _with_biases(model: Transformer) -> Transformer:
    """Fast-dLLM v2's format has biases on q, k and v; a parent without gets zeros, which change nothing."""
    if model.cfg.qkv_bias:
        return model
    out = Transformer(dataclasses.replace(model.cfg, qkv_bias=True))
    state = dict(model.state_dict())
    for name, p in out.named_parameters():
        if name.endswith("qkv.bias"):
            state[name] = torch.zeros_like(p)
    out.load_state_dict(state)
    return out


def recipe_of(raw: Mapping[str, Any], start: Start, tokens: int | None = None) -> Recipe:
    """The training of an adaptation.

    Args:
        raw: a recipe without its model section; optim and run are filled from DEFAULTS, key by key.
        tokens: data tokens to train on, instead of run.steps; the mean length of the first batches decides the steps.

    Raises:
        ConfigError: a model section, no length of training, or anything a recipe refuses.
    """
    if "model" in raw:
        raise ConfigError("the recipe of an adaptation", expected="no model: section", got="one", remedy="remove it")
    whole = {k: dict(v) if isinstance(v, Mapping) else v for k, v in raw.items()}
    for section, values in DEFAULTS.items():
        whole[section] = {**values, **whole.get(section, {})}
    run = whole["run"]
    if (tokens is None) == ("steps" not in run):
        got = "neither" if tokens is None else "both"
        raise ConfigError("the length of the training", expected="run.steps or tokens, one of them", got=got)
    run.setdefault("steps", 1)
    run.setdefault("export", start.stored)
    lora = whole.pop("lora", None)
    whole["model"] = {"path": str(start.path)} | ({"lora": lora} if lora is not None else {})
    recipe = build(Recipe, whole, "")
    if tokens is None:
        return recipe
    return dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, steps=steps_for(recipe, tokens)))


def steps_for(recipe: Recipe, tokens: int) -> int:
    """Optimiser steps that see about so many data tokens."""
    assert isinstance(recipe.model, FineTuneConfig)
    stream = recipe.data.open(recipe.seed, recipe.run.accumulate)
    stream.bind(Codec.from_dir(recipe.tokenizer.path or recipe.model.path))
    mean = sum(stream.next().tokens for _ in range(SAMPLED)) / SAMPLED
    return max(1, math.ceil(tokens / (mean * recipe.run.accumulate)))
