"""Fixed layer reuse, as published for Fast-dLLM v2's sub-blocks: a control, and a lesson in what replaces what.

Inside a sub-block k - 1 of k forwards skip a subset of the layers and put in its place the output it had when it last
ran, for all rows of the sub-block. Layers above then see what they saw then, so the whole forward repeats the stale
logits of that step, whatever the subset: the tokens are those of `commit_ahead(extra=k-1, like_reuse=True)`, which
needs no forward for them. The counter runs from the first forward of the model's block over all its forwards; those
that compute the whole block (as while a sub-block's first position is open) run every layer, as does the first one of a
sub-block. Source: the public experiments on layer reuse in Fast-dLLM v2 (revision 26d6179); there an equal number of
rows sufficed for an output to be put in, here they must be the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from torch import Tensor

from unmask.cache.depth import NOWHERE, Place, Subset, may_be_partial, must_have_blocks, place_of, subset
from unmask.cache.plans import must_be_causal
from unmask.cache.sub_block import Held, SubBlock
from unmask.core.spec import component, option
from unmask.core.types import Block, BlockCausal, Candidates, Peers, Plan, Sequence, Stage, Traits

BASE = SubBlock(None, whole_first=True)


@dataclass(frozen=True)
class Counted:
    """Where the sequence stands, the model's block it is in, and the forwards made there."""

    inner: Held
    place: Place = NOWHERE
    block: int = -1
    count: int = 0


@component("fixed_reuse")
class FixedReuse:
    """The published sub-block cache; in k - 1 of k forwards a subset of the layers is replaced by its last output."""

    k: int = option(low=1, help="one of so many forwards runs all layers; 1 is sub_block(whole_first=True)")
    layers: Subset = option("middle", help="layers 1..12, 8..19 or 16..27 of 28, and in proportion")
    scoring = "undefined"

    def exact_for(self, traits: Traits) -> bool:
        return False

    def init(self, seq: Sequence) -> Counted:
        must_be_causal(seq.traits, "fixed_reuse")
        must_have_blocks(seq.traits, "fixed_reuse")
        return Counted(BASE.init(seq))

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Counted, peers: Peers
    ) -> tuple[Plan, Counted]:
        plan, inner = BASE.plan(seq, open, need, horizon, state.inner, peers)
        assert isinstance(seq.traits.attention, BlockCausal)
        block = open[0].start - open[0].start % seq.traits.attention.size
        count, place = state.count if block == state.block else 0, place_of(plan, open)
        after = Counted(inner, place, block, count + 1)
        if self.k == 1:
            return plan, after
        start, stop = subset(self.layers, seq.layers)
        if not (count % self.k and may_be_partial(plan, state.place, place)):
            return replace(plan, hold=(stop,)), after
        below, above = Stage((0, start), plan.query), Stage((stop, seq.layers), plan.query)
        return replace(plan, kind="shallow", stages=(below, above)), after

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Counted) -> tuple[Counted, None]:
        return state, None
