"""Training checkpoints: written whole or not at all, read without pickle.

Enters: a step number, named tensors and plain JSON values. Leaves: `step-00001234/` with tensors.safetensors and
state.json. A checkpoint is written beside its final name, flushed to disk and renamed, so a killed or full machine
leaves the last good one. The newest `keep` stay, and the one named best.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.core.errors import CheckpointError, RunError

FORMAT = 1


def save(root: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Writes one checkpoint and returns its directory. Raises RunError when the disk refuses; nothing half written
    stays.
    """
    final, temp = root / f"step-{step:08d}", root / f".writing-{step:08d}"
    try:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        save_file({k: v.detach().contiguous().cpu().clone() for k, v in tensors.items()}, temp / "tensors.safetensors")
        write_json(temp / "state.json", {"format": FORMAT, "step": step, **state})
        sync(temp / "tensors.safetensors")
        if final.exists():
            shutil.rmtree(final)
        os.replace(temp, final)
        sync(root)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(temp, ignore_errors=True)
        raise RunError(f"could not write the checkpoint of step {step} to {root}: {e}") from e
    return final


def load(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of one checkpoint directory."""
    try:
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(directory / "tensors.safetensors")
    except FileNotFoundError:
        lost = next((n for n in ("state.json", "tensors.safetensors") if not (directory / n).exists()), "such folder")
        raise CheckpointError(
            f"{directory} is not a training checkpoint", expected="state.json and tensors.safetensors", got=f"no {lost}"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as e:
        raise CheckpointError(
            f"the checkpoint {directory} is damaged", got=str(e), remedy="Delete it to go on from the one before."
        ) from None
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{directory} has another format", expected=str(FORMAT), got=str(state.get("format")))
    return tensors, state


def all_steps(root: Path) -> list[Path]:
    """Checkpoint directories, oldest first."""
    return sorted(p for p in root.glob("step-*") if p.is_dir())


def latest(root: Path) -> Path | None:
    found = all_steps(root)
    return found[-1] if found else None


def prune(root: Path, keep: int, best: int | None) -> None:
    """Deletes all but the newest `keep` and the best one."""
    for path in all_steps(root)[: -keep or None]:
        if best is None or path.name != f"step-{best:08d}":
            shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """A JSON file that is complete once it has its name."""
    temp = path.with_name(path.name + ".part")
    try:
        with temp.open("w", encoding="utf-8") as f:
            json.dump(value, f, indent=1)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, path)
    except OSError:
        temp.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flushes a file or (where the system can) a directory to disk."""
    if path.is_dir() and os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def flatten_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """State of an optimizer as named tensors and JSON groups."""
    whole = optimizer.state_dict()
    tensors = {
        f"{prefix}.{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in whole["state"].items()
        for key, value in entries.items()
    }
    return tensors, [dict(g) for g in whole["param_groups"]]


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]], prefix: str
) -> None:
    """Puts back what `flatten_optimizer` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix + "."):
            index, key = name[len(prefix) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[key] = value
    for group in groups:  # JSON has no tuples
        for key in ("betas", "parts"):
            if key in group:
                group[key] = tuple(group[key])
    optimizer.load_state_dict({"state": state, "param_groups": groups})
