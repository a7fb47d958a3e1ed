"""What a result depends on besides its settings: the model's bytes, versions, the source tree, the machine.

Enters: a model. Leaves: hashes and words, for the manifest (what must be equal) and for timing.json (what may differ).
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import unmask
from unmask.core.versions import versions as core_versions
from unmask.pipeline import Model

PARTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors", "*.gguf", "*.bin", "*.pt")
"""Files of a checkpoint that decide what it writes: config, template, tokenizer, weights."""
VERSIONS = ("torch", "tokenizers", "transformers", "safetensors", "numpy")


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    seen = path.stat()
    return _sha256_of(path, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256_of(path: Path, size: int, changed: int) -> str:
    """Read once per size and time of change: a comparison asks for the same weights with every strategy."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_sha256(model: Model) -> str:
    """Hash of a checkpoint: names and bytes of config, tokenizer and weight files; of random weights, the numbers."""
    found = hashlib.sha256()
    if model.directory is None:
        found.update(json.dumps(model.config, sort_keys=True, default=str).encode())
        for name, value in sorted(model.denoiser.model.state_dict().items()):
            found.update(
                name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        return found.hexdigest()
    root = Path(model.directory)
    paths = [root] if root.is_file() else sorted({p for pattern in PARTS for p in root.glob(pattern) if p.is_file()})
    for path in paths:
        found.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return found.hexdigest()


def versions() -> dict[str, str | None]:
    """Packages that decide about scores; nothing is imported for it."""
    return core_versions(*VERSIONS)


def git_state() -> dict[str, Any] | None:
    """Commit of the source tree this package runs from, and whether it was changed since; None if it is in none."""
    package = Path(unmask.__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() not in {package.parent, package.parent.parent}:
        return None
    commit, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", str(package))
    return {"commit": commit, "changed": bool(changes)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine(model: Model) -> dict[str, Any]:
    """Where it ran."""
    device = model.denoiser.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "device": str(device),
        "processor": name,
        "threads": torch.get_num_threads(),
    }
