"""Named shapes with random weights, for benchmarks, plans and tests that need no checkpoint.

The mid shapes are the field's common yardstick on small machines; the full ones are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch

from unmask.core import errors
from unmask.models.backbone import Backbone, empty_model
from unmask.models.birwkv_net import BiRWKV
from unmask.models.family import find_family
from unmask.ops.placement import pick_device, pick_dtype

_LLADA: dict[str, Any] = {
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "activation_type": "silu", "block_type": "llama",
    "layer_norm_type": "rms", "rms_norm_eps": 1e-5, "rope": True, "rope_theta": 500_000.0, "weight_tying": False,
    "max_sequence_length": 4096, "vocab_size": 126_464, "embedding_size": 126_464, "mask_token_id": 126_336,
    "eos_token_id": 126_081, "pad_token_id": 126_081,
}  # fmt: skip
_DREAM: dict[str, Any] = {
    "model_type": "Dream", "architectures": ["DreamModel"], "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0, "rope_scaling": None, "tie_word_embeddings": False, "max_position_embeddings": 131_072,
    "use_sliding_window": False, "vocab_size": 152_064, "mask_token_id": 151_666, "eos_token_id": 151_643,
    "pad_token_id": 151_643, "bos_token_id": 151_643,
}  # fmt: skip
_DREAM_MID = _DREAM | {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16,
    "num_key_value_heads": 4,
}  # fmt: skip

_V2_MID = _DREAM_MID | {
    "model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "max_position_embeddings": 32_768,
    "bd_size": 32, "mask_token_id": 151_665, "eos_token_id": 151_645, "pad_token_id": 151_643,
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "llada-mid": _LLADA | {"d_model": 1024, "n_layers": 12, "n_heads": 16, "n_kv_heads": 16, "mlp_hidden_size": 2816},
    "dream-mid": _DREAM_MID,
    "v2-mid": _V2_MID,
    "llada-8b": _LLADA | {"d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": 12_288},
    "dream-7b": _DREAM
    | {
        "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}  # fmt: skip

LAYER_KEYS = {"llada": "n_layers", "Dream": "num_hidden_layers", "Fast_dLLM_Qwen": "num_hidden_layers"}


def shape_config(shape: str, vocab: int | None = None, layers: int | None = None) -> dict[str, Any]:
    """The published config of a named shape, with another vocabulary or depth if asked for.

    With another vocabulary the special ids move to its end (mask last, EOS before it).

    Raises:
        InputError: unknown shape, or a vocabulary or depth below 4 or 1.
    """
    if shape not in SHAPES:
        raise errors.InputError("shape", expected=f"one of: {', '.join(SHAPES)}", got=repr(shape))
    config = dict(SHAPES[shape])
    if layers is not None:
        config[LAYER_KEYS[config["model_type"]]] = _at_least("layers", layers, 1)
    if vocab is not None:
        rows = _at_least("vocab", vocab, 4)
        config |= {"vocab_size": rows, "mask_token_id": rows - 1, "eos_token_id": rows - 2, "pad_token_id": rows - 2}
        if "embedding_size" in config:
            config["embedding_size"] = rows
    return config


def _at_least(what: str, value: int, low: int) -> int:
    if value < low:
        raise errors.InputError(what, expected=f"an integer from {low}", got=str(value))
    return value


def random_model(
    shape: str,
    seed: int = 0,
    vocab: int | None = None,
    layers: int | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
) -> tuple[Backbone, dict[str, Any]]:
    """A model of a named shape with random weights, and its published config; bf16 by default where supported."""
    config = shape_config(shape, vocab, layers)
    return random_from_config(config, seed, dtype, device), config


def random_from_config(
    config: dict[str, Any], seed: int = 0, dtype: str | torch.dtype = "auto", device: str | torch.device = "auto"
) -> Backbone:
    """Random weights for any published config, in evaluation mode; the same seed gives the same weights per dtype."""
    place = pick_device(device)
    model = empty_model(find_family(config).shape(config), pick_dtype(dtype, place, True), place)
    randomise(model, seed)
    return model.eval()


def randomise(model: Backbone, seed: int, std: float = 0.02) -> None:
    """Normal(0, std) in place for matrices, biases 0, norms 1: no second copy of a parameter is made. A recurrent model
    begins as its own rule says."""
    if isinstance(model, BiRWKV):
        model.init_weights(seed)
        return
    generator = torch.Generator(device=model.head_weight.device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, std, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
