"""Who has which slot of the store, and what a session left in one between two requests (the turns of a conversation).

Enters: requests, and the ids of final rows. Leaves: slots, and how many rows of one a request may begin with. Final
rows depend on their ids alone, never on how these were decoded, so equal leading ids are all that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unmask.core.types import BlockCausal, Request, Traits


@dataclass(frozen=True)
class Parked:
    """A slot whose first rows are final, and the ids [n] that they were computed for."""

    slot: int
    ids: Tensor


class Slots:
    """Free slots and parked ones, those parked longest ago first."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._parked: dict[str, Parked] = {}

    @property
    def available(self) -> int:
        """Slots that a request may claim; parked ones count."""
        return len(self._free) + len(self._parked)

    def kept(self, session: str) -> int:
        """Rows that wait for the session's next request."""
        return len(self._parked[session].ids) if session in self._parked else 0

    def common(self, request: Request, traits: Traits) -> int:
        """Rows that a request may begin with: whole attention blocks of the same ids, all of them given."""
        if request.session not in self._parked or not isinstance(traits.attention, BlockCausal):
            return 0
        ids = self._parked[request.session].ids
        n = min(len(ids), len(request.canvas))
        same = (request.fixed[:n] & (request.canvas[:n] == ids[:n])).cumprod(0)
        return int(same.sum()) // traits.attention.size * traits.attention.size

    def claim(self, session: str | None, lanes: int, kept: int) -> tuple[int, ...]:
        """The slot that the session left if rows of it are kept; else free ones, and parked ones when these run out."""
        if session is not None and kept:
            return (self._parked.pop(session).slot,)
        if session is not None:
            self.release(session)
        while len(self._free) < lanes:
            self.release(next(iter(self._parked)))
        return tuple(self._free.pop(0) for _ in range(lanes))

    def park(self, session: str, slot: int, ids: Tensor) -> None:
        """Keep a slot for the session's next request, in place of one it had."""
        self.release(session)
        self._parked[session] = Parked(slot, ids)

    def release(self, session: str) -> None:
        """Forget what a session left."""
        if session in self._parked:
            self.give(self._parked.pop(session).slot)

    def give(self, *slots: int) -> None:
        """These slots are free again."""
        self._free = sorted((*self._free, *slots))
