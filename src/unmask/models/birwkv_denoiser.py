"""The recurrent backbone as the engine sees it: packed rows of many sequences in, final states of the needed rows out.

A plan over all rows of a sequence runs it from end to end; a plan over one block reads the two ends from the store,
where the last full forward left them. The store of a sequence has one size whatever its length is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.core.errors import RunError
from unmask.core.types import Batch, Forwarded, Head, Span, Traits
from unmask.models.birwkv_net import NULL, BiRWKV, Border, kinds_of, summary
from unmask.ops.biwkv import State


class BoundaryStore:
    """Per slot, the span whose two ends are known and one `Border` per layer."""

    def __init__(self, slots: int, rows: int) -> None:
        self.slots, self.rows = slots, rows
        self.spans: dict[int, Span] = {}
        self.borders: dict[int, list[Border]] = {}

    def write(self, slot: int, span: Span, borders: list[Border]) -> None:
        self.spans[slot], self.borders[slot] = span, borders

    def free(self, slot: int, start: int = 0) -> None:
        """Nothing of the slot is known from now on."""
        self.spans.pop(slot, None)
        self.borders.pop(slot, None)

    @property
    def bytes(self) -> int:
        """Of all summaries kept."""
        kept = [t for borders in self.borders.values() for b in borders for t in _tensors(b)]
        return sum(t.numel() * t.element_size() for t in kept)


@dataclass
class _Part:
    """One lane's rows of the packed batch."""

    lane: int
    slot: int
    rows: Span
    query: Span
    keep: tuple[Span, ...]
    horizon: int

    @property
    def count(self) -> int:
        return self.query[1] - self.query[0]

    @property
    def whole(self) -> bool:
        return self.query == (0, self.horizon)

    @property
    def hole(self) -> Span | None:
        """The rows between those that later forwards read without recomputing."""
        if not self.keep:
            return None
        start = self.keep[0][1] if self.keep[0][0] == 0 else 0
        stop = self.keep[-1][0] if self.keep[-1][1] == self.horizon and self.keep[-1][0] >= start else self.horizon
        return (start, stop) if start < stop else None


@dataclass
class _Seen:
    """Collects what a full forward must leave behind for single lanes."""

    wanted: tuple[int, ...]
    rows: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)
    keyed: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def border(self, layer: int) -> None:
        return None

    def saw(self, layer: int, part: int, x: Tensor) -> None:
        for i in self.wanted:
            self.rows.setdefault((i, layer), []).append(x[i : i + 1])

    def keys(self, layer: int, k: Tensor, v: Tensor, lam: Tensor) -> None:
        for i in self.wanted:
            self.keyed[i, layer] = (k[i : i + 1], v[i : i + 1], lam[i : i + 1])


@dataclass
class _Beside:
    """The stored borders of the lanes of a forward over blocks, stacked."""

    borders: list[Border]

    def border(self, layer: int) -> Border:
        return self.borders[layer]

    def saw(self, layer: int, part: int, x: Tensor) -> None:
        return None

    def keys(self, layer: int, k: Tensor, v: Tensor, lam: Tensor) -> None:
        return None


class BiRWKVDenoiser:
    """The backbone with declared traits. Stateless: what forwards leave behind is in the store."""

    def __init__(self, model: BiRWKV, traits: Traits) -> None:
        self.model, self.traits = model, traits
        self._heads: dict[bool, tuple[tuple[int, ...], Tensor]] = {}

    @property
    def head(self) -> Head:
        return Head(self._matrix(self._evident), self.model.cfg.logit_scale)

    @property
    def table(self) -> Tensor:
        return self.model.table

    @property
    def device(self) -> torch.device:
        return self.model.head_weight.device

    @property
    def layers(self) -> int:
        return self.model.cfg.layers

    def support(self, want: Tensor) -> Tensor:
        """Every position speaks for itself."""
        return want

    def new_store(self, slots: int, rows: int) -> BoundaryStore:
        return BoundaryStore(slots, rows)

    def grow_store(self, store: BoundaryStore, slots: int, rows: int) -> BoundaryStore:
        new = BoundaryStore(max(slots, store.slots), max(rows, store.rows))
        new.spans, new.borders = dict(store.spans), dict(store.borders)
        return new

    @torch.inference_mode()
    def __call__(self, batch: Batch, store: BoundaryStore) -> Forwarded:
        """One forward of packed rows: ids [N] -> hidden [W, K] of the needed rows, K as in `head`."""
        parts = _parts(batch)
        hidden = batch.ids.new_zeros(0)
        found: list[Tensor | None] = [None] * len(parts)
        tau = self._conditions(batch)
        full = [p for p in parts if p.whole]
        for group in [full] if full else []:
            for part, rows in zip(group, self._whole(batch, group, tau, store), strict=True):
                found[part.lane] = rows
        for group in _by_length([p for p in parts if not p.whole]):
            for part, rows in zip(group, self._blocks(batch, group, tau, store), strict=True):
                found[part.lane] = rows
        hidden = torch.cat([f for f in found if f is not None])[batch.need.to(self.device)]
        return self._spoken(batch, hidden, tau, parts)

    # ---- inputs ------------------------------------------------------------------------------------------------------

    def _conditions(self, batch: Batch) -> Tensor:
        """[lanes, 128]."""
        levels, noised = torch.zeros(len(batch.lanes)), torch.zeros(len(batch.lanes), dtype=torch.bool)
        if batch.latents is not None:
            at = 0
            for i, lane in enumerate(batch.lanes):
                count = sum(b - a for a, b in lane.plan.query)
                levels[i], noised[i] = batch.latents.level[i], bool(batch.latents.noisy[at : at + count].any())
                at += count
        return self.model.condition(levels.to(self.device), noised.to(self.device))

    def _inputs(self, batch: Batch, part: _Part) -> tuple[Tensor, Tensor | None, Tensor]:
        """Vectors, hint and kinds of one lane's rows."""
        own, found = slice(*part.rows), batch.latents
        ids = batch.ids[own].to(self.device)
        noisy = None if found is None else found.noisy[own].to(self.device)
        dropped = None if batch.dropped is None else batch.dropped[own].to(self.device)
        kinds = kinds_of(ids, self.traits.mask_id, noisy, dropped)
        vectors = self.model.table[ids]
        if found is None or noisy is None:
            return vectors, None, kinds
        vectors = torch.where(noisy[:, None], found.vectors[own].to(vectors), vectors)
        return vectors, found.hint[own].to(vectors), kinds

    def _entered(self, batch: Batch, group: list[_Part]) -> tuple[Tensor, Tensor]:
        """Padded inputs [B, T, C] of some lanes and which rows exist [B, T]."""
        width = max(p.count for p in group)
        mask = torch.zeros(len(group), width, dtype=torch.bool, device=self.device)
        wide = self.model.cfg.embed_dim
        vectors = torch.zeros(len(group), width, wide, device=self.device)
        hint, kinds = torch.zeros_like(vectors), torch.full((len(group), width), NULL, device=self.device)
        at = torch.zeros(len(group), width, dtype=torch.long, device=self.device)
        for i, part in enumerate(group):
            own, guess, kind = self._inputs(batch, part)
            vectors[i, : part.count], kinds[i, : part.count], mask[i, : part.count] = own, kind, True
            at[i, : part.count] = torch.arange(*part.query)
            if guess is not None:
                hint[i, : part.count] = guess
        return self.model.enter(vectors, hint, kinds, at), mask

    # ---- forwards ----------------------------------------------------------------------------------------------------

    def _whole(self, batch: Batch, group: list[_Part], tau: Tensor, store: BoundaryStore) -> list[Tensor]:
        """Sequences from end to end; the ends of a block that is kept for are written down."""
        keeping = tuple(i for i, p in enumerate(group) if p.hole is not None)
        seen = _Seen(keeping) if keeping else None
        x, mask = self._entered(batch, group)
        out = self.model.run(x, tau[[p.lane for p in group]], mask, seen)
        for i in keeping:
            assert seen is not None
            part, hole = group[i], group[i].hole
            assert hole is not None
            borders = [self._border(seen, i, layer, hole, part.count) for layer in range(self.layers)]
            store.write(part.slot, hole, borders)
        return [out[i, : p.count] for i, p in enumerate(group)]

    def _border(self, seen: _Seen, i: int, layer: int, hole: Span, length: int) -> Border:
        k, v, lam = seen.keyed[i, layer]
        rows = [r[:, :length] for r in seen.rows[i, layer]]
        return summary(rows, (k[:, :length], v[:, :length], lam), hole, length)

    def _blocks(self, batch: Batch, group: list[_Part], tau: Tensor, store: BoundaryStore) -> list[Tensor]:
        """Blocks of one length between their stored ends."""
        for part in group:
            if store.spans.get(part.slot) != part.query:
                raise RunError(
                    f"rows {part.query[0]} to {part.query[1]} of a recurrent model need the states at both ends, and "
                    "its store has none there; use cache none or boundary"
                )
        x, _ = self._entered(batch, group)
        stacked = [_stack([store.borders[p.slot][layer] for p in group]) for layer in range(self.layers)]
        out = self.model.run(x, tau[[p.lane for p in group]], None, _Beside(stacked))
        return list(out)

    # ---- outputs -----------------------------------------------------------------------------------------------------

    @property
    def _evident(self) -> bool:
        """Whether rows carry the evidence of a noised vector beside their own voice."""
        return self.traits.latent is not None and self.model.cfg.evidence and not self.model.cfg.tied

    def _spoken(self, batch: Batch, hidden: Tensor, tau: Tensor, parts: list[_Part]) -> Forwarded:
        latents, count = batch.latents, hidden.shape[0]
        wide = self.model.cfg.embed_dim
        vectors, level = hidden.new_zeros(count, wide).float(), torch.full((count,), torch.inf, device=self.device)
        lane = torch.zeros(count, dtype=torch.long, device=self.device)
        if latents is not None:
            of_row = torch.cat([torch.full((p.count,), p.lane) for p in parts])[batch.need]
            noisy = latents.noisy[batch.need].to(self.device)
            vectors, lane = latents.vectors[batch.need].to(self.device), of_row.to(self.device)
            own = torch.tensor(latents.level, device=self.device)[lane]
            level = torch.where(noisy, own, level)
        seen = (vectors, level) if latents is not None or self._evident else (None, None)
        rows, _ = self.model.voice(hidden, *seen)
        if latents is None or self.model.by_tokens:
            return Forwarded(rows)
        safe = torch.where(level.isfinite(), level, 0.0)
        clean = self.model.denoised(hidden, tau[lane], rows, vectors, safe)
        return Forwarded(rows, clean=clean)

    def _matrix(self, evidence: bool) -> Tensor:
        """The output matrix, made anew only when a weight behind it has changed."""
        sources = [
            p for n, p in self.model.named_parameters() if n in ("transformer.wte.weight", "transformer.ff_out.weight")
        ]
        version = tuple(p._version for p in sources)
        if self._heads.get(evidence, (None,))[0] != version:
            with torch.no_grad():
                self._heads[evidence] = (version, self.model.matrix(evidence).detach())
        return self._heads[evidence][1]


def _parts(batch: Batch) -> list[_Part]:
    out, at = [], 0
    for i, lane in enumerate(batch.lanes):
        (query,) = lane.plan.query
        count = query[1] - query[0]
        horizon = max(b for _, spans in lane.plan.visible for _, b in spans)
        out.append(_Part(i, lane.slot, (at, at + count), query, lane.plan.keep, horizon))
        at += count
    return out


def _by_length(parts: list[_Part]) -> list[list[_Part]]:
    groups: dict[int, list[_Part]] = {}
    for part in parts:
        groups.setdefault(part.count, []).append(part)
    return list(groups.values())


def _stack(borders: list[Border]) -> Border:
    """One border of several lanes."""

    def joined(pick: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return tuple(torch.cat(column) for column in zip(*pick, strict=True))

    left, right, ends = (
        joined([b.left for b in borders]),
        joined([b.right for b in borders]),
        joined([b.ends for b in borders]),
    )
    rows = tuple(joined([b.rows[i] for b in borders]) for i in range(len(borders[0].rows)))
    return Border(State(*left), State(*right), rows, ends)  # type: ignore[arg-type]


def _tensors(border: Border) -> list[Tensor]:
    return [*border.left, *border.right, *(t for pair in border.rows for t in pair), *border.ends]
