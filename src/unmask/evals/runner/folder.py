"""The directory of a run: its manifest, what was finished so far, and a lock.

Enters: finished groups. Leaves: `run.json` (what the run is), `parts/rank0.jsonl` (one line per finished group, on the
disk before the next group begins) and, at the end, whole files. After a kill at any moment the lines that were complete
are there, and a line that was cut short is dropped. Only a group whose composition is the plan's own is taken back.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.core.errors import ConfigError, InputError, RecordingError, RunError
from unmask.evals.runner.lock import held, is_held
from unmask.sinks.files import reason, write_text

FORMAT = 1
MANIFEST, PARTS = "run.json", "parts"
PATIENCE = 600.0
"""Seconds that a process may be missing before the others give up."""
POLL = 0.2
RECORD = {"index", "sample", "id", "scores", "extracted", "tokens", "nfe"}
"""What every record has."""
LOOKS = 5
"""Another process that only looks whether a lock is held has it for a moment."""


@dataclass(frozen=True)
class Group:
    """A finished group. stage: "answers" or "audit"; keys: (index, sample) of its records; cost: seconds, tokens ..."""

    stage: str
    keys: tuple[tuple[int, int], ...]
    records: tuple[Mapping[str, Any], ...]
    cost: Mapping[str, Any]


class Folder:
    """One run's directory, as one of `world` processes sees it.

    Raises:
        InputError: a path that is a file, belongs to something else, or cannot be written.
    """

    def __init__(self, path: Path, rank: int = 0, world: int = 1) -> None:
        self.path, self.rank, self.world = path, rank, world
        begun = (path / MANIFEST).exists()
        claim(path, PARTS, "a run", begun or not path.is_dir() or all(_ours(p) for p in path.iterdir()))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds this process's place in the run.

        Raises:
            InputError: another process has it, or the folder is closed to us.
        """
        try:
            with held(self._lock(self.rank), LOOKS) as got:
                if not got:
                    raise InputError(
                        f"--out {self.path}", expected="a folder that no other process writes", got="a run that is on",
                        remedy="Wait for it, or name another folder.",
                    )  # fmt: skip
                yield
        except PermissionError as error:
            raise InputError(f"--out {self.path}", expected="a folder that can be written", got=reason(error)) from None

    def _lock(self, rank: int) -> Path:
        return self.path / f".lock{rank}"

    # ---- the manifest ------------------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any] | None:
        """run.json, None if the run has not begun.

        Raises:
            RecordingError: a file that is damaged or of another version.
        """
        path = self.path / MANIFEST
        try:
            found = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, UnicodeDecodeError) as error:
            raise RecordingError(
                f"{path} is damaged", got=str(error), remedy="Name another folder, or delete this one."
            ) from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            got = repr(found.get("format")) if isinstance(found, dict) else type(found).__name__
            raise RecordingError(
                f"{path}: format", expected=str(FORMAT), got=got, remedy="Name another folder, or delete this one."
            )
        if not all(isinstance(found.get(name), dict) for name in ("run", "notes")):
            raise RecordingError(
                f"{path} is damaged",
                expected='objects "run" and "notes"',
                remedy="Name another folder, or delete this one.",
            )
        return found

    def begin(self, run: Mapping[str, Any], notes: Mapping[str, Any], extend: bool) -> None:
        """Writes the manifest, or checks that the folder's run is this one. Other ranks wait for rank 0's.

        Args:
            run: everything that decides the numbers. notes: names and paths, kept but not compared.
            extend: go on with more items than the folder's run had.

        Raises:
            ConfigError: the folder's run has other settings; the message names them.
        """
        if self.rank > 0:
            self._wait_for(run)
            return
        there = self.manifest()
        if there is not None:
            changes = differences(there["run"], run)
            more = set(changes) <= {"limit", "items"} and run["items"] > there["run"]["items"]
            if not changes:
                return
            if not (more and extend):
                raise _other_run(self.path, changes, more)
        write_json(self.path / MANIFEST, {"format": FORMAT, "run": run, "notes": notes})

    def _wait_for(self, run: Mapping[str, Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            there = self.manifest()
            changes = differences(there["run"], run) if there is not None else {}
            if there is not None and not changes:
                return
            if time.monotonic() > deadline or (changes and not set(changes) <= {"limit", "items"}):
                if there is None:
                    raise RunError(f"{self.path}: the first process has not begun the run for {PATIENCE:.0f} s")
                raise _other_run(self.path, changes, False)
            time.sleep(POLL)

    # ---- finished groups ---------------------------------------------------------------------------------------------

    def append(self, group: Group) -> None:
        """Puts a finished group on the disk."""
        line = {"stage": group.stage, "keys": group.keys, "records": group.records, "cost": group.cost}
        path = self._part(self.rank)
        try:
            with path.open("ab") as file:
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"could not write {path}: {reason(error)}; what was finished before is kept") from None

    def repair(self) -> None:
        """Drops a last line that a kill cut short, so that the next one does not grow on it."""
        path = self._part(self.rank)
        if not path.is_file():
            return
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())

    def groups(self) -> list[Group]:
        """Every complete group of every process, in no order.

        Raises:
            RecordingError: a damaged line that is not the last.
        """
        found = []
        for path in sorted((self.path / PARTS).glob("rank*.jsonl")):
            lines = path.read_bytes().split(b"\n")
            for number, line in enumerate(lines[:-1], 1):  # behind the last line break is nothing, or a torn line
                found.append(_group(line, path, number))
        return found

    def wait(self, missing: Mapping[int, int], seconds: float = PATIENCE) -> None:
        """One pause while others work.

        Args:
            missing: rank -> when it was last seen alive (a clock of the caller's, in seconds).

        Raises:
            RunError: a process that is gone, with its work undone.
        """
        now = int(time.monotonic())
        gone = [r for r, seen in missing.items() if now - seen > seconds]
        if gone:
            names = ", ".join(map(str, gone))
            raise RunError(f"process {names} of {self.world} is gone, its items are missing; start the run again")
        time.sleep(POLL)

    def alive(self, rank: int) -> bool:
        """Whether that process holds its place."""
        return is_held(self._lock(rank))

    def _part(self, rank: int) -> Path:
        return self.path / PARTS / f"rank{rank}.jsonl"

    # ---- the end -----------------------------------------------------------------------------------------------------

    def write_lines(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """A whole JSON-lines file."""
        write_text(self.path / name, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """A whole JSON file."""
        write_json(self.path / name, value)

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of this run, None if it is not there (yet)."""
        path = self.path / name
        return read_json(path) if path.is_file() else None

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Records of an items file, [] if it is not there.

        Raises:
            RecordingError: a damaged file.
        """
        path = self.path / name
        found = read_lines(path) if path.is_file() else []
        for number, record in enumerate(found, 1):
            try:
                _place(record)
            except (ValueError, KeyError, TypeError) as error:
                raise _damaged(f"{path} line {number}", error) from None
        return found

    def close(self) -> None:
        """The parts are in the whole files now, and nobody waits for a lock any more."""
        shutil.rmtree(self.path / PARTS, ignore_errors=True)
        for path in self.path.glob(".lock*"):
            with suppress(OSError):  # some systems keep a file while it is open
                path.unlink()


def _ours(path: Path) -> bool:
    return path.name == PARTS or path.name.startswith(".lock") or path.name.endswith(".partial")


def _group(line: bytes, path: Path, number: int) -> Group:
    try:
        value = json.loads(line)
        keys = tuple((int(a), int(b)) for a, b in value["keys"])
        if keys != tuple(_place(record) for record in value["records"]):
            raise ValueError("its records are not those of its keys")
        return Group(str(value["stage"]), keys, tuple(value["records"]), dict(value["cost"]))
    except (ValueError, KeyError, TypeError) as error:
        raise RecordingError(
            f"{path} line {number} is damaged", got=str(error), remedy="Delete that line: its items are done again."
        ) from None


def _place(record: Mapping[str, Any]) -> tuple[int, int]:
    """The key of a record that has what every record has."""
    if not isinstance(record, Mapping) or not record.keys() >= RECORD or not isinstance(record["scores"], Mapping):
        raise ValueError("it is not the record of an answer")
    return int(record["index"]), int(record["sample"])


def _damaged(what: str, error: Exception) -> RecordingError:
    return RecordingError(f"{what} is damaged", got=str(error), remedy="Name another folder, or delete this file.")


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings that differ by name, such as "options.threshold": (there, here)."""
    out: dict[str, tuple[Any, Any]] = {}
    for name in {**there, **here}:
        a, b = there.get(name), here.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out |= differences(a, b, f"{prefix}{name}.")
        elif a != b:
            out[prefix + name] = (a, b)
    return out


def _other_run(path: Path, changes: Mapping[str, tuple[Any, Any]], more: bool) -> ConfigError:
    shown = [(f"{_short(a)} ({name})", _short(b)) for name, (a, b) in list(changes.items())[:6]]
    if more:
        remedy = "Add --extend to go on with more items, or name another folder."
    elif set(changes) <= {"limit", "items"}:
        remedy = "A run does not become smaller; name another folder."
    else:
        remedy = "Use the same settings to go on with it, or name another folder."
    expected, got = ", ".join(a for a, _ in shown), ", ".join(b for _, b in shown)
    return ConfigError(f"--out {path} has a run with other settings", expected=expected, got=got, remedy=remedy)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RecordingError: damaged, or something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise _damaged(str(path), error) from None
    if not isinstance(value, dict):
        raise RecordingError(f"{path}", expected="a JSON object", got=type(value).__name__)
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON-lines file.

    Raises:
        RecordingError: a line that is no JSON object.
    """
    out = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):  # a text may hold other line breaks
        if not line:
            continue
        try:
            value = json.loads(line.decode())
        except ValueError as error:
            raise _damaged(f"{path} line {number}", error) from None
        if not isinstance(value, dict):
            raise RecordingError(f"{path} line {number}", expected="a JSON object", got=type(value).__name__)
        out.append(value)
    return out


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A whole JSON file, in lines a person can read."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def ranks(world: int, mine: int) -> Sequence[int]:
    """The other processes."""
    return [r for r in range(world) if r != mine]


def claim(path: Path, inside: str, owner: str, free: bool) -> None:
    """Makes `path` and the folder `inside` it.

    Args:
        owner: what such a folder belongs to, in words. free: whether nothing foreign lies in it.

    Raises:
        InputError: a file, a folder with other things, or one that cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"--out {path}", expected="a folder", got="a file")
    if not free:
        expected = f"a new folder, or one of {owner}"
        raise InputError(
            f"--out {path}", expected=expected, got="a folder with other files", remedy="Name another folder."
        )
    try:
        (path / inside).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {path}", expected="a folder that can be written", got=reason(error)) from None
