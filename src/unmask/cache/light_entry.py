"""Light entry: the dual cache whose full forward comes with every n-th block only.

At threshold decoding a block takes a few steps, and the full forward at its entry costs more than all of them. Here the
other entries compute what must be new: rows whose token is another than at the last full forward (the blocks written
since), the new block, and some rows on both sides of it. All other rows are as old as that full forward: up to
`full_every` blocks instead of one. `full_every=1` is the dual cache, token for token.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from torch import Tensor

from unmask.cache.plans import changed, forward, marked, must_be_full, spans_of, tokens
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Full, Peers, Plan, Sequence, Traits


@dataclass(frozen=True, eq=False)
class Since:
    """The open block; blocks and forwards since the last full forward, and the tokens that it saw."""

    block: int = -1
    blocks: int = 0
    age: int = 0
    tokens: Tensor | None = None


@component("light_entry")
class LightEntry:
    """Recompute the open block; at a block's entry also what changed since the last full forward."""

    before: int = option(16, low=0, help="rows before a new block that its entry recomputes")
    after: int = option(16, low=0, help="rows after it")
    full_every: int = option(4, low=1, help="a full forward with every so many blocks; 1 is the dual cache")
    refresh: int | None = option(None, low=1, help="a full forward every so many steps, too; 1 is exact")
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return self.refresh == 1 and isinstance(traits.attention, Full)

    def init(self, seq: Sequence) -> Since:
        must_be_full(seq.traits, "light_entry")
        return Since()

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Since, peers: Peers
    ) -> tuple[Plan, Since]:
        start, stop, now = open[0].start, open[-1].stop, tokens(seq, horizon)
        new = state.block != start
        due = self.refresh is not None and state.age >= self.refresh
        if state.tokens is None or due or (new and state.blocks >= self.full_every):
            everything = ((0, horizon),)
            return forward(seq, everything, need, everything, horizon, "full"), Since(start, 1, 1, now)
        rows = marked(horizon, ((start, stop),), need)
        if new:
            rows |= marked(horizon, ((start - self.before, stop + self.after),), need) | changed(now, state.tokens)
        query, older = spans_of(rows), replace(state, block=start, blocks=state.blocks + new, age=state.age + 1)
        return forward(seq, query, need, query, horizon, "partial"), older

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Since) -> tuple[Since, None]:
        return state, None
