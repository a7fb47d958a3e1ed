"""Writes a trained model as a LLaDA-format checkpoint: config.json, model.safetensors (bf16), tokenizer files.

Enters: the backbone's config and weights. Leaves: a directory that loads like a published LLaDA checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from unmask.core.errors import RunError
from unmask.models.transformer import TransformerConfig
from unmask.train.checkpoint import sync, write_json
from unmask.train.tokenizer import EOS, MASK


def export(cfg: TransformerConfig, weights: Mapping[str, Tensor], tokenizer: Path, out: Path) -> Path:
    """Writes everything beside `out` first and then takes its place."""
    temp = out.with_name(f".writing-{out.name}")
    try:
        shutil.rmtree(temp, ignore_errors=True)
        shutil.copytree(tokenizer, temp)
        write_json(temp / "config.json", llada_config(cfg, Tokenizer.from_file(str(tokenizer / "tokenizer.json"))))
        save_file(llada_tensors(cfg, weights), temp / "model.safetensors", metadata={"format": "pt"})
        sync(temp / "model.safetensors")
        shutil.rmtree(out, ignore_errors=True)
        os.replace(temp, out)
    except OSError as e:
        shutil.rmtree(temp, ignore_errors=True)
        raise RunError(f"could not write the model to {out}: {e}") from e
    return out


def llada_config(cfg: TransformerConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json with the published key names."""
    eos, mask = tokenizer.token_to_id(EOS), tokenizer.token_to_id(MASK)
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": cfg.dim,
        "n_heads": cfg.heads,
        "n_kv_heads": cfg.kv_heads,
        "n_layers": cfg.layers,
        "mlp_hidden_size": cfg.mlp_dim,
        "mlp_ratio": 4,
        "activation_type": "silu",
        "block_type": "llama",
        "block_group_size": 1,
        "layer_norm_type": "rms",
        "rms_norm_eps": cfg.norm_eps,
        "layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "attention_layer_norm": cfg.qk_norm == "full",
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
        "mask_token_id": mask,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "torch_dtype": "bfloat16",
    }


def llada_tensors(cfg: TransformerConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names; fused projections are taken apart."""
    out = {"model.transformer.wte.weight": weights["embed.weight"], "model.transformer.ln_f.weight": weights["final_norm"]}
    if not cfg.tied:
        out["model.transformer.ff_out.weight"] = weights["head.weight"]
    for i in range(cfg.layers):
        mine, theirs = f"layers.{i}.", f"model.transformer.blocks.{i}."
        q, k, v = weights[mine + "qkv.weight"].split((cfg.q_dim, cfg.kv_dim, cfg.kv_dim))
        gate, up = weights[mine + "gate_up.weight"].chunk(2)
        parts = {
            "attn_norm": weights[mine + "attn_norm"], "ff_norm": weights[mine + "mlp_norm"],
            "q_proj": q, "k_proj": k, "v_proj": v, "attn_out": weights[mine + "out.weight"],
            "ff_proj": gate, "up_proj": up, "ff_out": weights[mine + "down.weight"],
        }  # fmt: skip
        if cfg.qk_norm is not None:
            parts |= {"q_norm": weights[mine + "q_norm"], "k_norm": weights[mine + "k_norm"]}
        out |= {f"{theirs}{name}.weight": t for name, t in parts.items()}
    return {k: v.detach().to(torch.bfloat16).contiguous().cpu().clone() for k, v in out.items()}
