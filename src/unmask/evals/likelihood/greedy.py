"""Does greedy decoding write exactly this answer? LLaDA's check (`suffix_greedy_prediction`), many pairs in step.

All answer tokens are masked; the most confident best token is written, one per forward, until one is wrong or all are
right. On block models block by block, with the earlier ones clean.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from unmask.evals.likelihood.canvas import Canvas, Pair
from unmask.evals.likelihood.forwards import Speaker, Spoken

Walk = Generator[Canvas, Spoken, bool]


def check(speaker: Speaker, pairs: Sequence[Pair]) -> list[tuple[bool, set[int]]]:
    """For each pair, whether greedy decoding writes it, and the model calls it took."""
    walks = [_walk(pair) for pair in pairs]
    found: list[tuple[bool, set[int]]] = [(True, set()) for _ in pairs]
    canvases = {i: c for i, walk in enumerate(walks) if (c := next(walk, None)) is not None}
    while canvases:
        following = {}
        for i, spoken in zip(canvases, speaker(list(canvases.values())), strict=True):
            found[i][1].add(spoken.call)
            try:
                following[i] = walks[i].send(spoken)
            except StopIteration as end:
                found[i] = (end.value, found[i][1])
        canvases = following
    return found


def _walk(pair: Pair) -> Walk:
    for part in pair.parts:
        left = list(part.holes)
        while left:
            spoken = yield pair.canvas(part, left, left)
            slot = int(spoken.best_log_p.argmax())
            if int(spoken.best[slot]) != int(pair.ids[left[slot]]):
                return False
            del left[slot]
    return True
