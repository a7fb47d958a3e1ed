"""Counts what a run did from its events alone: tokens, forwards, seconds. Enters: events. Leaves: a `Summary` per
request and in all.

Seconds are the engine's own step times, so a drawing or a slow pipe does not make the model look slow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from unmask.core.events import Accepted, Event, Finished, Stepped


@dataclass(frozen=True)
class Summary:
    """What one request, or a whole run, cost.

    Args:
        tokens: visible answer tokens (up to the end of the answer, the given ones not counted).
        nfe: forwards; of a whole run the forwards made, each counted once however many requests shared it.
        seconds: wall time of the steps. row_layers, head_rows: rows computed, as the engine counts them.
        kinds: forwards by kind (prefill, full, partial, shallow, commit), counted per request.
    """

    requests: int = 0
    tokens: int = 0
    nfe: int = 0
    seconds: float = 0.0
    row_layers: int = 0
    head_rows: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / self.nfe if self.nfe else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens in {self.nfe} forwards ({self.tokens_per_forward:.2f} tokens per forward), "
            f"{self.seconds:.2f} s, {self.tokens_per_second:.1f} tokens/s"
        )


@dataclass
class _Count:
    start: int
    given: tuple[int, ...]
    tokens: int = 0
    nfe: int = 0
    seconds: float = 0.0
    row_layers: int = 0
    head_rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)


class Metrics:
    """A sink that counts. `of(id)` is one request's summary, `total()` the run's."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}
        self._forwards = 0.0
        self._seconds = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Accepted):
            given = tuple(i for i, f in enumerate(event.fixed) if f and i >= event.prompt_len)
            self._counts[event.id] = _Count(event.prompt_len, given)
        elif isinstance(event, Stepped) and event.id in self._counts:
            count, work = self._counts[event.id], event.work
            count.nfe, count.seconds = event.nfe, count.seconds + work.seconds
            count.row_layers, count.head_rows = count.row_layers + work.row_layers, count.head_rows + work.head_rows
            count.kinds[work.kind] += 1
            self._forwards += 1 / max(work.sharing, 1)
            self._seconds += work.seconds / max(work.sharing, 1)
        elif isinstance(event, Finished) and event.id in self._counts:
            count = self._counts[event.id]
            given_inside = sum(i < event.end for i in count.given)
            count.tokens, count.nfe = max(event.end - count.start - given_inside, 0), event.nfe

    def close(self) -> None:
        """Nothing to close."""

    def of(self, request: str) -> Summary:
        """One request: its seconds are those of every step it took part in."""
        c = self._counts[request]
        return Summary(1, c.tokens, c.nfe, c.seconds, c.row_layers, c.head_rows, dict(c.kinds))

    def total(self) -> Summary:
        """The whole run; a step shared by several requests counts once."""
        counts = self._counts.values()
        return Summary(
            len(counts),
            sum(c.tokens for c in counts),
            round(self._forwards),
            self._seconds,
            sum(c.row_layers for c in counts),
            sum(c.head_rows for c in counts),
            dict(sum((c.kinds for c in counts), Counter())),
        )
