"""Factor policy: commit as many as the joint confidence allows (Fast-dLLM, arXiv 2505.22618, Theorem 1 and section
3.3)."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from unmask.core.protocols import Noise
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Commit, Sequence
from unmask.decode.select import commit, holes_of, ranked


def count(confidences: Tensor, factor: float, published: bool) -> int:
    """How many of the descending confidences to take, at least one.

    The paper takes the largest n with (n + 1)(1 - c_n) < factor. The published code accepts equality, and takes all
    when the first failure is the last rank (`published`).
    """
    m = confidences.numel()
    n = torch.arange(1, m + 1, dtype=torch.float64)
    bound = 1 - factor / (n + 1)
    c = confidences.double()
    failed = c < bound if published else c <= bound
    if m:
        failed[0] = False
    first = int(failed.nonzero()[0]) + 1 if bool(failed.any()) else m + 1
    return m if published and first == m else first - 1


@component("factor")
class Factor:
    """Commit the n best, n the largest with (n + 1)(1 - c_n) < factor. published: the reference code's corner rules."""

    factor: float = option(1.0, above=0.0, help="larger commits more per step")
    published: bool = option(False, help="accept equality and the last-rank rule of the published code")
    scores = ()

    def init(self, seq: Sequence) -> None:
        return None

    def wants(self, seq: Sequence, open: Seq[Block], state: None) -> Tensor:
        return holes_of(seq, open)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: None, noise: Noise
    ) -> tuple[Commit, None]:
        order = ranked(candidates.prob)
        return commit(candidates, order[: count(candidates.prob[order], self.factor, self.published)]), None
