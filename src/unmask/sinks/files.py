"""Output files that are whole or not there at all.

Enters: a path and text. Leaves: the finished file, renamed into place from a hidden `.partial` beside it; after an
error or an interrupt the folder is as it was. Pipes and devices cannot be renamed onto and are written to directly.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from unmask.core.errors import InputError


def check_writable(path: str | Path, what: str) -> None:
    """Refuses a path that could not be written later; leaves nothing behind.

    Args:
        path: where a file is going to be written.
        what: how the user named it ("--record").

    Raises:
        InputError: the folder is missing or closed to us, or the path is a folder.
    """
    target = Path(path)
    if not str(path) or target.is_dir():
        raise InputError(f"{what} {str(path)!r}", expected="a file name", got="a folder" if str(path) else "nothing")
    if not target.parent.is_dir():
        remedy = f"Create the folder first: mkdir -p {target.parent}"
        raise InputError(f"{what} {target}", expected="a file in a folder that exists", remedy=remedy)
    try:
        if target.exists():
            with target.open("ab"):
                pass
        if _is_plain(target):
            with tempfile.TemporaryFile(dir=target.resolve().parent):
                pass
    except OSError as error:
        raise InputError(f"{what} {target}", expected="a path that can be written", got=reason(error)) from None


def reason(error: OSError) -> str:
    """The system's words for an error, without numbers and paths."""
    return (error.strerror or str(error) or type(error).__name__).lower()


def _is_plain(target: Path) -> bool:
    """A file that is not there yet, or a regular one; not a device or a pipe."""
    return target.is_file() or not target.exists()


class WholeFile:
    """A UTF-8 text file that appears only with `commit`; `discard`, or an error inside `with`, leaves no trace.

    Args:
        path: the file; a symbolic link is followed, an existing file is replaced at the end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._partial: Path | None = None
        if _is_plain(self.path):
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name[:40]}.", suffix=".partial", dir=self.path.parent)
            self._partial = Path(name)
            self._file: TextIO = os.fdopen(handle, "w", encoding="utf-8", newline="\n")
        else:
            self._file = self.path.open("w", encoding="utf-8", newline="\n")

    def write(self, text: str) -> None:
        """Adds text; after an error of the system nothing is left behind."""
        try:
            self._file.write(text)
        except OSError:
            self.discard()
            raise

    def settle(self) -> None:
        """Puts everything written so far on the disk, so that `commit` is left with the renaming."""
        try:
            self._file.flush()
            if self._partial is not None:
                os.fsync(self._file.fileno())
        except OSError:
            self.discard()
            raise

    def commit(self) -> None:
        """Puts the whole file in place."""
        self.settle()
        try:
            if self._partial is not None:
                self._copy_mode(self._partial)
            self._file.close()
            if self._partial is not None:
                os.replace(self._partial, self.path)
                self._partial = None
        except OSError:
            self.discard()
            raise

    def discard(self) -> None:
        """Forgets everything written so far."""
        with suppress(OSError):  # the buffer of a full disk cannot be flushed; the file goes away anyway
            self._file.close()
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)
            self._partial = None

    def _copy_mode(self, partial: Path) -> None:
        """mkstemp makes private files; ours get the mode of the file they replace, or what `open` would give."""
        if os.name != "posix":
            return
        if self.path.exists():
            partial.chmod(self.path.stat().st_mode & 0o777)
        else:
            umask = os.umask(0)
            os.umask(umask)
            partial.chmod(0o666 & ~umask)

    def __enter__(self) -> WholeFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()


def write_text(path: str | Path, text: str) -> None:
    """Writes a whole text file, or nothing."""
    with WholeFile(path) as file:
        file.write(text)
