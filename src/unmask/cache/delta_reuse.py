"""Delta reuse: in some layers only changed rows are computed; others get what the layer added to them before.

Unlike fixed reuse, which puts an old output in the place of a layer's, the old addition goes on a fresh residual, so
what lower layers found out still flows up. Source: dLLM-Cache, arXiv 2506.06295 (attention and MLP outputs are kept);
there the rows are chosen by the similarity of their values, here they are those with a new token.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

from torch import Tensor

from unmask.cache.depth import Inside, Subset, base_of, inside_option, must_have_blocks, same_as, subset
from unmask.cache.depth_split import Kept, begin, meet
from unmask.cache.plans import spans_of
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Peers, Plan, Sequence, Stage, Traits


@component("delta_reuse")
class DeltaReuse:
    """A subset of the layers runs for changed rows only; it adds to the others what it last added."""

    layers: Subset = option("middle", help="about 12 of 28 layers: from the second on, in the middle, the last ones")
    refresh: int | None = option(4, low=1, help="all layers for all rows every so many steps; 1 is off, None never")
    inside: Inside | None = inside_option()
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return self.refresh == 1 and same_as(self.inside, traits)

    def init(self, seq: Sequence) -> Kept:
        must_have_blocks(seq.traits, "delta_reuse")
        return begin(base_of(self.inside, seq.traits), seq)

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Kept, peers: Peers
    ) -> tuple[Plan, Kept]:
        base = base_of(self.inside, seq.traits)
        plan, changed, partial, after = meet(base, seq, open, need, horizon, state, peers)
        if self.refresh == 1:
            return plan, after
        start, stop = subset(self.layers, seq.layers)
        plan = replace(plan, keep=plan.query, hold_deltas=tuple(range(start, stop)))
        if not partial or (self.refresh is not None and state.age >= self.refresh):
            return plan, replace(after, age=1)
        stages = (
            Stage((0, start), plan.query),
            Stage((start, stop), spans_of(changed), "delta"),
            Stage((stop, seq.layers), plan.query),
        )
        return replace(plan, kind="shallow", stages=tuple(s for s in stages if s.layers[0] < s.layers[1])), after

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Kept) -> tuple[Kept, None]:
        return state, None
