"""A policy of your own: commit the two ends of the block first, then the middle. Usage: custom_policy.py [MODEL]"""

from __future__ import annotations

import sys
from collections.abc import Sequence as Seq
from dataclasses import replace

import torch
from torch import Tensor

import unmask
from unmask.core.protocols import Noise
from unmask.core.spec import component, option
from unmask.core.types import Block, Candidates, Commit, Sequence
from unmask.testing import check_policy

PROMPT = "Sort these numbers: 42 7 19 3"


@component("outside_in")
class OutsideIn:
    """Commit the outermost open positions of the block. count: positions per forward."""

    count: int = option(2, low=1, help="positions per forward")
    scores = ()

    def init(self, seq: Sequence) -> None:
        return None

    def wants(self, seq: Sequence, open: Seq[Block], state: None) -> Tensor:
        return seq.holes(open[0].start, open[-1].stop)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: None, noise: Noise
    ) -> tuple[Commit, None]:
        slots = torch.arange(want.numel())
        distance = torch.minimum(slots, want.numel() - 1 - slots)
        slots = torch.sort(distance, stable=True).indices[: self.count]
        return Commit(slots, candidates.token[slots], candidates.prob[slots]), None


def main() -> None:
    check_policy(OutsideIn())
    print("outside_in passes the checks of unmask.testing")
    model = unmask.load(sys.argv[1] if len(sys.argv) > 1 else None)
    (prepared,) = model.prepare(PROMPT, max_tokens=32)
    strategy = replace(prepared.request.strategy, policy=OutsideIn())
    prepared = replace(prepared, request=replace(prepared.request, strategy=strategy))
    collect = model.collector([prepared])
    for event in model.events([prepared]):
        collect(event)
    found = collect.generations[prepared.request.id]
    print(f"{strategy}: {found.nfe} forwards, {found.completion_tokens} tokens\n{found.text}")


if __name__ == "__main__":
    main()
