"""Wall time that waits for the device."""

from __future__ import annotations

import time

import torch


def now(device: torch.device) -> float:
    """Seconds from an arbitrary origin, after the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
