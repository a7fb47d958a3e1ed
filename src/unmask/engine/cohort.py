"""Sequences as the engine runs them, and the lock-step of a cohort: who is at its turn, and who leaves with whom.

Enters: what runs. Leaves: questions answered; nothing here changes a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from unmask.core.protocols import Noise
from unmask.core.types import Block, Peers, Sequence, Strategy


@dataclass
class Running:
    """One admitted sequence: its slots in the store (one per lane), its noise, and the cut of its answer."""

    seq: Sequence
    strategy: Strategy
    slots: tuple[int, ...]
    noise: Noise
    floor: int
    """Answer positions before it hold given text (constraints): an EOS there ends nothing."""
    opened: int = -1
    reach: int = -1
    """Where its first open block begins, and where its last one ends, as last told."""
    settled: int = 0
    ended: bool = False
    """Its policy said that the answer is complete; it waits for its cohort to say so too."""
    edited: bool = False
    """A decided token was written again: rows stored before may be stale."""


@dataclass(frozen=True)
class Front:
    """Where a cohort stands: its leftmost open block, the end of it counted from its rows' grids, and what it tells."""

    open: Block
    place: int
    peers: Peers


def fronts(running: Seq[Running]) -> dict[str | None, Front]:
    """Where every cohort stands. Its rows never overtake one another, as in the references' batches."""
    cohorts: dict[str, list[Running]] = {}
    for run in running:
        if run.seq.request.cohort is not None:
            cohorts.setdefault(run.seq.request.cohort, []).append(run)
    return {name: _front(members) for name, members in cohorts.items()}


def place(run: Running) -> int:
    """The end of a sequence's open block, counted from where its grid begins."""
    origin = 0 if run.seq.traits.grid_origin == "zero" else run.seq.blocks[0].start
    return run.strategy.schedule.open(run.seq)[0].stop - origin


def _front(members: list[Running]) -> Front:
    first = min(map(place, members))
    there = [(run, run.strategy.schedule.open(run.seq)[0]) for run in members if place(run) == first]
    entering = any(block.start != run.opened for run, block in there)
    holes = [int(run.seq.holes(0, run.seq.length)[0]) for run in members if run.seq.open_holes]
    return Front(there[0][1], first, Peers(entering, min(holes, default=None)))


def all_ended(running: Seq[Running]) -> list[Running]:
    """Rows of cohorts whose every row has ended: no further forward is spent on them."""
    staying = {run.seq.request.cohort for run in running if not run.ended}
    return [run for run in running if run.ended and run.seq.request.cohort not in staying]
