"""Recorded cases of Fast-dLLM v2: block logits, the training forward, and both samplers in profile `fast-dllm-v2`.

A recorded batch is decoded as one cohort without padding; what its reference writes after the stop id of a finished
row (pads), and the prompts' right padding, are put back for the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.core.events import Event, Failed, Stepped, fold
from unmask.core.types import BlockCausal, Full, Request, Strategy, Traits
from unmask.engine.engine import Engine
from unmask.engine.options import DecodeOptions
from unmask.engine.profiles import answer_length, build, v2_batch
from unmask.evals.recorded import Traced, differences, forward, trace_differences
from unmask.models.denoiser import TransformerDenoiser
from unmask.ops.attention.blocks import training_mask

REFERENCES = ("v2_generate", "v2_batch_sample", "v2_train")
KINDS = ("logits_v2_block", "logits_v2_subblock", "v2_train")
LOSS_TOLERANCE = 1e-4


# ---- logits ----------------------------------------------------------------------------------------------------------


def logits(denoiser: TransformerDenoiser, case: dict[str, Any]) -> tuple[Tensor, str]:
    """Logits [B, T, V] of a case, and what else differs ("" if nothing)."""
    if case["kind"] == "v2_train":
        return _training(denoiser, case)
    rows = zip(*(_rows(v) for k, v in case["inputs"].items() if k != "replace_position"), strict=True)
    if case["kind"] == "logits":
        rule = BlockCausal(case["settings"]["block_size"])
        return torch.stack([_whole(denoiser, ids, rule) for (ids,) in rows]), ""
    return torch.stack([_cached(denoiser, row, case["inputs"].get("replace_position", 0)) for row in rows]), ""


def _rows(ids: list[list[int]]) -> list[Tensor]:
    return [torch.tensor(row) for row in ids]


def _whole(denoiser: TransformerDenoiser, ids: Tensor, rule: BlockCausal) -> Tensor:
    return forward(denoiser, denoiser.new_store(1, ids.numel()), ids, 0, ids.numel(), rule)


def _cached(denoiser: TransformerDenoiser, row: Sequence[Tensor], offset: int) -> Tensor:
    """Prefix kept, then the block on it, then (if recorded) a sub-block in place of the block's own rows."""
    prefix, block = row[0].numel(), row[0].numel() + row[1].numel()
    store = denoiser.new_store(1, block)
    forward(denoiser, store, row[0], 0, prefix)
    found = forward(denoiser, store, row[1], prefix, block)
    return found if len(row) == 2 else forward(denoiser, store, row[2], prefix + offset, block, Full())


def _training(denoiser: TransformerDenoiser, case: dict[str, Any]) -> tuple[Tensor, str]:
    """The noisy half's logits of [noisy; clean] rows under the training mask, and whether the mean loss differs."""
    ids, labels = torch.tensor(case["noisy_and_clean_input_ids"]), torch.tensor(case["final_labels"])
    length, model = ids.shape[1] // 2, denoiser.model
    mask = training_mask(length, case["settings"]["bd_size"])

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)

    positions = torch.arange(length).repeat(2)
    hidden = model.run(model.embed_ids(ids), positions, attend)[:, :length]
    found = model.logits(model.norm(hidden))
    loss = float(F.cross_entropy(found[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))
    expected = case["expected"]["loss"]
    same = abs(loss - expected) <= LOSS_TOLERANCE
    return found, "" if same else f"loss {loss:.6f}, expected {expected:.6f}"


# ---- generate --------------------------------------------------------------------------------------------------------


def generate(denoiser: TransformerDenoiser, case: dict[str, Any]) -> str:
    """Decode a case as its reference does; "" or what differs."""
    settings, batch = case["settings"], case["settings"]["sampler"] == "v2_batch"
    prompts = case["inputs"]["prompts"] if batch else case["inputs"]["input_ids"]
    pad = settings.get("pad_token_id", denoiser.traits.pad_id)
    traits = replace(denoiser.traits, eos_ids=(settings["stop_token"],), pad_id=pad)
    traced = Traced(TransformerDenoiser(denoiser.model, traits))
    engine = Engine(traced, slots=len(prompts))
    for request in requests(traits, prompts, settings):
        engine.submit(request)
    events = list(engine.run())
    failures = [e.error for e in events if isinstance(e, Failed)]
    if failures:
        return failures[0]
    found = [_as_left(events, str(i), traits, batch) for i in range(len(prompts))]
    problems = differences(found, engine.stats.model_calls, case["expected"])
    return "; ".join(problems + trace_differences(traced.calls, case.get("trace")))


def requests(traits: Traits, prompts: list[list[int]], settings: dict[str, Any]) -> list[Request]:
    """A recorded call as requests; the rows of a batch are one cohort on a canvas of the longest prompt's blocks."""
    options = DecodeOptions(
        profile="fast-dllm-v2",
        block_length=settings["block_size"],
        small_block_size=settings["small_block_size"],
        threshold=settings["threshold"],
        dual_cache=settings["use_block_cache"] or None,
        temperature=settings["temperature"],
    )
    lengths, block = tuple(map(len, prompts)), settings["block_size"]
    stop = max(lengths) + answer_length(options, max(lengths), settings["max_new_tokens"])
    strategy = build(options, traits, "Fast_dLLM_Qwen", stop)
    if settings["sampler"] == "v2_batch":
        strategy = v2_batch(strategy, lengths)
    return [_request(str(i), p, stop, strategy, overwritten(lengths, len(p), block)) for i, p in enumerate(prompts)]


def overwritten(lengths: tuple[int, ...], own: int, block: int) -> bool:
    """The batch sampler writes its bonus column over the longest prompt's last token if that one begins a block."""
    return own == max(lengths) and own % block == 1 and min(lengths) < own - 1


def _request(id: str, prompt: list[int], stop: int, strategy: Strategy, overwritten: bool) -> Request:
    canvas = torch.tensor(prompt + [0] * (stop - len(prompt)))
    fixed = torch.arange(stop) < len(prompt) - overwritten
    return Request(id, canvas, fixed, len(prompt), strategy, cohort="batch")


def _as_left(events: list[Event], id: str, traits: Traits, batch: bool) -> list[int]:
    """A row as the reference returns it: up to its first hole; `generate` cuts after the stop id, `batch_sample` pads.

    A stop id that came as a bonus token (with a commit or the prefill) was not noticed by `batch_sample`.
    """
    canvas = fold(events)[id]
    ids = canvas.ids[: canvas.ids.index(-1)] if -1 in canvas.ids else canvas.ids
    written = [e for e in events if isinstance(e, Stepped) and e.id == id and e.work.kind in ("full", "partial")]
    noticed = any(token in traits.eos_ids for e in written for _, token, _, _ in e.writes)
    ends = [i for i, token in enumerate(ids) if i >= canvas.prompt_len and token in traits.eos_ids]
    if not ends or (batch and not noticed):
        return ids
    assert traits.pad_id is not None or not batch
    return ids[: ends[0] + 1] + [traits.pad_id or 0] * (len(ids) - ends[0] - 1) * batch
