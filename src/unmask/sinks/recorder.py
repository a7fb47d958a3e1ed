"""Recordings: a run as JSON lines, replayed without a model and without a tokenizer.

Line 1 is the header (format, version, and what the caller adds: config, versions, seed). Then events, each preceded
by `{"piece": {id: text}}` for ids not seen before, then `{"answers": {id: ...}}` with the text as the run printed it
(pieces alone cannot say it: characters of several tokens, stop strings). The last line `{"end": lines}` tells a whole
recording from a cut one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from unmask.core.errors import RecordingError
from unmask.core.events import (
    Accepted,
    BlockDone,
    Event,
    Failed,
    Finished,
    Opened,
    Probed,
    Reason,
    Stepped,
    Work,
    from_dict,
    to_dict,
)
from unmask.sinks.cells import Piece
from unmask.sinks.files import WholeFile

FORMAT, VERSION = "unmask-recording", 1


@dataclass(frozen=True)
class Answer:
    """What a reader saw of one request: its text, and the tokens that the model wrote in it."""

    text: str
    completion_tokens: int


@dataclass(frozen=True)
class Recording:
    """A read recording: its header, its events in order, the text of every token id in them, and the answers as they
    were printed, by request (none in a recording whose maker gave none)."""

    header: dict[str, Any]
    events: tuple[Event, ...]
    pieces: dict[int, str]
    answers: dict[str, Answer] = field(default_factory=dict)


class Lines:
    """The lines of one recording in order, as JSON values: `begin`, `of` every event, then `finish`.

    Args:
        header: what produced the run: resolved config, versions, seed; JSON values.
        piece: the text of one token id.
    """

    def __init__(self, header: Mapping[str, Any], piece: Piece) -> None:
        self._header, self._piece = header, piece
        self._known, self._count = set[int](), 0

    def begin(self) -> dict[str, Any]:
        """The first line."""
        self._count = 1
        return {"format": FORMAT, "version": VERSION, **self._header}

    def of(self, event: Event) -> list[dict[str, Any]]:
        """The event, after the pieces of ids that were not seen before."""
        found = [to_dict(event)]
        fresh = [i for i in dict.fromkeys(_ids(event)) if i not in self._known]
        if fresh:
            self._known.update(fresh)
            found.insert(0, {"piece": {str(i): self._piece(i) for i in fresh}})
        self._count += len(found)
        return found

    def finish(self, answers: Mapping[str, Answer]) -> list[dict[str, Any]]:
        """The answers as they were printed, if there are any, and the line that ends a whole recording."""
        table = {request: asdict(answer) for request, answer in answers.items()}
        found: list[dict[str, Any]] = [{"answers": table}] if table else []
        return [*found, {"end": self._count + len(found)}]


def as_text(line: Mapping[str, Any]) -> str:
    """A line of a recording as it is written, without its line end."""
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


class Recorder:
    """A sink that writes a recording. The file appears at `close`, and only if every request was finished or failed by
    then: an interrupted run leaves nothing behind.

    Args:
        path: the JSONL file.
        header, piece: as for `Lines`.
        answers: asked at the end for the answers by request id.
    """

    def __init__(
        self,
        path: str | Path,
        header: Mapping[str, Any],
        piece: Piece,
        answers: Callable[[], Mapping[str, Answer]] = dict,
    ) -> None:
        self._answers, self._lines = answers, Lines(header, piece)
        self._running, self._begun = set[str](), False
        self._file: WholeFile | None = WholeFile(path)
        self._put(self._lines.begin())

    def __call__(self, event: Event) -> None:
        if isinstance(event, Accepted):
            self._running.add(event.id)
            self._begun = True
        elif isinstance(event, Finished | Failed):
            self._running.discard(event.id)
        self._put(*self._lines.of(event))

    def close(self) -> None:
        """Finishes the recording, or removes it if the run was cut short. Doing it twice is harmless."""
        if self._file is None:
            return
        if self._running or not self._begun:
            self.discard()
            return
        self._put(*self._lines.finish(self._answers()))
        file, self._file = self._file, None
        file.commit()

    def discard(self) -> None:
        """Leaves no file."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def _put(self, *lines: dict[str, Any]) -> None:
        if self._file is None:
            raise RecordingError("a recording", expected="events before close()", got="an event after it")
        for line in lines:
            self._file.write(as_text(line) + "\n")


def _ids(event: Event) -> Iterable[int]:
    if isinstance(event, Accepted):
        return (i for i in event.canvas if i >= 0)
    if isinstance(event, Stepped):
        return (token for _, token, _, kind in event.writes if kind != 3)
    return ()


def read(path: str | Path) -> Recording:
    """Reads a recording and checks that it is whole.

    Raises:
        RecordingError: not a recording, another version, a damaged line, or the end is missing.
        OSError: the file cannot be opened.
    """
    try:
        lines = Path(path).read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise RecordingError(
            str(path), expected="a recording in UTF-8", got=f"byte {error.start} that is not"
        ) from None
    if lines[-1] == "":
        lines.pop()
    return read_lines(lines, path)


def read_lines(lines: Iterable[str], name: str | Path = "recording") -> Recording:
    """The same from its lines; `name` is what an error calls it.

    Raises:
        RecordingError: as for `read`.
    """
    rows = [_parse(text, name, n) for n, text in enumerate(lines, 1)]
    header = _header(rows, name)
    _check_end(rows, name)
    return _collect(header, rows[1:-1], name)


def _parse(text: str, path: str | Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):  # ValueError: no JSON, or a number of thousands of digits
        row = None
    if not isinstance(row, dict):
        remedy = "The file is cut or damaged, or is not a recording; make it again with `unmask generate --record`."
        raise RecordingError(f"{path}, line {number}", expected="a JSON object", got=repr(text[:40]), remedy=remedy)
    return row


def _header(rows: list[dict[str, Any]], path: str | Path) -> dict[str, Any]:
    if not rows or rows[0].get("format") != FORMAT:
        raise RecordingError(
            str(path),
            expected=f'a first line with "format": "{FORMAT}"',
            got="another file" if rows else "an empty file",
        )
    if type(rows[0].get("version")) is not int or rows[0]["version"] != VERSION:
        remedy = "It was made by another version of unmask; replay it there, or record it again."
        raise RecordingError(str(path), expected=f"version {VERSION}", got=repr(rows[0].get("version")), remedy=remedy)
    return rows[0]


def _check_end(rows: list[dict[str, Any]], path: str | Path) -> None:
    end = rows[-1].get("end")
    if type(end) is not int or end != len(rows) - 1:
        got = "no such line" if end is None else f"{end!r} after {len(rows) - 1} lines"
        raise RecordingError(
            str(path), expected='a last line {"end": number of lines}', got=got, remedy="The recording is cut."
        )


def _collect(header: dict[str, Any], rows: list[dict[str, Any]], path: str | Path) -> Recording:
    events: list[Event] = []
    pieces: dict[int, str] = {}
    lengths: dict[str, int] = {}
    answers: dict[str, Answer] = {}
    for number, row in enumerate(rows, 2):
        try:
            if "piece" in row:
                pieces.update(_pieces(row["piece"]))
            elif "answers" in row:
                answers.update(_read_answers(row["answers"], lengths))
            else:
                event = from_dict(row)
                _check(event, lengths, pieces)
                events.append(event)
        except (RecordingError, TypeError, ValueError, AttributeError) as error:
            raise RecordingError(f"{path}, line {number}", expected="a valid event", got=str(error)) from None
    return Recording(header, tuple(events), pieces, answers)


def _pieces(row: Any) -> dict[int, str]:
    pieces = {int(k): v for k, v in row.items()}
    if not all(isinstance(v, str) for v in pieces.values()):
        raise ValueError("a piece that is not text")
    return pieces


def _read_answers(row: Any, known: Mapping[str, int]) -> dict[str, Answer]:
    answers = {request: Answer(**answer) for request, answer in row.items()}
    for request, answer in answers.items():
        counts = type(answer.completion_tokens) is int and answer.completion_tokens >= 0
        if request not in known or not isinstance(answer.text, str) or not counts:
            raise ValueError(f"an answer {answer!r} of request {request!r}")
    return answers


def _check(event: Event, lengths: dict[str, int], pieces: dict[int, str]) -> None:
    """Everything `fold` and the drawings rely on, so that a damaged recording is refused and never half drawn."""
    if not isinstance(event.id, str):
        raise ValueError(f"request id {event.id!r}")
    if isinstance(event, Accepted):
        _check_accepted(event)
        lengths[event.id] = len(event.canvas)
    if event.id not in lengths:
        raise ValueError(f"an event of request {event.id!r}, which was never accepted")
    missing = next((i for i in _ids(event) if i not in pieces), None)
    if missing is not None:
        raise ValueError(f"token {missing!r} without a piece")
    _check_numbers(event, lengths[event.id])


def _check_accepted(event: Accepted) -> None:
    n = len(event.canvas)
    if not all(type(i) is int and i >= -1 for i in event.canvas):
        raise ValueError("a canvas with something else than ids")
    if len(event.fixed) != n or not all(type(f) is bool for f in event.fixed):
        raise ValueError("a canvas and a list of fixed positions of different lengths")
    if type(event.prompt_len) is not int or not 0 <= event.prompt_len <= n:
        raise ValueError(f"prompt_len {event.prompt_len!r} in a canvas of {n}")
    if not all(0 <= a <= b <= n for a, b in event.blocks):
        raise ValueError("a block outside the canvas")


def _check_numbers(event: Event, n: int) -> None:
    if isinstance(event, Stepped):
        bad = next((w for w in event.writes if not 0 <= w[0] < n or w[3] not in (1, 2, 3)), None)
        if bad is not None:
            raise ValueError(f"a write {bad!r} in a canvas of {n}")
        _check_work(event.work)
    spans: tuple[Any, ...] = ()
    if isinstance(event, Opened | BlockDone):
        spans = (event.start, event.stop)
    elif isinstance(event, Finished):
        spans = (event.end,)
    if not all(type(p) is int and 0 <= p <= n for p in spans):
        raise ValueError(f"positions {spans!r} in a canvas of {n}")
    if isinstance(event, Stepped | Probed | Finished) and (type(event.nfe) is not int or event.nfe < 0):
        raise ValueError(f"nfe {event.nfe!r}")
    if isinstance(event, Finished) and event.reason not in get_args(Reason):
        raise ValueError(f"reason {event.reason!r}")
    if isinstance(event, Failed) and not isinstance(event.error, str):
        raise ValueError(f"an error that is no text: {event.error!r}")


def _check_work(work: Work) -> None:
    counts = (work.row_layers, work.head_rows, work.sharing)
    seconds = type(work.seconds) in (int, float) and 0 <= work.seconds < math.inf
    if not seconds or not all(type(c) is int and c >= 0 for c in counts):
        raise ValueError(f"work {work!r}")
