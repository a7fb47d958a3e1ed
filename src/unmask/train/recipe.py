"""Recipes: one YAML file that says everything a training run depends on.

Enters: a path and overrides ("optim.lr=0.001"). Leaves: a `Recipe` of typed, checked dataclasses. The first comment
line of a recipe is its claim, its command and how long it takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from unmask.core.errors import ConfigError
from unmask.models import birwkv
from unmask.models.config import BiRWKVConfig, TransformerConfig
from unmask.models.recommend import check_own
from unmask.train.config import build
from unmask.train.data import Data
from unmask.train.lora import LoraConfig
from unmask.train.objectives.autoregressive import Autoregressive
from unmask.train.objectives.block_diffusion import BlockDiffusion
from unmask.train.objectives.embedding_diffusion import EmbeddingDiffusion
from unmask.train.objectives.llada import LladaPretrain, LladaSft
from unmask.train.optim import OptimConfig
from unmask.train.tokenizer import SMALLEST, read_text
from unmask.train.validate import ValidateConfig


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer directory (`path`), or one trained on the run's own data: `vocab_size` entries from `samples`
    items.
    """

    path: Path | None = None
    vocab_size: int = 1024
    samples: int = 20_000

    def __post_init__(self) -> None:
        if self.path is None and self.vocab_size < SMALLEST:
            got = str(self.vocab_size)
            raise ConfigError("tokenizer.vocab_size is out of range", expected=f"{SMALLEST} or more", got=got)
        if self.samples < 1:
            raise ConfigError("tokenizer.samples is out of range", expected="1 or more", got=str(self.samples))


@dataclass(frozen=True)
class FineTuneConfig:
    """Weights to start from: a checkpoint directory or hub id, with its own shape and tokenizer.

    Args:
        lora: train low-rank adapters instead of all weights; the exported model has them folded in.
    """

    path: str
    revision: str | None = None
    lora: LoraConfig | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a new model. `vocab_size` None takes the tokenizer's size rounded up to a multiple of 64.

    The exported format follows from the objective: LLaDA has no biases and rotates in float32; autoregressive models,
    and the Dream and Fast-dLLM v2 models adapted from them, rotate in the hidden dtype (`rope_float32: false`) and, as
    Qwen2 does, have biases on q, k and v (`qkv_bias: true`).
    """

    dim: int
    layers: int
    heads: int
    mlp_dim: int
    kv_heads: int | None = None
    vocab_size: int | None = None
    qk_norm: Literal["head", "full"] | None = None
    tied: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    max_len: int = 1024
    init_std: float = 0.02
    qkv_bias: bool = False
    rope_float32: bool = True

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "mlp_dim", "max_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is out of range", expected="1 or more", got=str(getattr(self, name)))
        if self.dim % self.heads or self.dim // self.heads % 2:
            raise ConfigError(f"model.dim {self.dim} does not split into {self.heads} heads of even width")
        for name in ("norm_eps", "rope_theta", "init_std"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"model.{name} is out of range", expected="above 0", got=str(getattr(self, name)))
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ConfigError("model.kv_heads must divide model.heads", got=f"{self.kv_heads} and {self.heads}")

    def transformer(self, tokens: int) -> TransformerConfig:
        """The backbone's config for a tokenizer of `tokens` entries."""
        vocab = self.vocab_size or -(-tokens // 64) * 64
        if vocab < tokens:
            raise ConfigError(
                "model.vocab_size is too small", expected=f"at least {tokens} (the tokenizer)", got=str(vocab)
            )
        return TransformerConfig(
            vocab_size=vocab,
            dim=self.dim,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            head_dim=self.dim // self.heads,
            mlp_dim=self.mlp_dim,
            norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
            qk_norm=self.qk_norm,
            qkv_bias=self.qkv_bias,
            rope_float32=self.rope_float32,
            tied=self.tied,
            max_len=self.max_len,
        )


@dataclass(frozen=True)
class BiRWKVModelConfig:
    """Shape of a new recurrent model, by the names of the published ModelConfig; see `BiRWKVConfig` for the others.

    Args:
        d_model, n_layers: width and depth. mlp_ratio: of the feed-forward part; mlp_hidden_size wins over it.
        embedding_dim: size of a token's vector; None is d_model (small ones learn faster: 16 to 128).
        prediction_type: what mode D's head says. max_sequence_length: longest context.
        vocab_size: None takes the tokenizer's size rounded up to a multiple of 64.
    """

    d_model: int = 1024
    n_layers: int = 24
    mlp_ratio: float = 2.5
    mlp_hidden_size: int | None = None
    max_sequence_length: int = 2048
    vocab_size: int | None = None
    embedding_dim: int | None = None
    prediction_type: Literal["sample", "epsilon", "v_prediction"] = "sample"
    num_diffusion_steps: int = 1000
    mixer: Literal["biwkv", "attention"] = "biwkv"
    attention_every: int = 0
    n_heads: int | None = None
    conditioning: Literal["adaln", "origin"] = "adaln"
    ff_gate: Literal["after", "hidden"] = "after"
    position_embedding: bool = False
    weight_tying: bool = True
    key_cap: float | None = 12.0
    bayes_evidence: bool = True
    embedding_dropout: float = 0.0
    training_noise: bool = False
    rms_norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "max_sequence_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is out of range", expected="1 or more", got=str(getattr(self, name)))
        for name in ("mlp_ratio", "rms_norm_eps", "init_std"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"model.{name} is out of range", expected="above 0", got=str(getattr(self, name)))

    @property
    def max_len(self) -> int:
        """As in the other models' section."""
        return self.max_sequence_length

    def published(self, tokens: int, objective: EmbeddingDiffusion, ids: tuple[int, int]) -> dict[str, Any]:
        """config.json for a tokenizer of `tokens` entries.

        Args:
            objective: says which levels are trained, and in which mode. ids: of the mask and of the end.
        """
        vocab = self.vocab_size or -(-tokens // 64) * 64
        if vocab < tokens:
            expected = f"at least {tokens} (the tokenizer)"
            raise ConfigError("model.vocab_size is too small", expected=expected, got=str(vocab))
        wide = self.embedding_dim or self.d_model
        own = {k: v for k, v in vars(self).items() if k not in ("prediction_type", "num_diffusion_steps", "init_std")}
        return {
            "architectures": [birwkv.ARCHITECTURE],
            "model_type": birwkv.MODEL_TYPE,
            **own,
            "vocab_size": vocab,
            "embedding_dim": wide,
            "normalised_embedding": True,
            "scale_logits": self.conditioning == "origin",  # rows of norm sqrt(d_model) speak directly there
            "logsnr_range": [round(level, 6) for level in objective.range(vocab, wide)],
            "diffusion": {"prediction_type": self.prediction_type, "num_diffusion_steps": self.num_diffusion_steps},
            "diffusion_mode": objective.mode,
            "mask_token_id": ids[0],
            "eos_token_id": ids[1],
            "pad_token_id": ids[1],
        }

    def shape(self, config: Mapping[str, Any]) -> BiRWKVConfig:
        """The backbone of a config made by `published`."""
        return birwkv.shape_of(config)


@dataclass(frozen=True)
class RunConfig:
    """The loop.

    Args:
        steps: optimiser steps in all.
        accumulate: micro-batches summed into one step.
        precision: "bf16" autocast or "fp32".
        checkpointing: recompute layer activations in the backward pass.
        compile: fuse pointwise work by torch.compile (needs a C++ compiler on the CPU).
        ema: decay of the moving average of the weights, 0 for none; with one, validation and export use it.
        device: "auto" is cuda, mps, cpu in this order.
        threads: CPU threads, 0 leaves torch's choice.
        skip_bad: steps whose gradient is not finite are left out, up to so many in a run; 0 ends the run at the first.
        log_every, save_every: in steps. keep: checkpoints kept beside the best one.
        tensorboard: also write TensorBoard files (extra `train`).
        export: numbers of the exported weights.
    """

    steps: int
    accumulate: int = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpointing: bool = False
    compile: bool = False
    ema: float = 0.0
    device: str = "auto"
    threads: int = 0
    skip_bad: int = 0
    log_every: int = 50
    save_every: int = 500
    keep: int = 2
    tensorboard: bool = False
    export: Literal["bf16", "fp16", "fp32"] = "bf16"

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"run.{name} is out of range", expected="1 or more", got=str(getattr(self, name)))
        if not 0 <= self.skip_bad <= 1000:
            raise ConfigError("run.skip_bad is out of range", expected="0 to 1000", got=str(self.skip_bad))
        if not 0 <= self.threads <= 1024:
            raise ConfigError("run.threads is out of range", expected="0 to 1024", got=str(self.threads))
        if not 0.0 <= self.ema < 1.0:
            raise ConfigError("run.ema is out of range", expected="0 <= ema < 1", got=str(self.ema))


AnyObjective = LladaSft | LladaPretrain | Autoregressive | BlockDiffusion | EmbeddingDiffusion


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on.

    Args:
        recommended: decoding settings that go with the exported model (its unmask.json).
    """

    name: str
    model: ModelConfig | BiRWKVModelConfig | FineTuneConfig
    data: Data
    objective: AnyObjective
    run: RunConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    validate: ValidateConfig | None = None
    recommended: Mapping[str, Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.name or self.name != Path(self.name).name:
            raise ConfigError("name is the folder of the run", expected="a plain file name", got=repr(self.name))
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError("seed is out of range", expected="0 to 2^63 - 1", got=str(self.seed))
        if self.recommended is not None:
            check_own(self.recommended, "recommended")
        recurrent, objective = isinstance(self.model, BiRWKVModelConfig), isinstance(self.objective, EmbeddingDiffusion)
        if not isinstance(self.model, FineTuneConfig) and recurrent != objective:
            expected = "embedding-diffusion with a birwkv model (d_model, n_layers ...), another one with a transformer"
            raise ConfigError("objective.kind does not fit the model", expected=expected, got=self.objective.kind)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe; `overrides` are "section.key=value" with YAML values and win over the file."""
    return build(Recipe, read_raw(Path(path), overrides), "")


def read_raw(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe as plain YAML values, overrides applied; what the run directory keeps."""
    text = read_text(path)
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"{path} is not valid YAML", got=" ".join(str(e).split())) from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} is not a recipe", expected="sections like model:, data:, run:")
    for item in overrides:
        override(raw, item)
    return raw


def override(raw: dict[str, Any], item: str) -> None:
    """Sets "section.key=value" in a raw recipe."""
    name, sign, text = item.partition("=")
    if not sign or not name:
        raise ConfigError(f"cannot read the override {item!r}", expected="section.key=value")
    *path, last = name.split(".")
    at = raw
    for part in path:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise ConfigError(f"cannot set {name}: {part} is not a section")
    try:
        at[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"cannot read the value of {item!r}", expected="a YAML value") from None
