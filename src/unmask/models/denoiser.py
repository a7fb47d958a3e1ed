"""A transformer as the engine sees it: packed query rows against the store in, final states of the needed rows out.

The shift of Dream and autoregressive heads (row p - 1 speaks for position p) is applied here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from unmask.core.types import Batch, Forwarded, Head, Lane, Probe, Span, Spans, Traits, rows_in
from unmask.models import stages
from unmask.models.transformer import Transformer
from unmask.ops import attention as attn_op

Held = Literal["hidden", "delta"]


class KVStore:
    """Preallocated keys (after RoPE) and values: per layer [slots, KV, rows, D]. Written in place, never
    concatenated.
    """

    def __init__(self, model: Transformer, slots: int, rows: int) -> None:
        cfg, like = model.cfg, model.head_weight
        shape = (cfg.layers, slots, cfg.kv_heads, rows, cfg.head_dim)
        self.keys = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.values = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.stored = torch.zeros(slots, rows, dtype=torch.bool)
        self.slots, self.rows, self.width = slots, rows, cfg.dim
        self.beside: dict[int, dict[tuple[Held, int], Tensor]] = {}
        """Hidden rows and additions [rows, C] by slot, kind and layer, as plans asked for them."""

    def write(self, layer: int, slot: int, spans: Sequence[Span], k: Tensor, v: Tensor) -> None:
        """k, v [n, KV, D]: rows of `spans`, in order."""
        keys, values, at = self.keys[layer, slot], self.values[layer, slot], 0
        for a, b in spans:
            keys[:, a:b] = k[at : at + b - a].transpose(0, 1)
            values[:, a:b] = v[at : at + b - a].transpose(0, 1)
            at += b - a
            if layer == self.keys.shape[0] - 1:
                self.stored[slot, a:b] = True

    def kv(self, layer: int, slot: int) -> tuple[Tensor, Tensor]:
        """Keys and values [KV, rows, D]."""
        return self.keys[layer, slot], self.values[layer, slot]

    def hold(self, kind: Held, layer: int, slot: int, positions: Tensor, x: Tensor) -> None:
        """x [n, C]: hidden rows at a boundary, or what a layer added to them."""
        own = self.beside.setdefault(slot, {})
        if (kind, layer) not in own:
            own[kind, layer] = x.new_empty(self.rows, x.shape[-1])
        own[kind, layer][positions] = x

    def held(self, kind: Held, layer: int, slot: int, positions: Tensor) -> Tensor:
        """Such rows [n, C], as they were last stored."""
        return self.beside[slot][kind, layer][positions]

    def free(self, slot: int, start: int = 0) -> None:
        """The slot's rows from `start` on mean nothing from now on; keys and values are not cleared, since rows are
        written before they are read. Hidden rows are given up, all of them: no request begins with those of another.
        """
        self.stored[slot, start:] = False
        self.beside.pop(slot, None)

    def grown(self, model: Transformer, slots: int, rows: int) -> KVStore:
        """A larger store with the same contents."""
        new = KVStore(model, max(slots, self.slots), max(rows, self.rows))
        new.keys[:, : self.slots, :, : self.rows] = self.keys
        new.values[:, : self.slots, :, : self.rows] = self.values
        new.stored[: self.slots, : self.rows] = self.stored
        for slot, own in self.beside.items():
            new.beside[slot] = {k: torch.nn.functional.pad(x, (0, 0, 0, new.rows - self.rows)) for k, x in own.items()}
        return new


class TransformerDenoiser:
    """The backbone with declared traits. Stateless: everything that changes lives in the store."""

    def __init__(self, model: Transformer, traits: Traits) -> None:
        self.model, self.traits = model, traits

    @property
    def head(self) -> Head:
        return Head(self.model.head_weight, self.model.cfg.logit_scale)

    @property
    def table(self) -> None:
        """A transformer of this package denoises no vectors."""
        return None

    @property
    def device(self) -> torch.device:
        return self.model.head_weight.device

    @property
    def layers(self) -> int:
        return self.model.cfg.layers

    def support(self, want: Tensor) -> Tensor:
        """Row p - shift for position p; position 0 has no earlier row and takes row 0 (as Dream duplicates it)."""
        return (want - self.traits.shift).clamp_(min=0) if self.traits.shift else want

    def new_store(self, slots: int, rows: int) -> KVStore:
        return KVStore(self.model, slots, rows)

    def grow_store(self, store: KVStore, slots: int, rows: int) -> KVStore:
        return store.grown(self.model, slots, rows)

    @torch.inference_mode()
    def __call__(self, batch: Batch, store: KVStore) -> Forwarded:
        """One forward of packed rows: ids [N] -> hidden [W, C] of the needed rows."""
        device = self.device
        if any(lane.plan.by_layers for lane in batch.lanes):
            return self._by_layers(batch, store)
        taps = _Taps(batch.lanes)
        sizes = [sum(b - a for a, b in lane.plan.query) for lane in batch.lanes]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            taps.before_write(layer, store, k, v, sizes)
            outs, at = [], 0
            for lane, n in zip(batch.lanes, sizes, strict=True):
                store.write(layer, lane.slot, lane.plan.query, k[at : at + n], v[at : at + n])
                keys, values = store.kv(layer, lane.slot)
                outs.append(attn_op.rows(q[at : at + n], keys, values, lane.plan.visible))
                at += n
            return outs[0] if len(outs) == 1 else torch.cat(outs)

        x = self.model.embed_ids(batch.ids.to(device))
        positions = batch.positions.to(device)
        if taps.hidden_layers:
            for i in range(self.layers):
                x = self.model.run(x, positions, attend, range(i, i + 1))
                taps.after_layer(i, x, sizes)
        else:
            x = self.model.run(x, positions, attend)
        hidden = self.model.norm(x.index_select(0, batch.need.to(device)))
        return Forwarded(hidden, taps.values())

    def _by_layers(self, batch: Batch, store: KVStore) -> Forwarded:
        """The same where not every layer runs for every row."""
        taps = _PartTaps(batch.lanes, store)
        x = stages.forward(self.model, batch, store, taps, sorted(taps.hidden_layers))
        hidden = self.model.norm(x.index_select(0, batch.need.to(self.device)))
        return Forwarded(hidden, taps.values())


class _Taps:
    """Collects what probes asked for; with no probe every method returns at once."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.lanes = lanes
        self.asked = [(i, p) for i, lane in enumerate(lanes) for p in lane.plan.probes]
        self.hidden_layers = {p.layer for _, p in self.asked if p.kind == "hidden"}
        self.found: dict[tuple[int, Probe], Tensor] = {}

    def before_write(self, layer: int, store: KVStore, k: Tensor, v: Tensor, sizes: Sequence[int]) -> None:
        for i, probe in self.asked:
            if probe.kind != "kv_cosine" or probe.layer != layer:
                continue
            a = sum(sizes[:i])
            at = positions_of(self.lanes[i].plan.query)
            own = k[a : a + sizes[i]], v[a : a + sizes[i]]
            self.found[i, probe] = _cosine(store, layer, self.lanes[i].slot, at, *own)

    def after_layer(self, layer: int, x: Tensor, sizes: Sequence[int]) -> None:
        for i, probe in self.asked:
            if probe.kind == "hidden" and probe.layer == layer:
                a = sum(sizes[:i])
                self.found[i, probe] = x[a : a + sizes[i]].float().cpu()

    def values(self) -> tuple[tuple[Tensor, ...], ...]:
        if not self.asked:
            return ()
        return tuple(
            tuple(self.found[i, p] for p in lane.plan.probes if p.kind != "logits") for i, lane in enumerate(self.lanes)
        )


class _PartTaps(_Taps):
    """The same for a forward by layers: NaN for rows that a layer did not run for."""

    def __init__(self, lanes: Sequence[Lane], store: KVStore) -> None:
        super().__init__(lanes)
        self.store = store
        for i, probe in self.asked:
            wide = 2 if probe.kind == "kv_cosine" else store.width
            self.found[i, probe] = torch.full((rows_in(lanes[i].plan.query), wide), torch.nan)

    def before_part(self, layer: int, lane: int, spans: Spans, k: Tensor, v: Tensor) -> None:
        """k, v [n, KV, D]: of the rows of `spans`, which the layer runs for."""
        for i, probe in self.asked:
            if i == lane and probe.kind == "kv_cosine" and probe.layer == layer:
                own = self.lanes[i]
                at = positions_of(spans)
                cosine = _cosine(self.store, layer, own.slot, at, k, v)
                self.found[i, probe][torch.searchsorted(positions_of(own.plan.query), at)] = cosine

    def after_part(self, layer: int, lane: int, x: Tensor) -> None:
        """x [n, C]: the rows of its query, NaN where they are not at this layer."""
        for i, probe in self.asked:
            if i == lane and probe.kind == "hidden" and probe.layer == layer:
                self.found[i, probe] = x.float().cpu()


def _cosine(store: KVStore, layer: int, slot: int, at: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[n, 2]: fresh keys and values of the rows `at` beside the stored ones; NaN where nothing was stored."""
    keys, values = (t[:, at.to(t.device)] for t in store.kv(layer, slot))
    old = torch.stack((keys, values)).float().transpose(1, 2).flatten(2)
    new = torch.stack((k, v)).float().flatten(2)
    cosine = torch.cosine_similarity(old, new, dim=-1).T.cpu()
    return cosine.masked_fill(~store.stored[slot, at, None], torch.nan)


def positions_of(spans: Spans) -> Tensor:
    """The rows of the spans, in order."""
    return torch.cat([torch.arange(a, b) for a, b in spans])
