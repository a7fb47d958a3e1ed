"""A lock that dies with its process, so that a killed run is no obstacle to the next one.

Enters: the path of a small file. Leaves: the right to write beside it, for one process at a time. The system's own file
locks are used (also over NFS 4 and Lustre with locks on). Whoever has the lock may delete the file: a lock on a file
that is no longer there counts for nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _take(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _take(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def held(path: Path, looks: int = 1, pause: float = 0.1) -> Iterator[bool]:
    """Whether the lock was free, at one of so many looks; it is ours until the block is left, or the process dies."""
    handle = None
    try:
        for look in range(looks):
            if look:
                time.sleep(pause)
            handle = _taken(path)
            if handle is not None:
                break
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _taken(path: Path) -> int | None:
    """The file, locked; None if another process has it, or took it away between our two steps."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if _take(handle) and os.path.samestat(os.fstat(handle), path.stat()):
            return handle
    except FileNotFoundError:
        pass
    os.close(handle)
    return None


def is_held(path: Path) -> bool:
    """Whether a living process has the lock."""
    if not path.exists():
        return False
    with held(path) as free:
        return not free
