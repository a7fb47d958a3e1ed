"""Plans into one forward: packed rows of every lane, and the way back from packed rows to sequences."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import torch
from torch import Tensor

from unmask.core.protocols import Guidance
from unmask.core.types import Batch, Lane, Latent, Latents, Plan, Sequence, Spans, rows_in

Item = tuple[Sequence, Guidance | None, tuple[int, ...], Plan, Latent | None]


def collate(items: Seq[Item]) -> Batch:
    """One batch for the plans: guidance lanes of a sequence follow one another, each with its own slot."""
    ids, positions, need, lanes, base = [], [], [], [], 0
    dropped, found = [], []
    for seq, guidance, slots, plan, latent in items:
        at = positions_of(plan.query)
        rows = rows_of(plan.query, plan.need)
        for i, slot in enumerate(slots):
            canvas = seq.canvas if guidance is None else _lane_ids(seq, guidance, i)
            ids.append(canvas[at])
            positions.append(at)
            need.append(rows + base)
            lanes.append(Lane(slot, plan))
            dropped.append(seq.fixed[at] if i else torch.zeros_like(seq.fixed[at]))
            found.append(latent)
            base += rows_in(plan.query)
    guided = torch.cat(dropped) if len({id(s) for s, *_ in items}) < len(lanes) else None
    return Batch(
        torch.cat(ids), torch.cat(positions), torch.cat(need), tuple(lanes), _latents(positions, found), guided
    )


def _latents(positions: list[Tensor], found: list[Latent | None]) -> Latents | None:
    """The lanes' vectors at their rows of the packed batch; None where no sequence has any."""
    dim = next((latent.vectors.shape[1] for latent in found if latent is not None), None)
    if dim is None:
        return None
    noisy = [torch.zeros(len(at), dtype=torch.bool) for at in positions]
    vectors, hint = ([torch.zeros(len(at), dim) for at in positions] for _ in range(2))
    for i, latent in enumerate(found):
        if latent is not None:
            rows = torch.searchsorted(positions[i], latent.positions)
            noisy[i][rows] = True
            vectors[i][rows], hint[i][rows] = latent.vectors, latent.hint
    levels = tuple(0.0 if latent is None else latent.level for latent in found)
    return Latents(torch.cat(noisy), torch.cat(vectors), torch.cat(hint), levels)


def _lane_ids(seq: Sequence, guidance: Guidance, lane: int) -> Tensor:
    mask_id = seq.traits.mask_id
    assert mask_id is not None, "guidance needs a mask id"
    return guidance.ids(lane, seq.canvas, seq.fixed, mask_id)


def positions_of(spans: Spans) -> Tensor:
    """The rows of the spans, in order."""
    parts = [torch.arange(a, b) for a, b in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def rows_of(query: Spans, need: Tensor) -> Tensor:
    """Indices of the needed positions among the query rows."""
    if len(query) == 1:
        return need - query[0][0]
    return torch.searchsorted(positions_of(query), need)


def lane_slices(batch: Batch) -> list[tuple[int, int]]:
    """For each lane, its slice of the needed rows."""
    out, at = [], 0
    for lane in batch.lanes:
        n = int(lane.plan.need.numel())
        out.append((at, at + n))
        at += n
    return out


class Ran(NamedTuple):
    """What one forward does for one lane: rows x layers, keys seen by these rows, and keys read at all."""

    rows: int
    keys: int
    read: int


def executed(plan: Plan, layers: int) -> Ran:
    """The work of a plan on a model of so many layers."""
    if not plan.stages:
        seen = [(count, rows_in(spans)) for count, spans in plan.visible]
        keys, read = sum(count * n for count, n in seen), max((n for _, n in seen), default=0)
        return Ran(rows_in(plan.query) * layers, keys * layers, read * layers)
    per_row = torch.tensor([rows_in(spans) for count, spans in plan.visible for _ in range(count)])
    rows = keys = read = 0
    for stage in plan.stages:
        deep = stage.layers[1] - stage.layers[0]
        if deep and stage.query:
            own = per_row[rows_of(plan.query, positions_of(stage.query))]
            rows, keys, read = rows + own.numel() * deep, keys + int(own.sum()) * deep, read + int(own.max()) * deep
    return Ran(rows, keys, read)


def layers_run(plans: Seq[Plan], layers: int) -> int:
    """Layers of which one forward for these plans reads the weights."""
    if not all(plan.stages for plan in plans):
        return layers
    return len({i for plan in plans for s in plan.stages if s.query for i in range(*s.layers)})
