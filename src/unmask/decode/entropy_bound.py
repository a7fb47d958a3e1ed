"""Entropy-bounded policy: in order of entropy, as many positions as a budget of joint uncertainty allows.

Source: EB-Sampler, arXiv 2505.24857: reveal the largest U, in the order of an error proxy, with
sum of H over U - max of H over U <= gamma. Here the proxy is the entropy itself (there also confidence and margin), so
the largest is the last one, and what counts are the entropies before it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from unmask.core.protocols import Noise
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Commit, Sequence
from unmask.decode.select import commit, holes_of, ranked


def within(entropies: Tensor, gamma: float) -> int:
    """How many of the rising entropies to take: the sum of all but the last stays <= gamma; one at least."""
    before = torch.cat([torch.zeros(1, dtype=torch.float64), entropies.double().clamp(min=0).cumsum(0)[:-1]])
    return max(1, int((before[: len(entropies)] <= gamma).sum()))


@component("entropy_bound")
class EntropyBound:
    """Commit the positions of lowest entropy whose entropies, without the largest, sum to at most gamma (in nats)."""

    gamma: float = option(0.1, low=0.0, help="entropy budget of a step in nats; 0 is one position per step")
    scores = ("entropy",)

    def init(self, seq: Sequence) -> None:
        return None

    def wants(self, seq: Sequence, open: Seq[Block], state: None) -> Tensor:
        return holes_of(seq, open)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: None, noise: Noise
    ) -> tuple[Commit, None]:
        assert candidates.entropy is not None  # negative entropies: the highest is the surest
        order = ranked(candidates.entropy)
        return commit(candidates, order[: within(-candidates.entropy[order], self.gamma)]), None
