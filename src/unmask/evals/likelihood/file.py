"""Scoring a file of pairs: read, score group by group, and never lose or repeat a finished item.

Enters: JSON lines {"prompt", "answer", optional "id"}. Leaves: JSON lines, a header with the settings first, then one
record per item in the order of the input. Until all is done the records stand in a hidden `.part` file beside the
output, one line per group, so that a run that was killed goes on where it stopped. The groups are fixed by the input:
a resumed run computes the same forwards as an uninterrupted one and writes the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.core.errors import InputError
from unmask.sinks.files import WholeFile, reason

FORMAT = 1
GROUP = 16
"""Items scored together, and lost together when a run is killed."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A prompt and an answer to score, and the name they go by."""

    id: str
    prompt: str
    answer: str


def read_items(path: str | Path) -> list[Item]:
    """The pairs of a JSON-lines file; items without an id are named by their line number.

    Raises:
        InputError: a file that cannot be read, a line that is no pair, or an id that occurs twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        got = reason(error) if isinstance(error, OSError) else "another encoding"
        raise InputError(f"--input {path}", expected="a UTF-8 file of JSON lines", got=got) from None
    items, seen = [], set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        item = _item(line, f"{path}, line {number}", str(number))
        if item.id in seen:
            raise InputError(f"{path}, line {number}", expected="an id of its own", got=f"{item.id!r} once more")
        seen.add(item.id)
        items.append(item)
    if not items:
        raise InputError(f"--input {path}", expected='lines {"prompt": ..., "answer": ...}', got="no line")
    return items


def _item(line: str, where: str, name: str) -> Item:
    form = '{"prompt": "...", "answer": "..."} and, if you like, an "id"'
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(where, expected=form, got=f"no JSON: {error}") from None
    prompt, answer = (found.get("prompt"), found.get("answer")) if isinstance(found, dict) else (None, None)
    if not isinstance(prompt, str) or not isinstance(answer, str) or not answer:
        raise InputError(where, expected=form, got=line[:80])
    id = found.get("id", name)
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise InputError(f"{where}: id", expected="a text or a whole number", got=repr(id)[:80])
    return Item(str(id), prompt, answer)


def groups(items: Sequence[Item]) -> list[list[Item]]:
    """The items in their groups."""
    return [list(items[a : a + GROUP]) for a in range(0, len(items), GROUP)]


class ScoresFile:
    """The output of one run, with what earlier runs left.

    Args:
        path: where the scores go. header: the settings; an earlier run's must be equal, but for its "versions".
        items: of this run.

    Raises:
        InputError: scores of other settings or other texts stand there, or a file that is none of ours.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], items: Sequence[Item]) -> None:
        self.path = Path(path)
        self.part = self.path.with_name(f".{self.path.name}.part")
        self.header = {"format": FORMAT, **header}
        self.items = items
        self.records: dict[str, Record] = {}
        for file in (self.path, self.part):
            if file.exists():
                self._take(file)
        self.found = len(self.records)

    def left(self, group: Sequence[Item]) -> list[Item]:
        """Items of a group without a record."""
        return [item for item in group if item.id not in self.records]

    def add(self, records: Sequence[Record]) -> None:
        """Keeps the records of a group: on the disk when this returns."""
        new = not self.part.exists()
        with self.part.open("a", encoding="utf-8", newline="\n") as file:
            if new:
                file.write(_line(self.header))
            file.write(_line(list(records)))
            file.flush()
            os.fsync(file.fileno())
        self.records |= {r["id"]: r for r in records}

    def finish(self) -> None:
        """Puts the whole file in place, in the order of the items, and forgets the part."""
        with WholeFile(self.path) as file:
            file.write(_line(self.header))
            for item in self.items:
                file.write(_line(self.records[item.id]))
        self.part.unlink(missing_ok=True)

    def _take(self, file: Path) -> None:
        """Records of an earlier run; a torn last line is cut off, so that the next group starts a line of its own."""
        data = file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if file == self.part and len(whole) < len(data):
            with file.open("r+b") as torn:
                torn.truncate(len(whole))
        lines = list(_parsed(file, whole))
        if not lines:
            if file == self.part:
                file.unlink()
                return
            raise InputError(f"{file}", expected="scores of an earlier run, or no file", got="something else")
        self._same_settings(file, lines[0])
        texts = {item.id: item for item in self.items}
        for line in lines[1:]:
            for record in line if isinstance(line, list) else [line]:
                self._keep(file, record, texts)

    def _same_settings(self, file: Path, header: Any) -> None:
        if not isinstance(header, dict) or "format" not in header:
            raise InputError(f"{file}", expected="scores of an earlier run, or no file", got="something else")
        theirs, ours = _flat(header), _flat(self.header)
        changed = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)]
        if changed:
            k = changed[0]
            raise InputError(
                f"{file} was made with other settings: {', '.join(changed)}",
                expected=f"{k} {theirs.get(k)!r}",
                got=repr(ours.get(k)),
                remedy="Give the same options, or another --out; or remove the file to start again.",
            )

    def _keep(self, file: Path, record: Any, texts: Mapping[str, Item]) -> None:
        id = record.get("id") if isinstance(record, dict) else None
        item = texts.get(id) if isinstance(id, str) else None
        if item is None or record.get("prompt") != item.prompt or record.get("answer") != item.answer:
            got = f"item {id!r}, which the input does not hold" if item is None else f"another text for item {id!r}"
            raise InputError(
                f"{file}", expected="scores of this input", got=got, remedy="Give another --out, or remove the file."
            )
        self.records[item.id] = record


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, nested ones too; versions may change between two parts of a run."""
    nested = {k: v for k, v in header.items() if isinstance(v, dict) and k != "versions"}
    flat = {k: v for k, v in header.items() if not isinstance(v, dict)}
    return flat | {name: v for part in nested.values() for name, v in part.items()}


def _parsed(file: Path, data: bytes) -> Iterator[Any]:
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{file}, line {number}", expected="scores of an earlier run", got="no JSON") from None


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def run(
    items: Sequence[Item],
    score: Callable[[Sequence[Item]], list[Record]],
    out: ScoresFile | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Record]:
    """Scores group by group.

    Args:
        score: records of some items, in order; each holds id, prompt and answer.
        out: keeps what is done; None keeps nothing.
        progress: called with the number of items that are done.

    Returns:
        One record per item, in their order.
    """
    records: dict[str, Record] = dict(out.records) if out is not None else {}
    for group in groups(items):
        left = group if out is None else out.left(group)
        if left:
            found = score(left)
            records |= {r["id"]: r for r in found}
            if out is not None:
                out.add(found)
        if progress is not None:
            progress(sum(1 for item in items if item.id in records))
    if out is not None:
        out.finish()
    return [records[item.id] for item in items]
