"""Variance-preserving algebra of continuous diffusion: z = alpha x + sigma eps with alpha^2 + sigma^2 = 1.

Enters: tensors [..., E] and the noise level g = log SNR = ln(alpha^2 / sigma^2), in nats. Leaves: the noised tensor, or
one prediction written as another: the clean vector x, the noise eps, the velocity v = alpha eps - sigma x.
A level is a number, a scalar tensor, [B] (one per sequence) or [B, T] (one per position): it meets a tensor from the
left. Sources: DDPM (arXiv 2006.11239); velocity: Progressive Distillation (arXiv 2202.00512); evidence: Plaid (arXiv
2305.18619).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from unmask.core.errors import ConfigError

Level = Tensor | float
"""g: log SNR in nats."""
Kind = Literal["epsilon", "v_prediction", "sample"]
"""What a network predicts: the noise, the velocity, the clean vector."""

Betas = Literal["linear", "cosine", "sigmoid"]
"""Published tables of betas: DDPM, Improved DDPM (arXiv 2102.09672), and a logistic rise from one end to the other."""
LARGEST_BETA = 0.999
"""The cosine table's last betas are cut here, as published."""


def as_level(g: Level) -> Tensor:
    """g as a tensor; a number becomes a float64 scalar, which meets tensors of any device."""
    return g if isinstance(g, Tensor) else torch.tensor(g, dtype=torch.float64)


def spread(value: Tensor, x: Tensor) -> Tensor:
    """A value per level, shaped to multiply x [..., E] and in its dtype: [B] -> [B, 1, 1], [B, T] -> [B, T, 1].

    Raises:
        ValueError: the value's axes are not the first ones of x (an axis of 1 is let through).
    """
    if value.ndim == 0:
        return value.to(x.dtype)
    if value.ndim > x.ndim or any(n not in (1, m) for n, m in zip(value.shape, x.shape)):
        raise ValueError(f"a level of shape {tuple(value.shape)} does not fit a tensor of shape {tuple(x.shape)}")
    return value.to(x.dtype)[(...,) + (None,) * (x.ndim - value.ndim)]


def alpha_sigma(g: Level) -> tuple[Tensor, Tensor]:
    """alpha = sqrt(logistic(g)) and sigma = sqrt(logistic(-g)), in g's shape and dtype.

    Both keep their relative precision at either end (1 - alpha^2 is never formed); g = -inf gives 0 and 1.
    """
    g = as_level(g)
    return g.sigmoid().sqrt(), g.neg().sigmoid().sqrt()


def coefficients(g: Level, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma, computed in the wider dtype of the two, shaped to multiply x and in its dtype."""
    g = as_level(g)
    alpha, sigma = alpha_sigma(g.to(torch.promote_types(g.dtype, x.dtype)))
    return spread(alpha, x), spread(sigma, x)


def add_noise(x: Tensor, eps: Tensor, g: Level) -> Tensor:
    """z = alpha x + sigma eps. x, eps: [..., E], x of unit variance per coordinate, eps ~ N(0, I)."""
    alpha, sigma = coefficients(g, x)
    return alpha * x + sigma * eps


def velocity(x: Tensor, eps: Tensor, g: Level) -> Tensor:
    """v = alpha eps - sigma x, the change of z by the angle arctan(sigma / alpha)."""
    alpha, sigma = coefficients(g, x)
    return alpha * eps - sigma * x


def to_clean(prediction: Tensor, z: Tensor, g: Level, kind: Kind) -> Tensor:
    """The clean vector behind a prediction made at z.

    epsilon: (z - sigma eps) / alpha, which multiplies errors by 1 / sqrt(SNR) and does not exist at alpha = 0.
    v_prediction: alpha z - sigma v. sample: the prediction itself.

    Raises:
        ConfigError: an unknown kind.
    """
    check_kind(kind)
    if kind == "sample":
        return prediction
    alpha, sigma = coefficients(g, z)
    return (z - sigma * prediction) / alpha if kind == "epsilon" else alpha * z - sigma * prediction


def to_epsilon(clean: Tensor, z: Tensor, g: Level) -> Tensor:
    """The noise that leads from a clean vector to z: (z - alpha x) / sigma."""
    alpha, sigma = coefficients(g, z)
    return (z - alpha * clean) / sigma


def to_velocity(clean: Tensor, z: Tensor, g: Level) -> Tensor:
    """The velocity at z for a clean vector: alpha eps - sigma x = (alpha z - x) / sigma."""
    alpha, sigma = coefficients(g, z)
    return (alpha * z - clean) / sigma


def from_clean(clean: Tensor, z: Tensor, g: Level, kind: Kind) -> Tensor:
    """The prediction of a kind that says the same as a clean vector: the inverse of `to_clean`.

    Raises:
        ConfigError: an unknown kind.
    """
    check_kind(kind)
    if kind == "sample":
        return clean
    return to_epsilon(clean, z, g) if kind == "epsilon" else to_velocity(clean, z, g)


def target(x: Tensor, eps: Tensor, g: Level, kind: Kind) -> Tensor:
    """What a network of a kind is trained to predict at z = add_noise(x, eps, g).

    ||eps - eps'||^2 = SNR ||x - x'||^2 and ||v - v'||^2 = (SNR + 1) ||x - x'||^2 for the clean vectors behind them.

    Raises:
        ConfigError: an unknown kind.
    """
    check_kind(kind)
    if kind == "sample":
        return x
    return eps if kind == "epsilon" else velocity(x, eps, g)


def evidence(g: Level) -> Tensor:
    """alpha / sigma^2, in g's shape: the factor of the exact evidence that z gives for each row of a table.

    By Bayes, with rows of equal norm, log p(token | z) = log prior + evidence(g) * z . row + constant: a network that
    adds `evidence(g) * z @ table.T` to its logits has only the prior by context to learn.
    """
    g = as_level(g)
    return g.sigmoid().sqrt() / g.neg().sigmoid()


def check_kind(kind: str) -> None:
    """Refuses a prediction type that does not exist.

    Raises:
        ConfigError: it is none of `Kind`.
    """
    if kind not in get_args(Kind):
        raise ConfigError("prediction_type", expected=f"one of: {', '.join(get_args(Kind))}", got=repr(kind))


# ---- published tables ------------------------------------------------------------------------------------------------


def betas_of(name: Betas, start: float, end: float, steps: int, offset: float = 0.008) -> Tensor:
    """The share of the signal's variance lost in each step, float64 [N]; start and end are not of the cosine table,
    offset is of it alone."""
    if name == "linear":
        return torch.linspace(start, end, steps, dtype=torch.float64, device="cpu")
    if name == "sigmoid":
        return start + (end - start) * torch.linspace(-3.0, 3.0, steps, dtype=torch.float64, device="cpu").sigmoid()
    time = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64, device="cpu")
    signal = torch.cos((time + offset) / (1.0 + offset) * math.pi / 2).square()
    return (1.0 - signal[1:] / signal[:-1]).clamp(max=LARGEST_BETA)


def levels_of(betas: Tensor, zero_terminal: bool = False) -> Tensor:
    """g of every step, float64 [N], falling; abar = product of (1 - beta), in logs so that it cannot underflow.

    zero_terminal: rescaled so that the last step has no signal left (arXiv 2305.08891): there g = -inf.
    """
    log_abar = torch.log1p(-betas).cumsum(0)
    if zero_terminal:
        alpha = (0.5 * log_abar).exp()
        log_abar = 2.0 * ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).log()
    return log_abar - torch.log(-torch.expm1(log_abar))


def step_of(g: Tensor, table: Tensor) -> Tensor:
    """Where levels g [...] stand in a falling table [N]: an index from 0 to N - 1, fractional between two steps."""
    g = g.to(table.dtype)
    after = torch.searchsorted(-table, -g).clamp(1, len(table) - 1)
    above, below = table[after - 1], table[after]
    return after - 1 + ((above - g) / (above - below).clamp(min=1e-12)).clamp(0.0, 1.0)
