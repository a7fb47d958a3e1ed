"""Writes a trained model in the published format of its kind: config.json, model.safetensors, tokenizer, unmask.json.

Enters: the model, its objective, its weights and the tokenizer's files. Leaves: a directory that loads like a published
one: LLaDA, Dream (a LLaDA objective with shift), Fast-dLLM v2 or SDAR (block diffusion), Qwen2 or Llama. Block
diffusion with a causal context has no published format: it gets a model type of ours and Fast-dLLM v2's keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.core.errors import ConfigError
from unmask.models.backbone import Backbone, transformer_shape
from unmask.models.config import BiRWKVConfig, Shape, TransformerConfig
from unmask.models.context_causal import ARCHITECTURE, MODEL_TYPE
from unmask.models.family import find_family
from unmask.models.load import LoadedCheckpoint
from unmask.models.save import save_checkpoint
from unmask.train.objectives.block_diffusion import BlockDiffusion
from unmask.train.objectives.embedding_diffusion import EmbeddingDiffusion
from unmask.train.objectives.loss import Objective

Ids = tuple[int | None, int]
"""Mask id (None for autoregressive models) and EOS id."""


def export(
    model: Backbone,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    files: Mapping[str, bytes],
    out: Path,
    recommended: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    beside: bool = False,
) -> Path:
    """A checkpoint that replaces an older one in `out`; `beside`: file by file, whatever else is there stays.

    Args:
        config: config.json, as `published_config` makes it.
        weights: parameters by our names (the moving average, or the model's own).
        files: the tokenizer's, by name.
        recommended: decoding settings written into unmask.json.
    """
    files = dict(files)
    if recommended:
        files["unmask.json"] = (json.dumps({"recommended": dict(recommended)}, indent=2) + "\n").encode()
    return save_checkpoint(model, config, out, dtype, overwrite=True, files=files, merge=beside, parameters=weights)


def tokenizer_files(directory: Path) -> dict[str, bytes]:
    """The files of a tokenizer's directory by name, without those that belong to the model: weights, config, card."""
    own = {p for p in directory.iterdir() if p.is_file() and p.suffix not in {".safetensors", ".md", ".svg"}}
    skip = {"config.json", "generation_config.json", "unmask.json", "model.safetensors.index.json", "scores.json"}
    return {p.name: p.read_bytes() for p in sorted(own) if p.name not in skip}


def with_ends(parent: LoadedCheckpoint) -> dict[str, Any]:
    """config.json of a parent with every EOS id it stops at: instruct models name more in generation_config.json, which
    is no part of the formats written here.
    """
    ids = parent.traits.eos_ids
    return {**parent.config, "eos_token_id": ids[0] if len(ids) == 1 else list(ids)} if ids else parent.config


def _check_levels(cfg: Shape, objective: EmbeddingDiffusion) -> None:
    """A recurrent model is told levels, and samplers walk them, by the range in its config."""
    if not isinstance(cfg, BiRWKVConfig):
        raise ConfigError(f"objective {objective.kind}", expected="a birwkv model", got="a transformer")
    own = objective.range(cfg.vocab_size, cfg.embed_dim)
    if objective.mode != "token" and max(abs(a - b) for a, b in zip(own, cfg.levels, strict=True)) > 0.01:
        low, high = cfg.levels
        raise ConfigError(
            "objective.schedule",
            expected=f"levels from {low:.2f} to {high:.2f} nats, those of the checkpoint",
            got=f"{own[0]:.2f} to {own[1]:.2f} ({objective.schedule})",
            remedy=f'Use schedule "logsnr_linear(high={high:.4f}, low={low:.4f})" with centre: false.',
        )


def published_config(
    cfg: Shape, objective: Objective, ids: Ids, parent: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """config.json of the format that fits the objective.

    Args:
        parent: config.json of the checkpoint the run starts from; its other keys stay when the format is the same.

    Raises:
        ConfigError: a shape that the format cannot express.
    """
    parent = dict(parent or {})
    if isinstance(objective, EmbeddingDiffusion):
        _check_levels(cfg, objective)
        return {**parent, "diffusion_mode": objective.mode}
    cfg = transformer_shape(cfg, f"objective {objective.kind}")
    config = _of_kind(cfg, objective, ids, parent)
    contexts = {"Fast_dLLM_Qwen": "block", MODEL_TYPE: "causal"}
    before, now = (contexts.get(c.get("model_type", "")) for c in (parent, config))
    if before and now and before != now:
        raise ConfigError("objective.context", expected=f"{before}, as the checkpoint has it", got=now)
    if parent.get("model_type") == config["model_type"]:
        trained: dict[str, Any] = {k: config[k] for k in ("bd_size", "block_size") if k in config}
        config = {**config, **parent, "vocab_size": cfg.vocab_size, **trained}
    read = find_family(config).shape(config)
    if read != cfg:
        differ = ", ".join(f"{k} {v!r}" for k, v in vars(cfg).items() if v != getattr(read, k))
        raise ConfigError(
            f"the model's shape does not fit the {config['model_type']} format of objective {objective.kind}",
            expected=", ".join(f"{k} {v!r}" for k, v in vars(read).items() if v != getattr(cfg, k)),
            got=differ,
            remedy="choose the objective (kind, shift) of the checkpoint" if parent else "change these keys of model:",
        )
    return config


def _of_kind(cfg: TransformerConfig, objective: Objective, ids: Ids, parent: Mapping[str, Any]) -> dict[str, Any]:
    mask_id, eos_id = ids
    if objective.kind == "ar":
        names = ("qwen2", "Qwen2ForCausalLM") if cfg.qkv_bias else ("llama", "LlamaForCausalLM")
        return decoder_config(cfg, *names, eos_id, parent)
    assert mask_id is not None
    if objective.kind.startswith("llada"):
        if not objective.shift:
            ends = parent.get("eos_token_id")
            return llada_config(cfg, mask_id, eos_id) | ({} if ends is None else {"eos_token_id": ends})
        return decoder_config(cfg, "Dream", "DreamModel", eos_id, parent) | {"mask_token_id": mask_id}
    assert isinstance(objective, BlockDiffusion)
    own: dict[str, Any] = {"mask_token_id": mask_id}
    if objective.shift:
        published = ("Fast_dLLM_Qwen", "Fast_dLLM_QwenForCausalLM")
        names = published if objective.context == "block" else (MODEL_TYPE, ARCHITECTURE)
        own |= {"bd_size": objective.block}
    else:
        names = ("sdar", "SDARForCausalLM")
        own |= {"block_size": objective.block, "head_dim": cfg.head_dim}
    return decoder_config(cfg, *names, eos_id, parent) | own


def decoder_config(
    cfg: TransformerConfig, model_type: str, architecture: str, eos_id: int, parent: Mapping[str, Any]
) -> dict[str, Any]:
    """Keys that transformers' Qwen2 and Llama share, and the models adapted from them; ids as in the parent if it has
    them."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "attention_dropout": 0.0,
        "bos_token_id": parent.get("bos_token_id"),
        "eos_token_id": parent.get("eos_token_id", eos_id),
        "hidden_act": "silu",
        "hidden_size": cfg.dim,
        "initializer_range": 0.02,
        "intermediate_size": cfg.mlp_dim,
        "max_position_embeddings": cfg.max_len,
        "max_window_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_hidden_layers": cfg.layers,
        "num_key_value_heads": cfg.kv_heads,
        "pad_token_id": parent.get("pad_token_id", eos_id),
        "rms_norm_eps": cfg.norm_eps,
        "rope_scaling": None,
        "rope_theta": cfg.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": cfg.tied,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": cfg.vocab_size,
    }


def llada_config(cfg: TransformerConfig, mask_id: int, eos_id: int) -> dict[str, Any]:
    """config.json with the published key names."""
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": cfg.dim,
        "n_heads": cfg.heads,
        "n_kv_heads": cfg.kv_heads,
        "n_layers": cfg.layers,
        "mlp_hidden_size": cfg.mlp_dim,
        "activation_type": "silu",
        "block_type": "llama",
        "block_group_size": 1,
        "layer_norm_type": "rms",
        "rms_norm_eps": cfg.norm_eps,
        "layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "attention_layer_norm": cfg.qk_norm == "full",
        "attention_layer_norm_with_affine": True,
        "rope": True,
        "rope_theta": cfg.rope_theta,
        "rope_full_precision": cfg.rope_float32,
        "alibi": False,
        "max_sequence_length": cfg.max_len,
        "vocab_size": cfg.vocab_size,
        "embedding_size": cfg.vocab_size,
        "weight_tying": cfg.tied,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "scale_logits": False,
        "attention_dropout": 0.0,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "mask_token_id": mask_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
    }
