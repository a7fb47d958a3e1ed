"""What replaying recorded cases shares: a forward over some rows, a denoiser that notes its calls, and differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.core.types import Attention, Batch, Forwarded, Lane, Plan
from unmask.models.denoiser import KVStore, TransformerDenoiser


@torch.inference_mode()
def forward(
    denoiser: TransformerDenoiser, store: KVStore, ids: Tensor, start: int, horizon: int, rule: Attention | None = None
) -> Tensor:
    """Logits of the rows [start, start + len(ids)), written into the store; each sees what the rule allows.

    Args:
        rule: which rows see which; None is the model's own.
    """
    at = torch.arange(start, start + ids.numel())
    query = ((start, start + ids.numel()),)
    plan = Plan(query, at, query, (rule or denoiser.traits.attention).visible(query, horizon))
    batch = Batch(ids, at, at - start, (Lane(0, plan),))
    return denoiser.model.logits(denoiser(batch, store).hidden)


class Traced:
    """A denoiser that notes each call: rows per lane and mask ids among them."""

    def __init__(self, inner: TransformerDenoiser) -> None:
        self.inner = inner
        self.traits, self.head, self.layers, self.device = inner.traits, inner.head, inner.layers, inner.device
        self.support, self.new_store, self.grow_store = inner.support, inner.new_store, inner.grow_store
        self.table = inner.table
        self.calls: list[list[int]] = []

    def __call__(self, batch: Batch, store: KVStore) -> Forwarded:
        self.calls.append([batch.ids.numel() // len(batch.lanes), int(batch.ids.eq(self.traits.mask_id or 0).sum())])
        return self.inner(batch, store)


def differences(found: list[list[int]], calls: int, expected: dict[str, Any]) -> list[str]:
    problems = []
    for i, (ours, theirs) in enumerate(zip(found, expected["sequences"], strict=True)):
        if ours != theirs:
            at = next(
                (j for j, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
            )
            problems.append(f"row {i} differs first at position {at}")
    if calls != expected["nfe"]:
        problems.append(f"nfe {calls}, expected {expected['nfe']}")
    return problems


def trace_differences(calls: list[list[int]], trace: list[list[int]] | None) -> list[str]:
    if trace is None or calls == trace:
        return []
    at = next((i for i, (a, b) in enumerate(zip(calls, trace, strict=False)) if a != b), min(len(calls), len(trace)))
    ours, theirs = (seq[at] if at < len(seq) else "none" for seq in (calls, trace))
    return [f"model call {at} has [rows, masks] {ours}, expected {theirs}"]
