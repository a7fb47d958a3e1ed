"""Several processes that answer one list of requests: who does what, and how everyone gets all of it.

Every process is given all requests. The work is cut into groups that do not depend on the number of processes; group i
belongs to process i mod world. So two processes make the same forwards as one, and lm-eval's own draws of worked
examples stay those of a single process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

Work = TypeVar("Work")
Result = TypeVar("Result")
PATIENCE = timedelta(days=7)
"""How long a process waits for the slowest: as long as an evaluation may take."""


@dataclass(frozen=True)
class Processes:
    """rank: of this process; world: how many there are. They find each other as torchrun and accelerate say."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", rank=self.rank, world_size=self.world, timeout=PATIENCE)

    def map(self, do: Callable[[Work], Sequence[Result]], groups: Sequence[Work]) -> list[Result]:
        """The results of all groups in their order, in every process."""
        mine = {i: list(do(g)) for i, g in enumerate(groups) if i % self.world == self.rank}
        parts = [mine] * self.world
        if self.world > 1:
            dist.all_gather_object(parts, mine)
        found = {i: results for part in parts for i, results in part.items()}
        return [r for i in sorted(found) for r in found[i]]

    def close(self) -> None:
        """Leave the others in peace."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()
