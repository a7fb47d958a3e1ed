"""The one event stream of decoding: ids, not text. `fold` rebuilds every canvas from it alone.

Events are small frozen records; `to_dict` and `from_dict` are their JSON form, used by recordings, pages and servers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from unmask.core.errors import RecordingError

if TYPE_CHECKING:
    from unmask.core.protocols import Sink


@dataclass(frozen=True)
class Accepted:
    """A request entered the engine. canvas: ids with -1 at holes; fixed: never edited; blocks: their spans."""

    id: str
    canvas: tuple[int, ...]
    fixed: tuple[bool, ...]
    prompt_len: int
    blocks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Opened:
    """A block became the open one, or one more opened: `start` of the first that is open, `stop` of the last."""

    id: str
    block: int
    start: int
    stop: int


@dataclass(frozen=True)
class Work:
    """What a step cost. row_layers: rows times the layers that ran for them, over all lanes; head_rows: rows through
    the output matrix; seconds: wall time of the whole step, shared by `sharing` sequences. kind "shallow": not every
    layer ran for every row."""

    kind: str
    row_layers: int
    head_rows: int
    seconds: float
    sharing: int = 1


@dataclass(frozen=True)
class Stepped:
    """One forward of a sequence. writes: (position, token, confidence, kind) with kind 1 fill, 2 edit, 3 remask."""

    id: str
    nfe: int
    work: Work
    writes: tuple[tuple[int, int, float, int], ...]


@dataclass(frozen=True)
class BlockDone:
    """A block was finished after `steps` forwards."""

    id: str
    start: int
    stop: int
    steps: int


@dataclass(frozen=True)
class Probed:
    """A probe's values for one forward, nested lists of floats; only on request."""

    id: str
    nfe: int
    kind: str
    layer: int
    positions: tuple[int, ...]
    values: Any


Reason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Finished:
    """The answer is canvas[prompt_len:end]. reason: "stop" (EOS or a stop string), "length", or "cancelled"."""

    id: str
    reason: Reason
    nfe: int
    end: int


@dataclass(frozen=True)
class Failed:
    """The request could not be finished; the others go on."""

    id: str
    error: str


Event = Accepted | Opened | Stepped | BlockDone | Probed | Finished | Failed
_TYPES: dict[str, type] = {t.__name__: t for t in (Accepted, Opened, Stepped, BlockDone, Probed, Finished, Failed)}
E = TypeVar("E")


def to_dict(event: Event) -> dict[str, Any]:
    """JSON-ready form with the event's name under "event". A confidence of minus infinity (a demoted token) is null,
    since JSON has no infinities."""
    data = {"event": type(event).__name__, **dataclasses.asdict(event)}
    if isinstance(event, Stepped):
        data["writes"] = [(p, t, c if math.isfinite(c) else None, k) for p, t, c, k in event.writes]
    return data


def from_dict(data: dict[str, Any]) -> Event:
    """The inverse of `to_dict`.

    Raises:
        RecordingError: unknown event name, or fields that do not fit it.
    """
    name = data.get("event")
    cls = _TYPES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise RecordingError("event in a recording", expected=f"one of {', '.join(_TYPES)}", got=repr(name))
    fields = {k: v for k, v in data.items() if k != "event"}
    try:
        if cls is Stepped:
            fields["work"] = Work(**fields["work"])
            fields["writes"] = tuple(
                (_whole(p), _whole(t), -math.inf if c is None else _real(c), _whole(k))
                for p, t, c, k in fields["writes"]
            )
        if cls is Accepted:
            fields["blocks"] = tuple((_whole(a), _whole(b)) for a, b in fields["blocks"])
        for key in ("canvas", "fixed", "positions"):
            if key in fields:
                fields[key] = tuple(fields[key])
        return cast(Event, cls(**fields))
    except (TypeError, KeyError, ValueError, OverflowError) as e:
        raise RecordingError(f"{name} event in a recording", expected="the fields of that event", got=str(e)) from None


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} in place of a whole number")
    return value


def _real(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} in place of a number")
    return float(value)


@dataclass
class Canvas:
    """A canvas rebuilt from events. ids: -1 at holes; step: the nfe at which each was last written (0 = given)."""

    ids: list[int]
    fixed: tuple[bool, ...]
    prompt_len: int
    blocks: tuple[tuple[int, int], ...]
    step: list[int]
    confidence: list[float]
    nfe: int = 0
    reason: str | None = None
    end: int | None = None
    error: str | None = None
    open: tuple[int, int] | None = None
    fresh: set[int] = field(default_factory=set)

    def apply(self, event: Event) -> None:
        """Take one event of this canvas into account."""
        if isinstance(event, Stepped):
            self.nfe, self.fresh = event.nfe, set()
            for position, token, confidence, kind in event.writes:
                self.ids[position] = -1 if kind == 3 else token
                self.step[position], self.confidence[position] = event.nfe, confidence
                self.fresh.add(position)
        elif isinstance(event, Opened):
            self.open = (event.start, event.stop)
        elif isinstance(event, Finished):
            self.reason, self.end, self.nfe, self.fresh = event.reason, event.end, event.nfe, set()
        elif isinstance(event, Failed):
            self.error = event.error


def start_canvas(event: Accepted) -> Canvas:
    """The canvas as it was accepted."""
    n = len(event.canvas)
    return Canvas(list(event.canvas), tuple(event.fixed), event.prompt_len, event.blocks, [0] * n, [1.0] * n)


def fold(events: Iterable[Event]) -> dict[str, Canvas]:
    """Every canvas after the events, by request id."""
    canvases: dict[str, Canvas] = {}
    for event in events:
        if isinstance(event, Accepted):
            canvases[event.id] = start_canvas(event)
        elif event.id in canvases:
            canvases[event.id].apply(event)
    return canvases


def tee(events: Iterable[E], *sinks: Sink) -> Iterator[E]:
    """Pass events on and hand each to every sink; every sink is closed at the end, in order, also after an error or an
    early stop, and also when another one fails to close."""
    with ExitStack() as stack:
        for sink in reversed(sinks):
            stack.callback(sink.close)
        for event in events:
            for sink in sinks:
                sink(event)  # type: ignore[arg-type]
            yield event
