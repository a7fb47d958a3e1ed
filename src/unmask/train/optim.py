"""Optimisers and learning-rate schedules.

Enters: a transformer and an `OptimConfig`. Leaves: `Muon` for the matrices inside the layers, `AdamW` for everything
else, and a factor for the learning rate at any step. Muon: momentum, then an approximate orthogonalisation of the
update by five Newton-Schulz steps (Jordan 2024); fused projections are orthogonalised part by part.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from unmask.core.errors import ConfigError
from unmask.models.backbone import Backbone
from unmask.models.config import Shape, TransformerConfig

HIDDEN = re.compile(r"^layers\.|^transformer\.blocks\..*\.linear\.weight$")
"""The matrices between the embedding and the head that Muon takes: not what conditions on a noise level."""
STEADY = re.compile(r"^transformer\.(wte|wpe|kind)\.|shift_patterns$")


@dataclass(frozen=True)
class OptimConfig:
    """Args:
    kind: "adamw" for all parameters, or "muon" for the layers' matrices with AdamW for the rest.
    lr: AdamW's peak rate. muon_lr: Muon's peak rate.
    betas, eps, weight_decay: AdamW. muon_momentum, muon_weight_decay: Muon.
    warmup: steps of linear rise. schedule: after it, "wsd" holds and falls linearly over the last `decay` share of the
        steps; "wsd-sqrt" falls as 1 - sqrt, fast at first (Haegele 2024); "cosine" falls over all of them; "constant"
        holds. floor: the factor at the end.
    clip: largest norm of the gradient, 0 for no limit.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 4e-4
    muon_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.01
    warmup: int = 100
    schedule: Literal["wsd", "wsd-sqrt", "cosine", "constant"] = "wsd"
    decay: float = 0.2
    floor: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        checks = (
            ("lr", self.lr > 0, "above 0"),
            ("muon_lr", self.muon_lr > 0, "above 0"),
            ("betas", all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)"),
            ("warmup", self.warmup >= 0, "0 or more steps"),
            ("decay", 0 <= self.decay <= 1, "a share from 0 to 1"),
            ("floor", 0 <= self.floor <= 1, "a share from 0 to 1"),
            ("clip", self.clip >= 0, "0 or more"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
        )
        for name, good, expected in checks:
            if not good:
                raise ConfigError(f"optim.{name} is out of range", expected=expected, got=str(getattr(self, name)))


def lr_factor(cfg: OptimConfig, step: int, steps: int) -> float:
    """Share of the peak rate at `step` (0-based) of `steps`."""
    rise = min(1.0, (step + 1) / cfg.warmup) if cfg.warmup else 1.0
    if cfg.schedule == "constant":
        return rise
    if cfg.schedule == "cosine":
        x = max(0.0, step - cfg.warmup) / max(1, steps - cfg.warmup)
        return rise * (cfg.floor + (1 - cfg.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, x))))
    left = min(1.0, (steps - step) / max(1.0, cfg.decay * steps))
    fall = left if cfg.schedule == "wsd" else 1.0 - (1.0 - left) ** 0.5
    return rise * (cfg.floor + (1 - cfg.floor) * fall)


def build_optimizers(model: Backbone, cfg: OptimConfig) -> list[torch.optim.Optimizer]:
    """AdamW over everything, or Muon over the layers' matrices and AdamW over the rest; frozen parameters are left out.
    Each group keeps its peak rate as "peak"; norms and biases never decay."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [(n, p) for n, p in named if cfg.kind == "muon" and HIDDEN.search(n) and p.dim() == 2]
    chosen = {n for n, _ in matrices}
    rest = [(n, p) for n, p in named if n not in chosen]
    groups = [
        {"params": [p for n, p in rest if _decays(n, p)], "weight_decay": cfg.weight_decay},
        {"params": [p for n, p in rest if not _decays(n, p)], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if rest:
        filled = [g for g in groups if g["params"]]
        optimizers.append(torch.optim.AdamW(filled, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps))
    if matrices:
        optimizers.append(
            Muon(_muon_groups(matrices, model.cfg), cfg.muon_lr, cfg.muon_momentum, cfg.muon_weight_decay)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _decays(name: str, p: Tensor) -> bool:
    """Matrices do; norms, biases, and the vectors and tables of a recurrent model do not."""
    return p.dim() == 2 and not STEADY.search(name)


def set_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def _muon_groups(matrices: Sequence[tuple[str, Tensor]], cfg: Shape) -> list[dict[str, Any]]:
    """One group per way a matrix splits into independent projections (rows of q, k, v; gate and up; whole)."""
    groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for name, p in matrices:
        if not isinstance(cfg, TransformerConfig):
            parts: tuple[int, ...] = (p.shape[0],)
        elif name.endswith("qkv.weight"):
            parts = (cfg.q_dim, cfg.kv_dim, cfg.kv_dim)
        elif name.endswith("gate_up.weight"):
            parts = (cfg.mlp_dim, cfg.mlp_dim)
        else:
            parts = (p.shape[0],)
        groups[parts].append(p)
    return [{"params": ps, "parts": parts} for parts, ps in groups.items()]


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised: update = NS(g + m * buffer), scaled by sqrt(max(1, rows / cols)); decoupled decay."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        pieces: dict[torch.Size, list[tuple[Tensor, Tensor, float]]] = defaultdict(list)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._collect(p, group, pieces)
        for shape, same in pieces.items():
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            updates = orthogonalise(torch.stack([u for _, u, _ in same]))
            for (target, _, lr), update in zip(same, updates, strict=True):
                target.add_(update.to(target.dtype), alpha=-lr * scale)

    def _collect(self, p: Tensor, group: dict[str, Any], pieces: dict[Any, list[tuple[Tensor, Tensor, float]]]) -> None:
        state, momentum = self.state[p], group["momentum"]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        assert p.grad is not None
        buffer = state["momentum"].lerp_(p.grad, 1 - momentum)
        update = p.grad.lerp(buffer, momentum)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        for target, part in zip(p.split(group["parts"]), update.split(group["parts"]), strict=True):
            pieces[part.shape].append((target, part, group["lr"]))


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """g [n, rows, cols] -> about U V^T of each matrix, in bfloat16 (Newton-Schulz of fifth order, Jordan's
    coefficients).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.mT if tall else x
