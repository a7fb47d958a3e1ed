"""Tiny published configs and checkpoints of every family, built on the spot with random weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from unmask.models.save import save_checkpoint
from unmask.models.shapes import random_from_config

LLADA: dict[str, Any] = {
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "activation_type": "silu", "block_type": "llama",
    "layer_norm_type": "rms", "rope": True, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4,
    "mlp_hidden_size": 48, "vocab_size": 64, "embedding_size": 64, "weight_tying": False, "max_sequence_length": 256,
    "mask_token_id": 60, "eos_token_id": 61, "pad_token_id": 61, "rope_theta": 500000.0,
}  # fmt: skip
DREAM: dict[str, Any] = {
    "model_type": "Dream", "architectures": ["DreamModel"], "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    "max_position_embeddings": 512, "mask_token_id": 60, "eos_token_id": 61, "pad_token_id": 61,
}  # fmt: skip
QWEN2: dict[str, Any] = {k: v for k, v in DREAM.items() if k != "mask_token_id"} | {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True,
}  # fmt: skip
LLAMA: dict[str, Any] = QWEN2 | {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True,
}  # fmt: skip
FAST_DLLM: dict[str, Any] = DREAM | {
    "model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": 8,
}  # fmt: skip
CONTEXT_CAUSAL: dict[str, Any] = FAST_DLLM | {
    "model_type": "unmask_context_causal", "architectures": ["ContextCausalForCausalLM"],
}  # fmt: skip
SDAR: dict[str, Any] = DREAM | {
    "model_type": "sdar", "architectures": ["SDARForCausalLM"], "block_size": 4, "head_dim": 16,
}  # fmt: skip
CONFIGS = {
    "llada": LLADA,
    "llada-tied-mqa": LLADA | {"weight_tying": True, "n_kv_heads": None, "multi_query_attention": True},
    "llada-bias-norm": LLADA | {"include_qkv_bias": True, "attention_layer_norm": True, "n_kv_heads": 2},
    "dream": DREAM,
    "fast-dllm-v2": FAST_DLLM,
    "context-causal": CONTEXT_CAUSAL,
    "sdar": SDAR,
    "qwen2": QWEN2,
    "llama": LLAMA,
}


def build(directory: Path, config: dict[str, Any] = LLADA, seed: int = 0, dtype: str = "fp32", **options: Any) -> Path:
    """A checkpoint of that config; every one-dimensional parameter is random too, so that nothing hides in ones."""
    model = random_from_config(config, seed, dtype, "cpu")
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * parameter.data.new_tensor(range(len(parameter))).sin()

    return save_checkpoint(model, config, directory, **options)


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}), encoding="utf-8")


def read_raw(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and body of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_raw(path: Path, header: dict[str, Any], body: bytes) -> None:
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
