"""Depth-split refresh: lower layers run for rows whose token changed, upper layers for all rows of the block.

A fresh token moves its own row at once and the others' in the lower layers little, so their hidden rows at the split
are kept, and the upper layers start from there. `refresh` bounds how old they get. Exact only at split 0 or refresh 1.
Source: the idea of Elastic-Cache, arXiv 2510.14973 (upper layers drift more), here with a fixed split.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unmask.cache.depth import (
    NOWHERE,
    Inside,
    Place,
    base_of,
    inside_option,
    may_be_partial,
    must_be_inside,
    must_have_blocks,
    place_of,
    same_as,
)
from unmask.cache.plans import marked, spans_of, tokens
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Peers, Plan, Sequence, Stage, Traits

NEVER = -2


@dataclass(frozen=True, eq=False)
class Kept:
    """Where the sequence stands, the forwards since every layer ran for all rows of the block, and the tokens [T] that
    its rows were last computed with through all layers (-2: never; -1: a hole)."""

    inner: Any
    tokens: Tensor
    place: Place = NOWHERE
    age: int = 0


def begin(base: Any, seq: Sequence) -> Kept:
    """Nothing is kept yet."""
    return Kept(base.init(seq), torch.full((seq.length,), NEVER, dtype=torch.long))


def meet(
    base: Any, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Kept, peers: Peers
) -> tuple[Plan, Tensor, bool, Kept]:
    """The plan of the cache below, which of its rows have changed [horizon], whether it may be made in part, and the
    state after it."""
    plan, inner = base.plan(seq, open, need, horizon, state.inner, peers)
    place, now = place_of(plan, open), tokens(seq, plan.query[-1][1])
    rows = marked(len(now), plan.query, need)
    known = state.tokens.clone()
    known[: len(now)][rows] = now[rows]
    changed = rows & (now != state.tokens[: len(now)])
    partial = may_be_partial(plan, state.place, place)
    return plan, changed, partial, Kept(inner, known, place, state.age + 1 if partial else 1)


@component("depth_split")
class DepthSplit:
    """Layers below `split` for changed rows only, the others for all rows of the block."""

    split: int = option(low=0, help="layers that run for changed rows only; 0 is off")
    refresh: int | None = option(4, low=1, help="all layers for all rows every so many steps; 1 is off, None never")
    inside: Inside | None = inside_option()
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return (self.split == 0 or self.refresh == 1) and same_as(self.inside, traits)

    def init(self, seq: Sequence) -> Kept:
        must_have_blocks(seq.traits, "depth_split")
        must_be_inside(self.split, seq, "depth_split: split")
        return begin(base_of(self.inside, seq.traits), seq)

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Kept, peers: Peers
    ) -> tuple[Plan, Kept]:
        base = base_of(self.inside, seq.traits)
        plan, changed, partial, after = meet(base, seq, open, need, horizon, state, peers)
        if self.split == 0 or self.refresh == 1:
            return plan, after
        plan = replace(plan, keep=plan.query, hold=(self.split,))
        if not partial or (self.refresh is not None and state.age >= self.refresh):
            return plan, replace(after, age=1)
        low, high = Stage((0, self.split), spans_of(changed)), Stage((self.split, seq.layers), plan.query)
        return replace(plan, kind="shallow", stages=(low, high)), after

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Kept) -> tuple[Kept, None]:
        return state, None
