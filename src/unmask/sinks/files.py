"""Output files and folders that are whole or not there at all.

Enters: a path and text or bytes. Leaves: the finished file, renamed into place from a hidden `.partial` beside it;
after an error or an interrupt the folder is as it was. Pipes and devices cannot be renamed onto and are written to
directly.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

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
    """A file (text is written as UTF-8) that appears only with `commit`; `discard`, or an error inside `with`, leaves
    no trace.

    Args:
        path: the file; a symbolic link is followed, an existing file is replaced at the end.
    """

    def __init__(self, path: str | Path) -> None:
        plain = _is_plain(Path(path))
        self.path = Path(path).resolve() if plain else Path(path)  # /dev/stdout leads to a name that is no file
        self._partial: Path | None = None
        if plain:
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name[:40]}.", suffix=".partial", dir=self.path.parent)
            self._partial = Path(name)
            self._file: BinaryIO = os.fdopen(handle, "wb")
        else:
            self._file = self.path.open("wb")

    def write(self, data: str | bytes) -> None:
        """Adds text or bytes; after an error of the system nothing is left behind."""
        try:
            self._file.write(data.encode() if isinstance(data, str) else data)
        except OSError as error:
            self.discard()
            raise self._named(error) from None

    def settle(self) -> None:
        """Puts everything written so far on the disk, so that `commit` is left with the renaming."""
        try:
            self._file.flush()
            if self._partial is not None:
                os.fsync(self._file.fileno())
        except OSError as error:
            self.discard()
            raise self._named(error) from None

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

    def _named(self, error: OSError) -> OSError:
        """The error with the file's name, except for a reader that went away."""
        return error if isinstance(error, BrokenPipeError) else OSError(error.errno, error.strerror, str(self.path))

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
        partial.chmod(self.path.stat().st_mode & 0o777 if self.path.exists() else 0o666 & ~_umask())

    def __enter__(self) -> WholeFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def check_new_folder(path: str | Path, what: str) -> None:
    """Refuses a path where no new folder could be made; leaves nothing behind. An empty folder counts as new.

    Raises:
        InputError: a file, a folder that holds something, or one in a folder that is missing or closed to us.
    """
    target = Path(path)
    remedy = "Name a new folder."
    try:
        if not str(path) or target.resolve() == Path.cwd():
            got = "the one you are in" if str(path) else "nothing"
            raise InputError(f"{what} {str(path)!r}", expected="a new folder", got=got, remedy=remedy)
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            got = "a link" if target.is_symlink() else "a file"
            raise InputError(f"{what} {target}", expected="a new or empty folder", got=got, remedy=remedy)
        if target.is_dir() and any(target.iterdir()):
            count = sum(1 for _ in target.iterdir())
            got = f"one that holds {count} file{'s' if count > 1 else ''}"
            raise InputError(f"{what} {target}", expected="a new or empty folder", got=got, remedy=remedy)
        if not target.resolve().parent.is_dir():
            remedy = f"Create the folder around it first: mkdir -p {target.parent}"
            raise InputError(f"{what} {target}", expected="a folder in one that exists", remedy=remedy)
        with tempfile.TemporaryFile(dir=target.resolve().parent):
            pass
    except OSError as error:
        raise InputError(f"{what} {target}", expected="a folder that can be made", got=reason(error)) from None


class WholeFolder:
    """A new folder that appears with all its files at `commit`; `discard` leaves no trace.

    Args:
        path: the folder; one that is there already must be empty.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        name = tempfile.mkdtemp(prefix=f".{self.path.name[:40]}.", suffix=".partial", dir=self.path.parent)
        self._partial: Path | None = Path(name)

    def write(self, name: str, data: bytes) -> None:
        """Adds a file."""
        assert self._partial is not None
        (self._partial / name).write_bytes(data)

    def commit(self) -> None:
        """Puts the folder in place.

        Raises:
            OSError: a folder of that name has been filled meanwhile.
        """
        assert self._partial is not None
        if os.name == "posix":
            self._partial.chmod(0o777 & ~_umask())
        if self.path.exists():
            self.path.rmdir()
        os.replace(self._partial, self.path)
        self._partial = None

    def discard(self) -> None:
        """Forgets everything written so far."""
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial = None


def write_text(path: str | Path, text: str) -> None:
    """Writes a whole text file, or nothing."""
    with WholeFile(path) as file:
        file.write(text)
