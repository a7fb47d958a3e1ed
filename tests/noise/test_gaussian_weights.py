"""Loss weights of continuous diffusion: min-SNR for each kind, the bound on Gaussian data, the cost of the prior."""

from __future__ import annotations

import math

import pytest
import torch

from unmask.core import catalog
from unmask.core.errors import ConfigError
from unmask.noise.gaussian import bounds, elbo_weight, min_snr_weight, prior_kl, slope
from unmask.ops.vp import Kind, add_noise, alpha_sigma, from_clean, target


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("cap", [5.0, 0.5])
def test_min_snr_counts_the_same_error_for_every_kind(kind: Kind, cap: float) -> None:
    gen = torch.Generator().manual_seed(0)
    x, eps, other = (torch.randn(9, 4, generator=gen, dtype=torch.float64) for _ in range(3))
    g = torch.linspace(-8, 8, 9, dtype=torch.float64)
    z = add_noise(x, eps, g)
    loss = (target(x, eps, g, kind) - from_clean(other, z, g, kind)).square().sum(1) * min_snr_weight(g, kind, cap)
    assert torch.allclose(loss, g.exp().clamp(max=cap) * (x - other).square().sum(1))


def test_min_snr_does_not_overflow() -> None:
    g = torch.tensor([-200.0, 0.0, 200.0])
    for kind, wanted in (("sample", [0.0, 1.0, 5.0]), ("epsilon", [1.0, 1.0, 0.0]), ("v_prediction", [0.0, 0.5, 0.0])):
        assert min_snr_weight(g, kind).tolist() == pytest.approx(wanted)  # type: ignore[arg-type]


def test_bad_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        min_snr_weight(torch.zeros(1), cap=0.0)
    with pytest.raises(ConfigError, match="prediction_type"):
        min_snr_weight(torch.zeros(1), "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ["logsnr_linear", "linear", "cosine", "sigmoid(steps=100)", "logit_normal"])
def test_the_bound_is_exact_on_gaussian_data(spec: str) -> None:
    """For x ~ N(0, s^2) the best denoiser's error is known; its weighted mean is the information between the ends."""
    s, schedule = 0.3, catalog.parse("noise", spec)
    t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    g = schedule.logsnr(t)
    alpha, sigma = alpha_sigma(g)
    error = s**2 * sigma**2 / (alpha**2 * s**2 + sigma**2)
    clean, noisy = bounds(schedule)
    information = 0.5 * (math.log1p(math.exp(clean) * s**2) - math.log1p(math.exp(noisy) * s**2))
    assert float((elbo_weight(g, slope(schedule, t)) * error).mean()) == pytest.approx(information, rel=1e-4)


def test_prior_kl_is_the_divergence_from_pure_noise() -> None:
    row = torch.tensor([2.0, -1.0, 1.0, math.sqrt(10.0)], dtype=torch.float64)  # norm sqrt(16)
    row = torch.cat((row, torch.zeros(12, dtype=torch.float64)))
    for g in (-7.0, -1.0, 3.0):
        alpha, sigma = alpha_sigma(g)
        noised = torch.distributions.Normal(alpha * row, sigma.expand(16))
        prior = torch.distributions.Normal(torch.zeros(16, dtype=torch.float64), torch.ones(16, dtype=torch.float64))
        wanted = float(torch.distributions.kl_divergence(noised, prior).sum())
        assert prior_kl(16, g) == pytest.approx(wanted, rel=1e-9)
    assert prior_kl(16, -7.0) == pytest.approx(0.0073, abs=1e-4)
    assert prior_kl(16, 900.0) == pytest.approx(8 * 900.0)
