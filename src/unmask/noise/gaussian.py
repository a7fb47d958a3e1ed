"""Gaussian noise of continuous diffusion over token embeddings: schedules, loss weights, and which levels are of use.

Enters: t in [0, 1], 0 the clean end and 1 the noisiest. Leaves: g(t) = log SNR = ln(alpha^2 / sigma^2) in nats, falling
with t, for embeddings of unit variance per coordinate (rows of norm sqrt(E)). `unmask.ops.vp` has the algebra on top.
Published tables of N steps (n = 0 ... N-1) lie at t = n / (N - 1); between two steps g is interpolated linearly.
Sources: DDPM (arXiv 2006.11239), Improved DDPM (arXiv 2102.09672), zero terminal SNR (arXiv 2305.08891), ELF (arXiv
2605.10938), Plaid (arXiv 2305.18619), CDCD (arXiv 2211.15089), min-SNR (arXiv 2303.09556).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from unmask.core.errors import ConfigError, SpecError
from unmask.core.spec import component, option
from unmask.ops.vp import LARGEST_BETA, Kind, betas_of, check_kind, levels_of

FLOOR = -30.0
"""The lowest level of a table: alpha = 3e-7, no signal in float32, yet finite for a network that is told g."""
BELOW, ABOVE = 5.0, 3.0
"""The window of useful levels around the identification threshold g*: [g* - BELOW, g* + ABOVE]."""
SHIFT = "added to g; the log of the embeddings' variance where they are not of unit variance"
ZERO = "rescale so that no signal is left at t = 1 (not for epsilon: there it cannot be turned into a clean vector)"
STEPS = "steps of the published table"


class Schedule(Protocol):
    """A noise schedule."""

    @property
    def shift(self) -> float: ...

    def logsnr(self, t: Tensor) -> Tensor:
        """g [...] of t [...] in [0, 1], float32 or float64, on its device."""
        ...


S = TypeVar("S", bound=Schedule)


@component("linear")
class Linear:
    """betas spread evenly from beta_start to beta_end (DDPM). Terminal abar of the defaults: 4.0e-5."""

    beta_start: float = option(1e-4, above=0.0, high=LARGEST_BETA, help="share of the signal lost in the first step")
    beta_end: float = option(0.02, above=0.0, high=LARGEST_BETA, help="the same in the last step; not below beta_start")
    steps: int = option(1000, low=3, high=100_000, help=STEPS)
    shift: float = option(0.0, low=-30.0, high=30.0, help=SHIFT)
    zero_terminal: bool = option(False, help=ZERO)

    def __post_init__(self) -> None:
        _check_betas(self.beta_start, self.beta_end, "linear")

    def logsnr(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        betas = betas_of("linear", self.beta_start, self.beta_end, self.steps)
        return _interpolated(_table(betas, self.shift, self.zero_terminal), t)


@component("cosine")
class Cosine:
    """abar = cos^2 of an evenly growing angle, offset s, betas cut at 0.999 (Improved DDPM). Terminal abar: 2.4e-9."""

    s: float = option(0.008, low=0.0, high=0.5, help="offset that keeps the first betas from being too small")
    steps: int = option(1000, low=3, high=100_000, help=STEPS)
    shift: float = option(0.0, low=-30.0, high=30.0, help=SHIFT)
    zero_terminal: bool = option(False, help=ZERO)

    def logsnr(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        betas = betas_of("cosine", 0.0, 0.0, self.steps, self.s)
        return _interpolated(_table(betas, self.shift, self.zero_terminal), t)


@component("sigmoid")
class Sigmoid:
    """betas = beta_start + (beta_end - beta_start) logistic(u), u evenly from -3 to 3. Terminal abar: 4.0e-5."""

    beta_start: float = option(1e-4, above=0.0, high=LARGEST_BETA, help="share of the signal lost, at the lower end")
    beta_end: float = option(0.02, above=0.0, high=LARGEST_BETA, help="at the upper end; not below beta_start")
    steps: int = option(1000, low=3, high=100_000, help=STEPS)
    shift: float = option(0.0, low=-30.0, high=30.0, help=SHIFT)
    zero_terminal: bool = option(False, help=ZERO)

    def __post_init__(self) -> None:
        _check_betas(self.beta_start, self.beta_end, "sigmoid")

    def logsnr(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        betas = betas_of("sigmoid", self.beta_start, self.beta_end, self.steps)
        return _interpolated(_table(betas, self.shift, self.zero_terminal), t)


@component("logsnr_linear")
class LogSnrLinear:
    """g falls evenly from high to low: every level counts alike."""

    high: float = option(5.0, low=-30.0, high=30.0, help="g at the clean end")
    low: float = option(-7.0, low=-30.0, high=30.0, help="g at the noisiest end; below high")
    shift: float = option(0.0, low=-30.0, high=30.0, help=SHIFT)

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise SpecError("logsnr_linear: low", expected=f"below high ({self.high:g})", got=f"{self.low:g}")

    def logsnr(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return self.high + self.shift - (self.high - self.low) * t


@component("logit_normal")
class LogitNormal:
    """The levels of a flow z = tau x + (1 - tau) eps with logit(tau) ~ N(mean, std^2): g = 2 logit(tau).

    t is the quantile, cut to [tail, 1 - tail] so that both ends are finite. ELF: mean -1.5, std 0.8, tau = 1 clean; its
    noise scale of 2 is a shift of -2 ln 2.
    """

    mean: float = option(-1.5, low=-10.0, high=10.0, help="mean of logit(tau); the median of g is twice this")
    std: float = option(0.8, above=0.0, high=10.0, help="standard deviation of logit(tau)")
    tail: float = option(1e-3, above=0.0, high=0.25, help="share of the distribution that is cut off at each end")
    shift: float = option(0.0, low=-30.0, high=30.0, help=SHIFT)

    def logsnr(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        quantile = self.tail + (1.0 - 2.0 * self.tail) * (1.0 - t)
        return 2.0 * (self.mean + self.std * torch.special.ndtri(quantile)) + self.shift


def _check_betas(start: float, end: float, name: str) -> None:
    if start > end:
        raise SpecError(f"{name}: beta_start", expected=f"at most beta_end ({end:g})", got=f"{start:g}")


def _table(betas: Tensor, shift: float, zero_terminal: bool) -> Tensor:
    """g of every step, float64 [N]."""
    return (levels_of(betas, zero_terminal) + shift).clamp(min=FLOOR)


def _interpolated(table: Tensor, t: Tensor) -> Tensor:
    """The table's value at t, linear between the two steps around it."""
    table = table.to(t.dtype).to(t.device)
    place = t * (len(table) - 1)
    step = place.detach().floor().long().clamp(0, len(table) - 2)
    return torch.lerp(table[step], table[step + 1], place - step)


def slope(schedule: Schedule, t: Tensor) -> Tensor:
    """-dg/dt >= 0 at t [...]: nats of log SNR per unit of t. t ~ U[0, 1] draws the level g with density 1 / slope."""
    with torch.inference_mode(False), torch.enable_grad():
        t = t.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(schedule.logsnr(t).sum(), t)
    return -grad


def bounds(schedule: Schedule) -> tuple[float, float]:
    """g at the clean end and at the noisiest end."""
    clean, noisy = schedule.logsnr(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    return clean, noisy


def stratified(n: int, rng: torch.Generator) -> Tensor:
    """t of a batch, float32 [n] on the CPU: one drawn in each of n equal parts of [0, 1], in random order.

    Each t is uniform by itself, while the batch's mean level hardly varies (low-discrepancy sampling).
    """
    even = (torch.arange(n, dtype=torch.float64) + torch.rand(n, generator=rng, dtype=torch.float64)) / n
    return even[torch.randperm(n, generator=rng)].float()


def snr_threshold(vocab: int, dim: int) -> float:
    """g* = ln(2 ln V / E): the level at which the nearest of V random rows in E dimensions begins to be the right one.

    Rows have unit variance per coordinate. At g* about 55 to 70 % of the tokens are found, one nat above nearly all.

    Raises:
        ConfigError: fewer than 2 tokens or 1 dimension.
    """
    if vocab < 2 or dim < 1:
        raise ConfigError("vocabulary and embedding size", expected="vocab >= 2 and dim >= 1", got=f"{vocab}, {dim}")
    return math.log(2.0 * math.log(vocab) / dim)


def window_share(schedule: Schedule, vocab: int, dim: int) -> float:
    """Share of t whose level lies in [g* - 5, g* + 3], where context can still help and the token is not yet plain.

    Should be above 0.5; see `shifted_to`.
    """
    centre, g = snr_threshold(vocab, dim), _even(schedule)
    return float(((g >= centre - BELOW) & (g <= centre + ABOVE)).double().mean())


def identifiable_share(schedule: Schedule, vocab: int, dim: int) -> float:
    """Share of t whose level lies above g*: there the nearest embedding is mostly the right token."""
    return float((_even(schedule) > snr_threshold(vocab, dim)).double().mean())


def _even(schedule: Schedule) -> Tensor:
    """g at 10 000 evenly spread t, float64."""
    return schedule.logsnr((torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)


def shifted_to(schedule: S, vocab: int, dim: int) -> S:
    """The schedule with its shift set so that its median level is g* - 1, the middle of [g* - 2, g*].

    Raises:
        ConfigError: fewer than 2 tokens or 1 dimension.
        SpecError: the shift this takes is out of range.
    """
    median = float(schedule.logsnr(torch.tensor(0.5, dtype=torch.float64)))
    shift = schedule.shift + snr_threshold(vocab, dim) - 1.0 - median
    same: Any = schedule  # a dataclass, which a protocol cannot say
    return dataclasses.replace(same, shift=shift)


def min_snr_weight(g: Tensor, kind: Kind = "sample", cap: float = 5.0) -> Tensor:
    """The weight of a squared error that counts as min(SNR, cap) ||x - x'||^2, whatever is predicted.

    sample: min(SNR, cap); epsilon: min(SNR, cap) / SNR; v_prediction: min(SNR, cap) / (SNR + 1). Same shape as g.
    Source: min-SNR (arXiv 2303.09556), section 3.4.

    Raises:
        ConfigError: an unknown kind, or a cap that is not above 0.
    """
    check_kind(kind)
    if not cap > 0.0:
        raise ConfigError("min-SNR cap", expected="above 0", got=f"{cap:g}")
    log_weight = g.clamp(max=math.log(cap))
    if kind == "epsilon":
        log_weight = log_weight - g
    weight = log_weight.exp()
    return weight * g.neg().sigmoid() if kind == "v_prediction" else weight


def elbo_weight(g: Tensor, slope: Tensor) -> Tensor:
    """1/2 e^g (-dg/dt): with it the mean of ||x - x'||^2 over t ~ U[0, 1] is the diffusion term of the bound.

    That term is 1/2 integral of SNR ||x - x'||^2 dg (a sum over E), in nats per token. g and slope: of the same t.
    """
    return 0.5 * g.exp() * slope


def prior_kl(dim: int, g: float) -> float:
    """KL(N(alpha x, sigma^2 I) || N(0, I)) at level g for a row of norm sqrt(dim), in nats per token.

    It is dim / 2 * ln(1 + e^g), what the bound pays for starting from pure noise. Below 0.01 is small enough.
    """
    return 0.5 * dim * (max(g, 0.0) + math.log1p(math.exp(-abs(g))))
