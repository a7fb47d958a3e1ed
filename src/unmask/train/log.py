"""Numbers of a run on disk: metrics.jsonl always, TensorBoard where wanted.

Enters: training events. Leaves: one JSON line per `Progress` and `Validated`. A resumed run drops the lines of the
steps that it will do again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from unmask.core.errors import ConfigError, RunError
from unmask.train.events import Progress, Saved, Validated


class Log:
    """Writes while the `with` block runs.

    Args:
        out: the run directory. step: where the run (re)starts. tensorboard: also write event files into
            out/tensorboard.
    """

    def __init__(self, out: Path, step: int, tensorboard: bool) -> None:
        self.path = out / "metrics.jsonl"
        _truncate(self.path, step)
        self.board = _board(out / "tensorboard", step) if tensorboard else None

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.board is not None:
            self.board.close()

    def __call__(self, event: Progress | Validated | Saved) -> None:
        if isinstance(event, Saved):
            return
        line: dict[str, Any] = {"step": event.step}
        if isinstance(event, Progress):
            line |= {"kind": "train", "tokens": event.tokens, "lr": event.lr, "speed": round(event.speed, 1)}
        else:
            line |= {"kind": "validation", "best": event.best}
        line |= {name: float(f"{value:.6g}") for name, value in event.metrics.items()}
        self._write(line)
        if self.board is not None:
            for name, value in event.metrics.items():
                self.board.add_scalar(f"{line['kind']}/{name}", value, event.step)

    def _write(self, line: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as e:
            raise RunError(f"could not write {self.path}: {e.strerror or e}; the last checkpoint is intact") from None


def _truncate(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = [x for x in path.read_text(encoding="utf-8").splitlines() if _step(x) <= step]
    part = path.with_name(path.name + ".part")
    part.write_text("".join(x + "\n" for x in lines), encoding="utf-8")
    os.replace(part, path)


def _step(line: str) -> float:
    """The step of a line; a line that a crash cut short counts as later than any."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _board(path: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise ConfigError(
            "run.tensorboard is on, and tensorboard is missing", remedy="pip install 'unmask[train]'"
        ) from None
    return SummaryWriter(str(path), purge_step=step)
