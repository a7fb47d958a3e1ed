"""A run made by hand, for every test of a sink: 24 words that settle four at a time."""

from __future__ import annotations

import random
from collections.abc import Iterator

from unmask.core.events import Accepted, BlockDone, Event, Finished, Opened, Stepped, Work

WORDS = "Lily had nine red apples . She gave four to her brother , so she has 9 - 4 = 5 apples left .".split()
PROMPT = 90
PIECES = {i: (" " if i else "") + w for i, w in enumerate(WORDS)} | {PROMPT: "How many are left?"}
piece = PIECES.__getitem__


def run(name: str = "0", per_step: int = 4, seconds: float = 0.01, sharing: int = 1) -> Iterator[Event]:
    """Positions 1 .. 24 settle in a random order with random confidences."""
    n, rnd = len(WORDS), random.Random(0)
    yield Accepted(name, (PROMPT, *([-1] * n)), (True, *([False] * n)), 1, ((1, n + 1),))
    yield Opened(name, 0, 1, n + 1)
    order, nfe = rnd.sample(range(n), n), 0
    while order:
        nfe, now, order = nfe + 1, sorted(order[:per_step]), order[per_step:]
        work = Work("full", 2 * (n + 1), len(now), seconds, sharing)
        yield Stepped(name, nfe, work, tuple((1 + p, p, rnd.random(), 1) for p in now))
    yield BlockDone(name, 1, n + 1, nfe)
    yield Finished(name, "length", nfe, n + 1)
