"""Delayed cache of decided tokens: a row is computed once more after its token was revealed, and then kept.

Every step computes the rows that are still holes, wherever they are, and those revealed at the step before: a fresh
token changes its own row most, so its row as a mask is never kept. What was decided earlier, the prompt included, is
read as it was then. Needs no blocks; `open_block` recomputes the decided rows of the open one, too: a row that was
decided early ("=") may carry what its neighbours turn into. Source: dKV-Cache, arXiv 2505.15781, one-step delay and
refreshing (section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.cache.plans import changed, forward, marked, must_be_full, spans_of, tokens
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Full, Peers, Plan, Sequence, Traits


@dataclass(frozen=True, eq=False)
class Computed:
    """The tokens that the stored rows were computed with, and the forwards since the last full one (0: none yet)."""

    tokens: Tensor
    age: int = 0


@component("delayed")
class Delayed:
    """Keep the rows of decided tokens one step after they were decided."""

    refresh: int | None = option(8, low=1, help="a full forward every so many steps, None: never again; 1 is exact")
    open_block: bool = option(False, help="recompute every row of the open block")
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return self.refresh == 1 and isinstance(traits.attention, Full)

    def init(self, seq: Sequence) -> Computed:
        must_be_full(seq.traits, "delayed")
        return Computed(torch.zeros(0, dtype=torch.long))

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Computed, peers: Peers
    ) -> tuple[Plan, Computed]:
        now, decided = tokens(seq, horizon), seq.decided[:horizon]
        if state.age == 0 or (self.refresh is not None and state.age >= self.refresh):
            keep = spans_of(decided)
            return forward(seq, ((0, horizon),), need, keep, horizon, "full"), Computed(now, 1)
        block = ((open[0].start, open[-1].stop),)
        rows = marked(horizon, block if self.open_block else (), need) | ~decided | changed(now, state.tokens)
        if not bool(rows.any()):  # a published pass that asks for nothing
            rows = marked(horizon, block, need)
        plan = forward(seq, spans_of(rows), need, spans_of(rows & decided), horizon, "partial")
        return plan, Computed(now, state.age + 1)

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Computed) -> tuple[Computed, None]:
        return state, None
