"""Where words go: results to stdout, notices to stderr. Files are checked before any work and written whole."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any


class Notices:
    """Lines for the person at the terminal, on stderr; silent with --quiet.  Warnings are always said."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        print(f"unmask: warning: {text}", file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON value on stdout, in lines a person can read; a stream that is not UTF-8 gets escapes, never a "?"."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    print(json.dumps(value, ensure_ascii=encoding != "utf8", indent=2, default=str))


def one_line(text: str) -> str:
    """The text without line breaks, its control signs (colours of a terminal, say) written as escapes."""
    return "".join(c if c.isprintable() else " " if c == "\n" else ascii(c)[1:-1] for c in text)


def for_terminal(text: str) -> str:
    """What may be shown on a terminal: a model's control signs could move the cursor or change colours."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def print_text(text: str, end: str = "\n") -> None:
    """An answer on stdout: as it is into a pipe or a file, harmless on a terminal."""
    print(for_terminal(text) if sys.stdout.isatty() else text, end=end, flush=True)


def human_bytes(count: float) -> str:
    """12.3 GiB and the like."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def columns(rows: list[tuple[str, ...]], indent: str = "  ") -> str:
    """Lines with aligned columns; the last column runs free."""
    if not rows:
        return ""
    wide = [max(len(r[i]) for r in rows) for i in range(len(rows[0]) - 1)]
    return "\n".join(indent + "".join(f"{c:<{w}}  " for c, w in zip(r, wide)) + r[-1] for r in rows)
