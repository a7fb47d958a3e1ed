"""Checkpoint directories with random weights and a small tokenizer: LLaDA, Dream, Fast-dLLM v2 and Qwen2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_tokenizers
import torch

from unmask.models.save import save_checkpoint
from unmask.models.shapes import random_from_config
from unmask.text.codec import Codec

MAX_LEN = 128


def llada_checkpoint(path: Path, seed: int = 0, **changes: Any) -> Path:
    """Like LLaDA Instruct: chat template, mask id inside the vocabulary."""
    codec = Codec.from_dir(tiny_tokenizers.llada_dir(path))
    config = {
        "model_type": "llada", "architectures": ["LLaDAModelLM"], "activation_type": "silu", "block_type": "llama",
        "layer_norm_type": "rms", "rms_norm_eps": 1e-5, "rope": True, "rope_theta": 500_000.0, "weight_tying": False,
        "d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 64,
        "max_sequence_length": MAX_LEN, "vocab_size": codec.size, "embedding_size": codec.size,
        "mask_token_id": codec.token_id("<|mdm_mask|>"), "eos_token_id": codec.token_id("<|endoftext|>"),
        "pad_token_id": codec.token_id("<|endoftext|>"), **changes,
    }  # fmt: skip
    return _write(path, config, seed)


def dream_checkpoint(path: Path, seed: int = 0) -> Path:
    """Like Dream Instruct: vocab.json + merges.txt, shift 1."""
    codec = Codec.from_dir(tiny_tokenizers.dream_dir(path))
    config = {
        "model_type": "Dream", "architectures": ["DreamModel"], "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "rope_scaling": None, "tie_word_embeddings": False, "use_sliding_window": False,
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": MAX_LEN, "vocab_size": codec.size,
        "mask_token_id": codec.token_id("<|mask|>"), "eos_token_id": codec.token_id("<|endoftext|>"),
        "pad_token_id": codec.token_id("<|endoftext|>"), "bos_token_id": codec.token_id("<|endoftext|>"),
    }  # fmt: skip
    return _write(path, config, seed)


def qwen2_checkpoint(path: Path, seed: int = 0) -> Path:
    """An autoregressive one."""
    codec = Codec.from_dir(tiny_tokenizers.dream_dir(path, "Qwen2Tokenizer"))
    config = {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "tie_word_embeddings": True, "use_sliding_window": False, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": MAX_LEN, "vocab_size": codec.size, "eos_token_id": codec.token_id("<|endoftext|>"),
    }  # fmt: skip
    return _write(path, config, seed)


def v2_checkpoint(path: Path, seed: int = 0, **changes: Any) -> Path:
    """Like Fast-dLLM v2: Qwen2 shapes in blocks of 8; the mask id only in the tokenizer, as published."""
    tiny_tokenizers.dream_dir(path, "Qwen2Tokenizer")
    table = path / "tokenizer_config.json"
    table.write_text(table.read_text("utf-8").replace("<|mask|>", "|<MASK>|"), "utf-8")
    codec = Codec.from_dir(path)
    config = {
        "model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True, "use_sliding_window": False,
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": MAX_LEN, "vocab_size": codec.size, "bd_size": 8,
        "eos_token_id": codec.token_id("<|im_end|>"), "pad_token_id": codec.token_id("<|endoftext|>"), **changes,
    }  # fmt: skip
    return _write(path, config, seed)


def _write(path: Path, config: dict[str, Any], seed: int) -> Path:
    model = random_from_config(config, seed, torch.float32, "cpu")
    save_checkpoint(model, config, path, merge=True)
    assert json.loads((path / "config.json").read_text())["model_type"] == config["model_type"]
    return path
