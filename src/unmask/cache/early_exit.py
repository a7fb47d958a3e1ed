"""Early exit with agreement between steps: some forwards stop at a low layer, and only sure tokens are taken there.

Full and shallow steps take turns. A shallow step runs the lower layers for the rows of the block and asks the head
there. A position may be committed if its confidence is above a threshold and its best token is the one of the last full
step. If none is left, the same step goes on through the other layers from where it is: nothing is computed twice but
the head. Upper keys and values are as old as the last full step; only commits at shallow steps are approximate.
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
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Peers, Plan, Sequence, Stage, Traits

NEVER = -1


@dataclass(frozen=True, eq=False)
class Asked:
    """What the last full step answered, and what is under way.

    Args:
        age: steps since the last full one, itself counted.
        answers: by row that speaks, the best token at the last full step (-1: it did not speak).
        need: rows that speak in this step.
        rest: the layers that are left of a shallow step; None in a full one.
        sure: slots that a shallow step stands behind.
    """

    inner: Any
    answers: Tensor
    place: Place = NOWHERE
    age: int = 0
    need: Tensor | None = None
    rest: Plan | None = None
    sure: Tensor | None = None


@component("early_exit")
class EarlyExit:
    """Every step but one of `every` ends after `exit` layers, if something there is sure enough."""

    exit: int = option(low=1, help="layers of a shallow step; all of them is off")
    agreement: bool = option(True, help="take only tokens that were also the last full step's")
    threshold: float = option(0.9, low=0.0, high=1.0, help="confidence at the exit above which one may be taken")
    every: int = option(2, low=1, help="one of so many steps runs all layers; 1 is off")
    inside: Inside | None = inside_option()
    scoring = "undefined"

    def exact_for(self, traits: Traits) -> bool:
        return self.every == 1 and same_as(self.inside, traits)

    def init(self, seq: Sequence) -> Asked:
        must_have_blocks(seq.traits, "early_exit")
        must_be_inside(self.exit, seq, "early_exit: exit")
        never = torch.full((seq.length,), NEVER, dtype=torch.long)
        return Asked(base_of(self.inside, seq.traits).init(seq), never)

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Asked, peers: Peers
    ) -> tuple[Plan, Asked]:
        base: Any = base_of(self.inside, seq.traits)
        plan, inner = base.plan(seq, open, need, horizon, state.inner, peers)
        place = place_of(plan, open)
        after = replace(state, inner=inner, place=place, need=need, rest=None, sure=None)
        turn = self.exit < seq.layers and 0 < state.age < self.every
        if not (turn and may_be_partial(plan, state.place, place)):
            return plan, replace(after, age=1)
        rest = replace(plan, kind="shallow", stages=(Stage((self.exit, seq.layers), plan.query),))
        below = replace(plan, kind="shallow", stages=(Stage((0, self.exit), plan.query),), hold=(self.exit,))
        return below, replace(after, age=state.age + 1, rest=rest)

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Asked) -> tuple[Asked, Plan | None]:
        assert state.need is not None
        if state.rest is None:
            answers = torch.full_like(state.answers, NEVER)
            answers[state.need] = candidates.token
            return replace(state, answers=answers), None
        sure = candidates.prob > self.threshold
        if self.agreement:
            sure &= candidates.token == state.answers[state.need]
        if bool(sure.any()):
            return replace(state, rest=None, sure=sure), None
        return replace(state, age=1, rest=None), state.rest

    def trusted(self, state: Asked) -> Tensor | None:
        """Slots of this step that a policy may decide on; None after a full one."""
        return state.sure
