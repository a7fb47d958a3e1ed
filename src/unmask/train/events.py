"""What a training run tells: a small union of frozen events, in order. Sinks and the command line draw them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """The run begins (or resumes at `step`)."""

    name: str
    parameters: int
    step: int
    steps: int
    device: str


@dataclass(frozen=True)
class Progress:
    """Means since the last `Progress`. `tokens` counts all positions computed so far, `speed` is tokens per second."""

    step: int
    steps: int
    tokens: int
    lr: float
    speed: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Validated:
    """Held-out numbers at `step`; `best` says whether the watched one improved."""

    step: int
    metrics: Mapping[str, float]
    best: bool


@dataclass(frozen=True)
class Saved:
    """A checkpoint is complete on disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class Done:
    """The run reached its last step; `path` holds the exported model.

    tokens: data tokens, each counted once per time it was drawn. positions: rows that went through the layers (noised
    views and clean copies counted).
    """

    step: int
    tokens: int
    positions: int
    path: Path


TrainEvent = Started | Progress | Validated | Saved | Done
