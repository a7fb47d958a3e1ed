"""Fast-dLLM v2 (block diffusion adapted from Qwen2.5): config mapping, traits and recommended settings.

Source: the published `Fast_dLLM_QwenForCausalLM` format and arXiv 2509.26328. The decoder and its tensors are Qwen2's;
what differs is the mask (bidirectional inside a block of `bd_size` tokens, causal over blocks, prompt included) and the
mask token. The head keeps the autoregressive shift.
"""

from __future__ import annotations

from dataclasses import replace

from unmask.core.types import Traits
from unmask.models.config import TransformerConfig
from unmask.models.family import Config, Family, Recommended
from unmask.models.llama import NAMES, block_size, block_traits, decoder
from unmask.models.settings import ConfigReader

DEFAULTS: dict[str, object] = {
    "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False, "use_sliding_window": False,
    "sliding_window": 4096, "bd_size": None, "mask_token_id": None, "pad_token_id": None, "eos_token_id": None,
}  # fmt: skip

BLOCK, SUB_BLOCK = 32, 8
"""Block size and sub-block size of the published checkpoints; the block of a checkpoint is its own `bd_size`."""


def shape_of(config: Config) -> TransformerConfig:
    """The backbone of a Fast-dLLM v2 config: Qwen2's, with its block size checked."""
    r = ConfigReader(config, DEFAULTS)
    block_size(r, "bd_size", BLOCK)
    return decoder(r, qkv_bias=True)


def traits(config: Config) -> Traits:
    """Block-causal attention and shift 1; without `mask_token_id` the loader asks the tokenizer for `|<MASK>|`."""
    r = ConfigReader(config, DEFAULTS)
    mask_id = r.token_or_none("mask_token_id", r.count("vocab_size", 2))
    return block_traits(r, block_size(r, "bd_size", BLOCK), mask_id, 1)


def recommended(config: Config, chat: bool, max_tokens: int) -> Recommended:
    """Sub-blocks, threshold 0.9 and the exact block cache."""
    size = config.get("bd_size") or BLOCK
    length = next(n for n in range(min(SUB_BLOCK, size), 0, -1) if size % n == 0)
    base = Recommended(
        f"blocks({length})", "threshold(0.9)", "block", max_tokens, max_tokens, length,
        note=f"Sub-blocks of {length} inside the model's blocks; finished blocks are kept exactly.",
    )  # fmt: skip
    paper = replace(base, policy="threshold(1.0)", note="As in the paper's tables: one token per forward.")
    note = "Large batches: inside a block only the open sub-block is computed again (approximate)."
    return replace(base, alternatives={"paper": paper, "sub-block": replace(base, cache="sub_block", note=note)})


FAMILY = Family(
    name="Fast-dLLM v2",
    model_type="Fast_dLLM_Qwen",
    architecture="Fast_dLLM_QwenForCausalLM",
    names=NAMES,
    shape=shape_of,
    traits=traits,
    recommended=recommended,
    turn_end=("<|im_end|>",),
    mask_token="|<MASK>|",
    kind="block",
    known_issues=(
        "The published sampler never shows a prompt of exactly one block to the model (profile `fast-dllm-v2`).",
        "Its max_new_tokens counts blocks: the answer ends with a block, one token past it (profile `fast-dllm-v2`).",
    ),
)
