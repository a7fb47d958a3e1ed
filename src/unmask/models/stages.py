"""Forwards in which not every layer runs for every row: lanes with stages, and lanes that leave hidden rows behind.

Enters: a packed batch, and the store. Leaves: the packed hidden rows [N, C] as far up as each lane brought them. Layers
are cut into segments in which no lane changes what it computes; a segment packs the rows of all lanes that run there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from unmask.core.types import Batch, Plan, Run, Span, Spans, Stage, rows_in
from unmask.models.transformer import Transformer
from unmask.ops import attention as attn_op


class Rows(Protocol):
    """What a forward by layers asks of a store."""

    def write(self, layer: int, slot: int, spans: Sequence[Span], k: Tensor, v: Tensor) -> None: ...

    def kv(self, layer: int, slot: int) -> tuple[Tensor, Tensor]: ...

    def hold(self, kind: Literal["hidden", "delta"], layer: int, slot: int, positions: Tensor, x: Tensor) -> None: ...

    def held(self, kind: Literal["hidden", "delta"], layer: int, slot: int, positions: Tensor) -> Tensor: ...


class Taps(Protocol):
    """What looks into a forward."""

    def before_part(self, layer: int, lane: int, spans: Spans, k: Tensor, v: Tensor) -> None: ...

    def after_part(self, layer: int, lane: int, x: Tensor) -> None: ...


@dataclass
class _Lane:
    """A lane on its way up: `there` marks the rows of its query that are at boundary `level`."""

    index: int
    slot: int
    plan: Plan
    base: int
    positions: Tensor
    there: Tensor
    level: int = 0
    runs: dict[Spans, tuple[Tensor, tuple[Run, ...]]] = field(default_factory=dict)

    def part(self, query: Spans) -> tuple[Tensor, tuple[Run, ...]]:
        """Where rows of the query are in it [n], and what they see."""
        if query not in self.runs:
            rows = at(self.plan.query, query)
            self.runs[query] = rows, seen_by(self.plan, rows)
        return self.runs[query]


def forward(model: Transformer, batch: Batch, store: Rows, taps: Taps, looked: Sequence[int]) -> Tensor:
    """Hidden rows before the final norm.

    Args:
        looked: layers that `taps` wants to see hidden rows of.
    """
    device = model.head_weight.device
    positions = batch.positions.to(device)
    lanes, stages = _lanes(batch), [lane.plan.staged(model.cfg.layers) for lane in batch.lanes]
    x = model.embed_ids(batch.ids.to(device))
    for lane in lanes:
        _store(lane, store, x)
    levels = _levels(lanes, stages, looked, model.cfg.layers)
    for low, high in pairwise([*levels, model.cfg.layers + 1]):
        own = [(lane, s) for lane, given in zip(lanes, stages, strict=True) for s in given]
        for lane, stage in own:
            if stage.layers[0] == low:
                _enter(lane, stage, store, x)
        busy = [(lane, s) for lane, s in own if s.layers[0] <= low < s.layers[1]]
        if busy:
            x = _segment(model, positions, x, busy, (low, high), store, taps)
        if high - 1 in looked:
            for lane, _ in busy:
                taps.after_part(low, lane.index, _shown(lane, x))
    return x


def _lanes(batch: Batch) -> list[_Lane]:
    out, base = [], 0
    for i, lane in enumerate(batch.lanes):
        n = rows_in(lane.plan.query)
        own = batch.positions[base : base + n]
        out.append(_Lane(i, lane.slot, lane.plan, base, own, torch.ones(n, dtype=torch.bool)))
        base += n
    return out


def _levels(lanes: Sequence[_Lane], stages: Sequence[Sequence[Stage]], looked: Sequence[int], layers: int) -> list[int]:
    """Boundaries at which something is read or stored, or rows come or go."""
    found = {0, layers}
    for lane, given in zip(lanes, stages, strict=True):
        single = {*lane.plan.hold_deltas, *looked}  # a segment of their own
        single |= {i for s in given if s.rest == "delta" for i in range(*s.layers)}
        found |= {*lane.plan.hold} | {e for s in given for e in s.layers} | {e for i in single for e in (i, i + 1)}
    return sorted(found)


def _enter(lane: _Lane, stage: Stage, store: Rows, x: Tensor) -> None:
    """Rows of a stage that are not at its lowest layer yet are read from the store."""
    if lane.level != stage.layers[0]:
        lane.there.zero_()
    rows, _ = lane.part(stage.query)
    missing = rows[~lane.there[rows]]
    if missing.numel():
        x[lane.base + missing] = store.held("hidden", stage.layers[0], lane.slot, lane.positions[missing])
    there = torch.zeros_like(lane.there)
    there[rows] = True
    lane.there = there | lane.there if stage.rest == "delta" else there
    lane.level = stage.layers[0]


def _segment(
    model: Transformer,
    positions: Tensor,
    x: Tensor,
    busy: Sequence[tuple[_Lane, Stage]],
    layers: Span,
    store: Rows,
    taps: Taps,
) -> Tensor:
    """The layers of a segment over the rows that run there; the rest of a "delta" stage goes on beside them."""
    parts = [(lane, s, *lane.part(s.query)) for lane, s in busy]
    packed = torch.cat([lane.base + rows for lane, _, rows, _ in parts])

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs, a = [], 0
        for lane, stage, rows, runs in parts:
            b = a + rows.numel()
            if b > a:
                taps.before_part(layer, lane.index, stage.query, k[a:b], v[a:b])
                store.write(layer, lane.slot, stage.query, k[a:b], v[a:b])
                outs.append(attn_op.rows(q[a:b], *store.kv(layer, lane.slot), runs))
            a = b
        return torch.cat(outs) if len(outs) != 1 else outs[0]

    before = x[packed]
    after = model.run(before, positions[packed], attend, range(*layers)) if packed.numel() else before
    x[packed] = after
    a = 0
    for lane, stage, rows, _ in parts:
        b = a + rows.numel()
        if layers[0] in lane.plan.hold_deltas and b > a:
            added = after[a:b] - before[a:b]
            store.hold("delta", layers[0], lane.slot, lane.positions[rows], added)
        if stage.rest == "delta":
            rest = lane.there.clone()
            rest[rows] = False
            beside = rest.nonzero().flatten()
            if beside.numel():
                x[lane.base + beside] += store.held("delta", layers[0], lane.slot, lane.positions[beside])
        a = b
        lane.level = layers[1]
        _store(lane, store, x)
    return x


def _store(lane: _Lane, store: Rows, x: Tensor) -> None:
    """The rows at a boundary that its plan holds."""
    if lane.level in lane.plan.hold and bool(lane.there.any()):
        rows = lane.there.nonzero().flatten()
        store.hold("hidden", lane.level, lane.slot, lane.positions[rows], x[lane.base + rows])


def _shown(lane: _Lane, x: Tensor) -> Tensor:
    """Its rows [n, C], NaN where one is not there."""
    own = x[lane.base : lane.base + lane.there.numel()]
    return own.masked_fill(~lane.there[:, None].to(x.device), torch.nan)


# ---- rows of spans ---------------------------------------------------------------------------------------------------


def at(query: Spans, part: Spans) -> Tensor:
    """Indices [n] of the rows of `part` among those of `query`; both sorted, part inside query."""
    starts, count = [], 0
    for a, b in query:
        starts.append((a, b, count))
        count += b - a
    found = []
    for a, b in part:
        for lo, hi, first in starts:
            if max(a, lo) < min(b, hi):
                found.append(torch.arange(first + max(a, lo) - lo, first + min(b, hi) - lo))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)


def seen_by(plan: Plan, rows: Tensor) -> tuple[Run, ...]:
    """Runs of the given query rows (indices, ascending); neighbours that see the same are one."""
    if rows.numel() == rows_in(plan.query):
        return plan.visible
    ends = torch.tensor([count for count, _ in plan.visible]).cumsum(0)
    which, counts = torch.searchsorted(ends, rows, right=True).unique_consecutive(return_counts=True)
    runs: list[Run] = []
    for i, n in zip(which.tolist(), counts.tolist(), strict=True):
        spans = plan.visible[i][1]
        if runs and runs[-1][1] == spans:
            runs[-1] = (runs[-1][0] + n, spans)
        else:
            runs.append((n, spans))
    return tuple(runs)
