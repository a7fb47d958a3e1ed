"""Token reuse: finished attention blocks are kept exactly; in the open one only rows that have a reason are computed.

A row has a reason if it speaks for an open position (with a shift: the row before it), if it is a mask of the open
sub-block, or if its token changed since it was computed. A settled row freezes one forward after its reveal, when
nothing asks for it any more. The first forward of a block and its commit compute every row, so what is stale inside a
block never enters the rows that are kept for good. One step of delay: dKV-Cache, arXiv 2505.15781, here on
block-causal models. `verify`: after the similarity test and quota of dLLM-Cache, arXiv 2506.06295.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from unmask.cache.plans import finished, forward, must_be_causal, reach, spans_of
from unmask.core.errors import SpecError
from unmask.core.spec import component, option
from unmask.core.types import Block, BlockCausal, Candidates, Peers, Plan, Probe, Sequence, Traits

PROBE = Probe("kv_cosine", -1)
"""The last layer: drift grows with depth, and every model has one."""
QUOTA = 0.25


@dataclass(frozen=True, eq=False)
class Computed:
    """Rows kept for good, and of all rows the id they were computed with (-1: never) and in which forward.

    Args:
        age: forwards since the whole open block was computed; 0 before the first.
        same: which rows of the last query had been stored with the id they still have.
        moved: one of them was not what it had been.
    """

    final: int
    ids: Tensor
    when: Tensor
    step: int = 0
    age: int = 0
    same: Tensor | None = None
    moved: bool = False


@component("trim")
class Trim:
    """Recompute changed rows, open positions and who speaks for them. refresh: the whole block every so many steps.

    With verify, keys and values of the last layer are compared with the stored ones wherever a row is computed again
    with the token it had. If one falls below that cosine, a share of the frozen rows, those longest untouched, is
    computed in the next step, and so on until none falls below.
    """

    refresh: int | None = option(8, low=1, help="the whole block every so many steps; 1 is exact, None never")
    verify: float | None = option(None, above=0.0, high=1.0, help="cosine below which frozen rows come back")
    quota: float = option(QUOTA, above=0.0, high=1.0, help="share of the frozen rows that come back (with verify)")
    scoring = "approximate"

    def __post_init__(self) -> None:
        if self.verify is None and self.quota != QUOTA:
            raise SpecError("trim: quota", expected="a verify to go with it", got=f"quota={self.quota} alone")
        if self.verify is not None and self.refresh == 1:
            raise SpecError("trim: verify", expected="a refresh above 1: at 1 no row is ever frozen", got="refresh=1")

    def exact_for(self, traits: Traits) -> bool:
        return isinstance(traits.attention, BlockCausal) and self.refresh == 1

    def init(self, seq: Sequence) -> Computed:
        must_be_causal(seq.traits, "trim")
        never = torch.full((seq.length,), -1, dtype=torch.long)
        return Computed(seq.kept, never, never)

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Computed, peers: Peers
    ) -> tuple[Plan, Computed]:
        stop = reach(seq.traits, open, horizon)
        final = finished(seq, stop)
        rows = self._rows(seq, open, need, state, final, stop)
        query = spans_of(rows)
        full = bool(rows[state.final :].all())
        kind = "partial" if not full else "full" if state.age or seq.kept else "prefill"
        plan = forward(seq, query, need, query, stop, kind)  # type: ignore[arg-type]
        probes = () if self.verify is None else (PROBE,)
        at = rows.nonzero().flatten()
        ids, when = state.ids.clone(), state.when.clone()
        same = ids[at] == seq.canvas[at]
        ids[at], when[at] = seq.canvas[at], state.step
        after = Computed(final, ids, when, state.step + 1, 1 if full else state.age + 1, same)
        return replace(plan, final=final, probes=probes), after

    def _rows(self, seq: Sequence, open: Seq[Block], need: Tensor, state: Computed, final: int, stop: int) -> Tensor:
        """Which of the rows [0, stop) are computed: bool [stop]."""
        if self.refresh is not None and state.age >= self.refresh:
            rows = torch.arange(stop) >= state.final
        else:
            rows = seq.canvas[:stop] != state.ids[:stop]
            for block in open:
                rows[block.start : block.stop] |= ~seq.decided[block.start : block.stop]
            rows[: state.final] = False
            rows[state.final : final] = True
        rows[need] = True
        if not bool(rows.any()):  # a published pass that asks for nothing
            rows[open[0].start : open[-1].stop] = True
        if state.moved:
            rows[_stalest(rows, state, self.quota)] = True
        return rows

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Computed) -> tuple[Computed, None]:
        if self.verify is None or not probes or state.same is None:
            return state, None
        cosine = probes[0][state.same]  # NaN, where nothing was stored, is below nothing
        return replace(state, moved=bool((cosine < self.verify).any())), None


def _stalest(rows: Tensor, state: Computed, quota: float) -> Tensor:
    """The share of the frozen rows that were computed longest ago; ties: the first."""
    frozen = (~rows[state.final :]).nonzero().flatten() + state.final
    order = torch.sort(state.when[frozen], stable=True).indices
    return frozen[order[: ceil(quota * len(frozen))]]
