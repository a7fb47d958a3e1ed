"""One step of the samplers of continuous diffusion, from level g_t to a cleaner one g_s > g_t, and the grid of levels.

Enters: the noised z [..., E] in float32 or float64, the clean vectors predicted at it, and levels (log SNR in nats; a
number, a scalar tensor, [B] or [B, T], as in `unmask.ops.vp`). Leaves: z at g_s. No model, no random state: noise is
given.
Sources: DDPM (arXiv 2006.11239), DDIM (arXiv 2010.02502), DPM-Solver++ (arXiv 2211.01095, algorithm 2).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from unmask.core.errors import SpecError
from unmask.ops.vp import Level, alpha_sigma, as_level, coefficients, spread

Spacing = Literal["logsnr", "angle"]


def levels(steps: int, high: float, low: float, spacing: Spacing = "logsnr") -> Tensor:
    """The steps + 1 levels of a sampler, rising from low (where noise begins) to high, float64 on the CPU.

    Args:
        steps: denoising steps, each from one level to the next.
        high, low: log SNR in nats at the clean and at the noisy end.
        spacing: "logsnr" spreads g evenly; "angle" spreads arctan(sigma / alpha) evenly, with wider steps at both ends.

    Raises:
        SpecError: no step, ends that are not finite or in the wrong order, an unknown spacing.
    """
    if steps < 1:
        raise SpecError("sampler steps", expected="1 or more", got=str(steps))
    if not -math.inf < low < high < math.inf:
        raise SpecError("sampler levels", expected="finite, low < high", got=f"low {low:g}, high {high:g}")
    if spacing == "logsnr":
        return torch.linspace(low, high, steps + 1, dtype=torch.float64)
    if spacing != "angle":
        raise SpecError("sampler spacing", expected="logsnr or angle", got=repr(spacing))
    first, last = (math.atan(math.exp(-0.5 * g)) for g in (low, high))
    grid = -2.0 * torch.linspace(first, last, steps + 1, dtype=torch.float64).tan().log()
    grid[0], grid[-1] = low, high
    return grid


def ddpm_step(z: Tensor, clean: Tensor, g_t: Level, g_s: Level, noise: Tensor) -> Tensor:
    """Ancestral step: a draw from q(z_s | z_t, x = clean).

    c = 1 - exp(g_t - g_s); z_s = alpha_s [(1 - c) z_t / alpha_t + c clean] + sqrt(c) sigma_s noise.
    (1 - c) alpha_s / alpha_t is written alpha_t sigma_s^2 / (alpha_s sigma_t^2), which exists at alpha_t = 0 too.
    """
    _check(z)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(g_t), alpha_sigma(g_s)
    c = -torch.expm1(as_level(g_t) - as_level(g_s))
    kept = alpha_t * sigma_s.square() / (alpha_s * sigma_t.square())
    return spread(kept, z) * z + spread(alpha_s * c, z) * clean + spread(c.sqrt() * sigma_s, z) * noise


def ddim_step(
    z: Tensor, clean: Tensor, g_t: Level, g_s: Level, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """DDIM: eta 0 is deterministic, eta 1 equals `ddpm_step` given the same noise.

    e = (z_t - alpha_t clean) / sigma_t;
    z_s = alpha_s clean + sqrt(sigma_s^2 - eta^2 c sigma_s^2) e + eta sqrt(c) sigma_s noise, with c as in `ddpm_step`.

    Raises:
        SpecError: eta outside [0, 1].
        ValueError: eta above 0 and no noise.
    """
    _check(z)
    if not 0.0 <= eta <= 1.0:
        raise SpecError("ddim: eta", expected="0 to 1", got=f"{eta:g}")
    if eta > 0.0 and noise is None:
        raise ValueError("ddim_step with eta above 0 needs noise")
    alpha_t, sigma_t = coefficients(g_t, z)
    alpha_s, sigma_s = alpha_sigma(g_s)
    c = -torch.expm1(as_level(g_t) - as_level(g_s))
    e = (z - alpha_t * clean) / sigma_t
    mean = spread(alpha_s, z) * clean + spread(sigma_s * (1.0 - eta**2 * c).sqrt(), z) * e
    return mean if noise is None or eta == 0.0 else mean + spread(eta * c.sqrt() * sigma_s, z) * noise


def dpmpp_2m_step(
    z: Tensor,
    clean: Tensor,
    g_t: Level,
    g_s: Level,
    previous: Tensor | None = None,
    g_previous: Level | None = None,
) -> Tensor:
    """DPM-Solver++(2M), deterministic; the first step (no previous) is of first order, which is DDIM with eta 0.

    l = g / 2, h = l_s - l_t, r = (l_t - l_previous) / h, D = (1 + 1 / (2 r)) clean - previous / (2 r);
    z_s = (sigma_s / sigma_t) z_t - alpha_s (e^-h - 1) D.

    Args:
        previous, g_previous: the clean vectors predicted in the step before, and the level they were predicted at.

    Raises:
        ValueError: one of the two without the other.
    """
    _check(z)
    if (previous is None) != (g_previous is None):
        raise ValueError("dpmpp_2m_step takes previous and g_previous together")
    (_, sigma_t), (alpha_s, sigma_s) = alpha_sigma(g_t), alpha_sigma(g_s)
    h = 0.5 * (as_level(g_s) - as_level(g_t))
    direction = clean
    if previous is not None and g_previous is not None:
        weight = spread(h / (as_level(g_t) - as_level(g_previous)), z)
        direction = (1.0 + weight) * clean - weight * previous
    return spread(sigma_s / sigma_t, z) * z - spread(alpha_s * torch.expm1(-h), z) * direction


def _check(z: Tensor) -> None:
    if z.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"sampler steps run in float32 or float64, not {z.dtype}: half precision drifts over many steps"
        )
