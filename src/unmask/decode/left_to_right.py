"""Autoregressive decoding as a policy: the leftmost hole speaks and is committed."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from unmask.core.protocols import Noise
from unmask.core.spec import component
from unmask.core.types import Block, Candidates, Commit, Sequence
from unmask.decode.select import commit, holes_of


@component("left_to_right")
class LeftToRight:
    """Commit the leftmost open position at every step."""

    scores = ()

    def init(self, seq: Sequence) -> None:
        return None

    def wants(self, seq: Sequence, open: Seq[Block], state: None) -> Tensor:
        return holes_of(seq, open)[:1]

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: None, noise: Noise
    ) -> tuple[Commit, None]:
        return commit(candidates, torch.zeros(1, dtype=torch.long)), None
