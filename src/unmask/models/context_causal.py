"""Context-causal block diffusion: an autoregressive model's cache, a block seen from both sides only while it is open.

Source: NBDiff (openreview 5gzBAI8Li7), the context-causal path. The decoder and its tensors are Qwen2's and the keys
are those of Fast-dLLM v2; the model type is our own, because code that reads `Fast_dLLM_Qwen` would see finished blocks
from both sides and answer differently. Made by `unmask adapt` with `objective.context: causal`.
"""

from __future__ import annotations

from dataclasses import replace

from unmask.core.types import BlockCausal, Traits
from unmask.models import fast_dllm
from unmask.models.family import Config, Family, Recommended

MODEL_TYPE, ARCHITECTURE = "unmask_context_causal", "ContextCausalForCausalLM"


def traits(config: Config) -> Traits:
    """Fast-dLLM v2's, but rows of finished blocks see what comes before them only."""
    found = fast_dllm.traits(config)
    assert isinstance(found.attention, BlockCausal)
    return replace(found, attention=BlockCausal(found.attention.size, "causal"))


def recommended(config: Config, chat: bool, max_tokens: int) -> Recommended:
    """Fast-dLLM v2's, but at the threshold from left to right: as fast here, with fewer mistakes (experiment 001)."""
    found = fast_dllm.recommended(config, chat, max_tokens)
    policy = 'threshold(0.9, order="left_to_right")'
    sub_block = replace(found.alternatives["sub-block"], policy=policy)
    return replace(found, policy=policy, alternatives={"sub-block": sub_block})


FAMILY: Family = replace(
    fast_dllm.FAMILY,
    name="Context-causal block diffusion",
    model_type=MODEL_TYPE,
    architecture=ARCHITECTURE,
    traits=traits,
    recommended=recommended,
    known_issues=("No published checkpoint has this format; profile `fast-dllm-v2` has no meaning here.",),
)
