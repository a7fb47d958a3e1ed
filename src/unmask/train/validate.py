"""Held-out numbers during training: the NELBO per token with its standard error, and a metric on generated answers.

Enters: the objective, the net, held-out batches, an explicit seed. Leaves: plain numbers. Each objective knows its own
bound on the negative log-likelihood (`held_out`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unmask.core.errors import ConfigError
from unmask.train.batch import Batch
from unmask.train.data import Data
from unmask.train.forward import Net
from unmask.train.objectives.loss import Objective


@dataclass(frozen=True)
class ValidateConfig:
    """Args:
    every: steps between two validations (the last step is validated too).
    data: held-out data of its own; None for no NELBO. batches: so many of its first batches. rounds: noise draws of
        each.
    metric: "package.module:function" called as f(model, config, tokenizer directory, **metric_args) -> {name: number}.
    watch: the number that decides which checkpoint is best; names that start with "nelbo" are better when lower.
    """

    every: int = 1000
    data: Data | None = None
    batches: int = 8
    rounds: int = 4
    metric: str | None = None
    metric_args: Mapping[str, int | float | str] | None = None
    watch: str | None = None

    def __post_init__(self) -> None:
        for name, low in (("every", 1), ("batches", 1), ("rounds", 2)):
            if getattr(self, name) < low:
                raise ConfigError(
                    f"validate.{name} is out of range", expected=f"{low} or more", got=str(getattr(self, name))
                )
        if self.data is None and self.metric is None:
            raise ConfigError("validate has nothing to do", expected="data or metric")

    @property
    def watched(self) -> str:
        return self.watch or ("nelbo" if self.data is not None else "exact")


@torch.no_grad()
def nelbo(objective: Objective, net: Net, batches: Sequence[Batch], rounds: int, seed: int) -> dict[str, float]:
    """Nats per scored token under the objective's own bound (EOS padding left out): mean over rounds of fresh noise,
    and the standard error of that mean. For autoregressive models it is the exact negative log-likelihood."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.tensor([_round(objective, net, batches, rng) for _ in range(rounds)], dtype=torch.float64)
    return {"nelbo": float(values.mean()), "nelbo_se": float(values.std() / rounds**0.5)}


def _round(objective: Objective, net: Net, batches: Sequence[Batch], rng: torch.Generator) -> float:
    sums = [objective.held_out(net, batch, rng) for batch in batches]
    return sum(nats for nats, _ in sums) / max(1, sum(tokens for _, tokens in sums))


def better(name: str, value: float, best: float | None) -> bool:
    """Whether `value` beats the best one so far."""
    if best is None:
        return True
    return value < best if name.startswith("nelbo") else value > best


def watched(metrics: Mapping[str, Any], name: str) -> float:
    """The watched number, refused by name when no validation computes it."""
    if name not in metrics:
        raise ConfigError(f"validate.watch is {name!r}", expected="one of " + ", ".join(metrics))
    return float(metrics[name])
