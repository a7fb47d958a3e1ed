"""Writes a trained model as a LLaDA-format checkpoint: config.json, model.safetensors, tokenizer files, unmask.json.

Enters: the model, its weights and the tokenizer's directory. Leaves: a directory that loads like a published LLaDA.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.models.config import TransformerConfig
from unmask.models.save import save_checkpoint
from unmask.models.transformer import Transformer


def export(
    model: Transformer,
    weights: Mapping[str, Tensor],
    ids: tuple[int, int],
    tokenizer: Path,
    out: Path,
    recommended: Mapping[str, Any] | None = None,
) -> Path:
    """A checkpoint in bf16 that replaces an older one in `out`.

    Args:
        weights: parameters by our names (the moving average, or the model's own). ids: mask and EOS id.
        recommended: decoding settings written into unmask.json.
    """
    files = {p.name: p.read_bytes() for p in sorted(tokenizer.iterdir()) if p.is_file()}
    if recommended:
        files["unmask.json"] = (json.dumps({"recommended": dict(recommended)}, indent=2) + "\n").encode()
    config = llada_config(model.cfg, *ids)
    return save_checkpoint(model, config, out, torch.bfloat16, overwrite=True, files=files, parameters=weights)


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
