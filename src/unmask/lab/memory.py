"""Peak memory of one piece of work: torch's counter on CUDA, the process's resident pages on Linux, else unknown."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Bytes above the state before `work` at its highest point; None where the system does not say."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device)) - before
    if not _restart():
        work()
        return None
    before = _kib("VmRSS")
    work()
    return max(0, _kib("VmHWM") - before) * 1024


def _restart() -> bool:
    """Gives freed pages back and sets the high-water mark to what is resident now."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    try:
        REFS.write_text("5")
    except OSError:  # some sandboxes mount it read-only
        return False
    return True


def _kib(name: str) -> int:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(name + ":"))
    return int(line.split()[1])
