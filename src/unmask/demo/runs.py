"""Recordings a page can show again: runs that just ended (in memory), those of the package, and those of a folder.

Enters: the lines of finished runs, or files. Leaves: recordings as JSONL or as one HTML file.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from unmask.core.errors import InputError, RecordingError, RequestError
from unmask.core.events import fold
from unmask.sinks.files import reason, write_text
from unmask.sinks.recorder import Recording, read

NAME = re.compile(r"[\w][\w .()+-]{0,79}")
"""Names of recordings in a folder: no path can be made of them."""
SIZE = 8 << 20
"""Bytes of the largest recording that is shown."""
SHOWN = 500
"""Recordings of a folder that are listed."""


class Finished:
    """The last runs, forgotten from the oldest on. Safe from any thread.

    Args:
        runs, signs: how many are kept, and how long their texts may be in all.
    """

    def __init__(self, runs: int = 64, signs: int = 64 << 20) -> None:
        self._most, self._signs = runs, signs
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, id: str, text: str) -> None:
        with self._lock:
            self._texts[id] = text
            while len(self._texts) > 1 and (
                len(self._texts) > self._most or sum(map(len, self._texts.values())) > self._signs
            ):
                self._texts.popitem(last=False)

    def get(self, id: str) -> str | None:
        with self._lock:
            return self._texts.get(id)


@dataclass(frozen=True)
class Shelf:
    """The gallery: recordings inside the package and, if there is one, in a folder of the user's."""

    folder: Path | None = None

    def list(self) -> list[dict[str, Any]]:
        """One line per recording that can be read."""
        found = [_line(path, "packaged") for path in _packaged()]
        if self.folder is not None:
            files = [p for p in self.folder.glob("*.jsonl") if p.is_file() and NAME.fullmatch(p.stem)]
            found += [_line(path, "folder") for path in sorted(files, key=_age)[:SHOWN]]
        return [line for line in found if line is not None]

    def text(self, name: str) -> str | None:
        """The JSONL of a recording, None if there is none of that name."""
        path = self._path(name)
        if path is None or _line(path, "") is None:  # what the list leaves out is not handed out either
            return None
        return path.read_text(encoding="utf-8")

    def keep(self, name: str, text: str) -> str:
        """Put a finished run into the folder; its name there.

        Raises:
            InputError: no folder, a bad name, or one that is taken.
        """
        if self.folder is None:
            raise InputError("gallery", expected="a folder", got="none", remedy="Start with --recordings DIR.")
        if not NAME.fullmatch(name):
            raise RequestError("name", expected="1 to 80 letters, digits, spaces or .()+-", got=repr(name)[:100])
        path = self.folder / f"{name}.jsonl"
        if path.exists() or any(p.stem == name for p in _packaged()):
            raise RequestError("name", expected="a new one", got=f"{name!r}, which is taken")
        try:
            write_text(path, text)
        except OSError as error:
            raise RequestError("gallery", expected="a folder that can be written", got=reason(error)) from None
        return name

    def _path(self, name: str) -> Path | None:
        if not NAME.fullmatch(name):
            return None
        own = [] if self.folder is None else [self.folder / f"{name}.jsonl"]
        return next((p for p in [*(p for p in _packaged() if p.stem == name), *own] if p.is_file()), None)


def as_html(text: str, title: str = "") -> str:
    """One self-contained file that plays the recording."""
    from unmask.sinks.html import page

    return page(text.splitlines(), title=title)


def _packaged() -> list[Path]:
    folder = Path(str(resources.files("unmask") / "assets" / "recordings"))
    return sorted(folder.glob("*.jsonl"))


def _age(path: Path) -> float:
    """For sorting, newest first; a file that has just gone is the oldest."""
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


def _line(path: Path, source: str) -> dict[str, Any] | None:
    try:
        seen = path.stat()
        return {**_about(path, seen.st_mtime_ns, seen.st_size), "source": source}
    except (RecordingError, OSError):  # a damaged file is not shown
        return None


@lru_cache(maxsize=1024)
def _about(path: Path, changed: int, size: int) -> dict[str, Any]:
    """Read once per change of the file."""
    if size > SIZE:
        raise RecordingError(str(path), expected=f"at most {SIZE} bytes", got=str(size))
    recording = read(path)
    canvases = fold(recording.events)
    return {
        "name": path.stem,
        "title": _title(recording),
        "model": str(recording.header.get("model", "")),
        "family": str(recording.header.get("family", "")),
        "requests": len(canvases),
        "forwards": max((c.nfe for c in canvases.values()), default=0),
        "tokens": sum(a.completion_tokens for a in recording.answers.values()),
    }


def _title(recording: Recording) -> str:
    """The first words of the first answer."""
    words = " ".join(next((a.text for a in recording.answers.values()), "").split())
    return words if len(words) <= 80 else words[:79] + "…"
