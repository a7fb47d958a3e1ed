"""Sampler steps of continuous diffusion against a denoiser that is known exactly, and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.core.errors import SpecError
from unmask.decode.gaussian_steps import ddim_step, ddpm_step, dpmpp_2m_step, levels
from unmask.ops.vp import add_noise, alpha_sigma

MEAN, STD = 1.5, 0.3
GATE = 0.005
# recorded standard deviations of the samples; each differs from 0.3 by its own discretisation bias
TABLE = [
    ("ddpm", 64, 0.280),
    ("ddpm", 256, 0.295),
    ("ddim", 64, 0.289),
    ("dpmpp_2m", 8, 0.307),
    ("dpmpp_2m", 16, 0.305),
    ("dpmpp_2m", 32, 0.301),
]


def denoise(z: Tensor, g: float) -> Tensor:
    """E[x | z] for x ~ N(MEAN, STD^2)."""
    alpha, sigma = alpha_sigma(g)
    return MEAN + STD**2 * alpha / (alpha**2 * STD**2 + sigma**2) * (z - alpha * MEAN)


def sample(kind: str, steps: int, z: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
    """z at the last level, from g = -9 to 9."""
    before: tuple[Tensor, float] | None = None
    grid = levels(steps, 9.0, -9.0).tolist()
    for g_t, g_s in pairwise(grid):
        clean = denoise(z, g_t)
        if kind == "ddpm":
            z = ddpm_step(z, clean, g_t, g_s, noise(z))
        elif kind == "ddim":
            z = ddim_step(z, clean, g_t, g_s)
        else:
            z = dpmpp_2m_step(z, clean, g_t, g_s, *(before or ()))
            before = (clean, g_t)
    return z


@pytest.mark.parametrize(("kind", "steps", "std"), TABLE)
def test_samples_have_the_mean_and_the_spread_of_the_method(kind: str, steps: int, std: float) -> None:
    """Every step is affine in z and in its noise, so two moments are carried exactly by trying 0 and 1 for each."""
    points = torch.zeros(steps + 2, dtype=torch.float64)
    points[1] = 1.0  # the effect of the start; point 2 + i: that of the noise of step i
    step = iter(range(2, steps + 2))

    def noise(z: Tensor) -> Tensor:
        return torch.zeros_like(z).index_fill(0, torch.tensor([next(step)]), 1.0)

    out = sample(kind, steps, points, noise)
    effects = out[1:] - out[0]
    assert abs(float(out[0]) - MEAN) <= 0.006
    assert float(effects.norm()) == pytest.approx(std, abs=GATE)


def test_simulated_samples_agree_with_the_carried_moments() -> None:
    gen = torch.Generator().manual_seed(0)
    start = torch.randn(20_000, generator=gen, dtype=torch.float64)
    out = sample("ddpm", 64, start, lambda z: torch.randn(z.shape, generator=gen, dtype=z.dtype))
    assert float(out.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(out.std()) == pytest.approx(0.280, abs=GATE)


@given(st.floats(-9, 8.9), st.floats(0.01, 6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_ddim_with_eta_one_is_ddpm(g_t: float, rise: float, seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    z, clean, noise = (torch.randn(4, 5, generator=gen, dtype=torch.float64) for _ in range(3))
    ours, theirs = ddim_step(z, clean, g_t, g_t + rise, 1.0, noise), ddpm_step(z, clean, g_t, g_t + rise, noise)
    assert (ours - theirs).abs().max() <= 1e-12


def test_ddpm_is_the_published_formula() -> None:
    gen = torch.Generator().manual_seed(0)
    z, clean, noise = (torch.randn(7, generator=gen, dtype=torch.float64) for _ in range(3))
    g_t, g_s = -2.0, 0.5
    (alpha_t, _), (alpha_s, sigma_s) = alpha_sigma(g_t), alpha_sigma(g_s)
    c = 1 - math.exp(g_t - g_s)
    wanted = alpha_s * ((1 - c) * z / alpha_t + c * clean) + math.sqrt(c) * sigma_s * noise
    assert torch.allclose(ddpm_step(z, clean, g_t, g_s, noise), wanted, atol=1e-14)


def test_dpmpp_is_the_published_formula() -> None:
    gen = torch.Generator().manual_seed(0)
    z, clean, before = (torch.randn(7, generator=gen, dtype=torch.float64) for _ in range(3))
    g_previous, g_t, g_s = -3.0, -2.0, 0.5
    (_, sigma_t), (alpha_s, sigma_s) = alpha_sigma(g_t), alpha_sigma(g_s)
    h, h_previous = (g_s - g_t) / 2, (g_t - g_previous) / 2
    ratio = h_previous / h
    direction = (1 + 1 / (2 * ratio)) * clean - before / (2 * ratio)
    wanted = sigma_s / sigma_t * z - alpha_s * (math.exp(-h) - 1) * direction
    assert torch.allclose(dpmpp_2m_step(z, clean, g_t, g_s, before, g_previous), wanted, atol=1e-14)


@given(st.floats(-9, 8.9), st.floats(0.01, 6))
@settings(max_examples=20, deadline=None)
def test_the_first_step_of_dpmpp_is_ddim(g_t: float, rise: float) -> None:
    z, clean = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(dpmpp_2m_step(z, clean, g_t, g_t + rise), ddim_step(z, clean, g_t, g_t + rise), atol=1e-12)


def test_a_perfect_prediction_stays_on_the_path() -> None:
    """With the true clean vector, DDIM moves z along its own noise: z_s = alpha_s x + sigma_s eps."""
    gen = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 3, 4, generator=gen, dtype=torch.float64)
    grid = levels(10, 6.0, -6.0).tolist()
    z = add_noise(x, eps, grid[0])
    for g_t, g_s in pairwise(grid):
        z = ddim_step(z, x, g_t, g_s)
        assert torch.allclose(z, add_noise(x, eps, g_s), atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_every_eta_keeps_the_marginal(eta: float) -> None:
    """A step from z_t = alpha_t x + sigma_t eps with the true x = 0 gives z_s the variance sigma_s^2."""
    g_t, g_s = -1.0, 0.7
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    by_z = ddim_step(one, zero, g_t, g_s, eta, zero)
    by_noise = ddim_step(zero, zero, g_t, g_s, eta, one)
    (_, sigma_t), (_, sigma_s) = alpha_sigma(g_t), alpha_sigma(g_s)
    assert float(by_z**2 * sigma_t**2 + by_noise**2) == pytest.approx(float(sigma_s**2), rel=1e-12)


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "dpmpp_2m"])
def test_steps_start_from_no_signal_at_all(kind: str) -> None:
    z, clean, noise = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if kind == "ddpm":
        out = ddpm_step(z, clean, -math.inf, -2.0, noise)
        assert torch.allclose(out, add_noise(clean, noise, -2.0))
        return
    out = (ddim_step if kind == "ddim" else dpmpp_2m_step)(z, clean, -math.inf, -2.0)
    assert torch.allclose(out, add_noise(clean, z, -2.0))


def test_rows_may_be_at_different_levels() -> None:
    gen = torch.Generator().manual_seed(0)
    z, clean, noise, before = torch.randn(4, 2, 3, 5, generator=gen, dtype=torch.float64)
    g_p, g_t, g_s = (torch.tensor(g, dtype=torch.float64) for g in ([-4.0, -1.0], [-3.0, 0.0], [-1.0, 0.5]))
    together = [
        ddpm_step(z, clean, g_t, g_s, noise),
        ddim_step(z, clean, g_t, g_s, 0.5, noise),
        dpmpp_2m_step(z, clean, g_t, g_s, before, g_p),
    ]
    for b in range(2):
        a, s, p = float(g_t[b]), float(g_s[b]), float(g_p[b])
        alone = [
            ddpm_step(z[b], clean[b], a, s, noise[b]),
            ddim_step(z[b], clean[b], a, s, 0.5, noise[b]),
            dpmpp_2m_step(z[b], clean[b], a, s, before[b], p),
        ]
        for many, one in zip(together, alone):
            assert torch.equal(many[b], one)


def test_float32_stays_float32_and_near() -> None:
    z, clean, noise = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    ours = ddpm_step(z, clean, -2.0, -1.9, noise)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), ddpm_step(z.double(), clean.double(), -2.0, -1.9, noise.double()), atol=1e-6)


@pytest.mark.parametrize("spacing", ["logsnr", "angle"])
@given(st.integers(1, 64))
@settings(max_examples=20, deadline=None)
def test_the_grid_rises_from_the_noisy_end_to_the_clean_one(spacing: str, steps: int) -> None:
    grid = levels(steps, 5.0, -7.0, spacing)  # type: ignore[arg-type]
    assert grid.shape == (steps + 1,) and grid.dtype == torch.float64
    assert float(grid[0]) == -7.0 and float(grid[-1]) == 5.0
    assert (grid.diff() > 0).all()
    even = grid if spacing == "logsnr" else torch.atan(torch.exp(-grid / 2))
    assert torch.allclose(even.diff(), even.diff()[0].expand(steps), atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0, 5.0, -7.0), "steps"),
        ((8, -7.0, 5.0), "low < high"),
        ((8, 5.0, -math.inf), "finite"),
        ((8, 5.0, math.nan), "finite"),
        ((8, 5.0, -7.0, "cosine"), "logsnr or angle"),
    ],
)
def test_bad_grids_are_refused(arguments: tuple[float, ...], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        levels(*arguments)  # type: ignore[arg-type]


def test_bad_steps_are_refused() -> None:
    z = torch.zeros(3)
    with pytest.raises(SpecError, match="eta"):
        ddim_step(z, z, 0.0, 1.0, 1.5, z)
    with pytest.raises(ValueError, match="needs noise"):
        ddim_step(z, z, 0.0, 1.0, 0.5)
    with pytest.raises(ValueError, match="together"):
        dpmpp_2m_step(z, z, 0.0, 1.0, previous=z)
    for step in (lambda h: ddim_step(h, h, 0.0, 1.0), lambda h: dpmpp_2m_step(h, h, 0.0, 1.0)):
        with pytest.raises(ValueError, match="float32"):
            step(z.bfloat16())
