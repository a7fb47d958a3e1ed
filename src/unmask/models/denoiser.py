"""A transformer as the engine sees it: packed query rows against the store in, final states of the needed rows out.

The shift of Dream and autoregressive heads (row p - 1 speaks for position p) is applied here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unmask.core.types import Batch, Forwarded, Head, Lane, Probe, Span, Traits
from unmask.models.transformer import Transformer
from unmask.ops import attention as attn_op


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
        self.slots, self.rows = slots, rows

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

    def free(self, slot: int, start: int = 0) -> None:
        """The slot's rows from `start` on mean nothing from now on; nothing is cleared, since rows are written before
        they are read.
        """
        self.stored[slot, start:] = False

    def grown(self, model: Transformer, slots: int, rows: int) -> KVStore:
        """A larger store with the same contents."""
        new = KVStore(model, max(slots, self.slots), max(rows, self.rows))
        new.keys[:, : self.slots, :, : self.rows] = self.keys
        new.values[:, : self.slots, :, : self.rows] = self.values
        new.stored[: self.slots, : self.rows] = self.stored
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
            slot, at = self.lanes[i].slot, torch.cat([torch.arange(s, e) for s, e in self.lanes[i].plan.query])
            keys, values = (t[:, at.to(t.device)] for t in store.kv(layer, slot))
            old = torch.stack((keys, values)).float().transpose(1, 2).flatten(2)
            new = torch.stack((k[a : a + sizes[i]], v[a : a + sizes[i]])).float().flatten(2)
            cosine = torch.cosine_similarity(old, new, dim=-1).T.cpu()
            self.found[i, probe] = cosine.masked_fill(~store.stored[slot, at, None], torch.nan)

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
