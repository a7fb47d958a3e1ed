"""A sink that saves what probes saw to one safetensors file, for research.

Keys are "{id}/{nfe:06d}/{kind}/{layer}" (float32 [rows, ...]) and the same with "/positions" (int64 [rows]).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from unmask.core.events import Event, Probed


class TraceSaver:
    """Collects `Probed` events and writes the file at `close`, by way of a temporary file beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, np.ndarray] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Probed):
            key = f"{event.id}/{event.nfe:06d}/{event.kind}/{event.layer}"
            self.tensors[key] = np.asarray(event.values, dtype=np.float32)
            self.tensors[f"{key}/positions"] = np.asarray(event.positions, dtype=np.int64)

    def close(self) -> None:
        """Write what was collected; nothing is left behind when the disk is full."""
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        os.close(handle)
        try:
            save_file(self.tensors, name)
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
