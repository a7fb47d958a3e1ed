"""No cache: every row that the open rows may see is recomputed at every step."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from torch import Tensor

from unmask.cache.plans import forward, reach
from unmask.core.spec import component
from unmask.core.types import Block, Candidates, Peers, Plan, Sequence, Traits


@component("none")
class NoCache:
    """Recompute everything. Exact for every model by definition."""

    scoring = "exact"

    def exact_for(self, traits: Traits) -> bool:
        return True

    def init(self, seq: Sequence) -> None:
        return None

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: None, peers: Peers
    ) -> tuple[Plan, None]:
        stop = reach(seq.traits, open, horizon)
        return forward(seq, ((0, stop),), need, (), stop, "full"), None

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: None) -> tuple[None, None]:
        return None, None
