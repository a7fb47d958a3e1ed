"""Commit-ahead: the threshold rule, and after it some of the next-best positions blindly. The control of layer reuse.

Replacing layers by what they last put out repeats the logits of that step (see cache `fixed_reuse`), so each such
forward commits the best position that the threshold had left. The same tokens are here at once, without the forward:
what a scheme of layer reuse must beat in accuracy per forward.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.core.errors import RequestError, SpecError
from unmask.core.protocols import Noise
from unmask.core.spec import component, option
from unmask.core.types import Block, BlockCausal, Candidates, Commit, Sequence
from unmask.decode.select import commit, holes_of, ranked
from unmask.decode.threshold import at_least


@dataclass(frozen=True)
class Counted:
    """The model's block, and the forwards that layer reuse would have made in it."""

    block: int = -1
    count: int = 0


@component("commit_ahead")
class CommitAhead:
    """Commit every position at or above `threshold`, the best one always, and the `extra` next-best ones."""

    threshold: float = option(0.9, low=0.0, high=1.0, help="confidence from which a position is committed")
    extra: int = option(1, low=0, help="further positions per step, whatever their confidence; 0 is threshold")
    like_reuse: bool = option(False, help="only where fixed_reuse(k=extra+1) skips layers, on a block-causal model")
    scores = ()

    def __post_init__(self) -> None:
        if self.like_reuse and self.extra == 0:
            raise SpecError("commit_ahead: like_reuse", expected="an extra above 0 to go with it", got="extra=0")

    def init(self, seq: Sequence) -> Counted:
        if self.like_reuse and not isinstance(seq.traits.attention, BlockCausal):
            raise RequestError(
                "policy commit_ahead: like_reuse",
                expected="a block-causal model, where there is such a reuse",
                got="another one",
                remedy="leave it out",
            )
        return Counted()

    def wants(self, seq: Sequence, open: Seq[Block], state: Counted) -> Tensor:
        return holes_of(seq, open)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Counted, noise: Noise
    ) -> tuple[Commit, Counted]:
        sure = at_least(candidates.prob, self.threshold)
        order = ranked(candidates.prob)
        left = order[~torch.isin(order, sure)]
        more, after = self.extra, state
        if self.like_reuse:
            more, after = self._skipped(seq, want, sure, len(left), state)
        slots = torch.cat([sure, left[:more]]).sort().values
        return commit(candidates, slots), after

    def _skipped(self, seq: Sequence, want: Tensor, sure: Tensor, left: int, state: Counted) -> tuple[int, Counted]:
        """Forwards with skipped layers that would follow this one, one token each, and the counter after them."""
        start = next(b for b in seq.blocks if not b.done).start
        rule = seq.traits.attention
        block = start - start % rule.size if isinstance(rule, BlockCausal) else start
        count = (state.count if block == state.block else 0) + 1
        begun = bool(seq.decided[start]) or bool((want[sure] == start).any())
        first = count
        while begun and count % (self.extra + 1) and count - first < left:
            count += 1
        return count - first, Counted(block, count)
