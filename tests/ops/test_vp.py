"""The algebra of variance-preserving noise: coefficients, moments, conversions, identities, Bayes evidence."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.core.errors import ConfigError
from unmask.ops.vp import (
    Kind,
    add_noise,
    alpha_sigma,
    coefficients,
    evidence,
    from_clean,
    spread,
    target,
    to_clean,
    to_epsilon,
    to_velocity,
    velocity,
)

KINDS: tuple[Kind, ...] = ("epsilon", "v_prediction", "sample")


def pair(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x and eps."""
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=gen, dtype=dtype), torch.randn(shape, generator=gen, dtype=dtype)


@given(st.floats(-80, 80))
@settings(deadline=None)
def test_alpha_and_sigma_hold_the_level_and_the_variance(g: float) -> None:
    alpha, sigma = alpha_sigma(g)
    assert alpha.dtype == torch.float64 and abs(float(alpha**2 + sigma**2) - 1) < 1e-15
    assert float(2 * (alpha.log() - sigma.log())) == pytest.approx(g, abs=1e-12)


@pytest.mark.parametrize("g", [-30.0, -12.0, 0.0, 12.0, 30.0])
def test_both_ends_are_precise_in_float32(g: float) -> None:
    for ours, exact in zip(alpha_sigma(torch.tensor(g)), alpha_sigma(g)):
        assert ours.dtype == torch.float32 and float(ours) == pytest.approx(float(exact), rel=3e-7)


def test_no_signal_at_minus_infinity() -> None:
    assert [float(c) for c in alpha_sigma(-math.inf)] == [0.0, 1.0]


@pytest.mark.parametrize("g", [-4.0, -0.5, 0.0, 2.0])
def test_noised_vectors_have_the_moments_of_the_process(g: float) -> None:
    x, eps = pair(200_000)
    x = 0.7 + 0.5 * x
    z = add_noise(x, eps, g)
    alpha, sigma = (float(c) for c in alpha_sigma(g))
    assert float(z.mean()) == pytest.approx(0.7 * alpha, abs=0.01)
    assert float(z.var()) == pytest.approx(0.25 * alpha**2 + sigma**2, rel=0.02)
    assert float(torch.cov(torch.stack((x, z)))[0, 1]) == pytest.approx(0.25 * alpha, abs=0.01)
    assert float(torch.cov(torch.stack((eps, z)))[0, 1]) == pytest.approx(sigma, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
@given(st.floats(-14, 14))
@settings(max_examples=30, deadline=None)
def test_a_prediction_goes_to_the_clean_vector_and_back(kind: Kind, g: float) -> None:
    x, eps = pair(3, 5, 4)
    z = add_noise(x, eps, g)
    wanted = target(x, eps, g, kind)
    assert (to_clean(wanted, z, g, kind) - x).abs().max() <= 1e-6
    assert (from_clean(x, z, g, kind) - wanted).abs().max() <= 1e-6
    assert (from_clean(to_clean(wanted, z, g, kind), z, g, kind) - wanted).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_round_trips_hold_in_float32_where_nothing_is_amplified(kind: Kind) -> None:
    x, eps = pair(64, 8, dtype=torch.float32)
    g = torch.linspace(-3, 3, 64)
    z = add_noise(x, eps, g)
    back = to_clean(target(x, eps, g, kind), z, g, kind)
    assert back.dtype == torch.float32
    assert float((back - x).norm() / x.norm()) <= 1e-6


def test_the_three_predictions_agree_with_each_other() -> None:
    x, eps = pair(6, 4)
    g = torch.linspace(-6, 6, 6, dtype=torch.float64)
    z = add_noise(x, eps, g)
    assert torch.allclose(to_epsilon(x, z, g), eps, atol=1e-12)
    assert torch.allclose(to_velocity(x, z, g), velocity(x, eps, g), atol=1e-12)
    alpha, sigma = coefficients(g, z)
    v = velocity(x, eps, g)
    assert torch.allclose(sigma * z + alpha * v, eps, atol=1e-12)  # eps = sigma z + alpha v
    assert torch.allclose(alpha * z - sigma * v, x, atol=1e-12)


def test_squared_errors_differ_by_the_snr() -> None:
    x, eps = pair(7, 3)
    other = x + 0.1 * pair(7, 3, seed=1)[0]
    g = torch.linspace(-5, 5, 7, dtype=torch.float64)
    z, snr = add_noise(x, eps, g), g.exp()
    error = (x - other).square().sum(1)
    assert torch.allclose((eps - to_epsilon(other, z, g)).square().sum(1), snr * error)
    assert torch.allclose((velocity(x, eps, g) - to_velocity(other, z, g)).square().sum(1), (snr + 1) * error)


def test_a_level_may_be_a_number_a_scalar_per_row_or_per_position() -> None:
    x, eps = pair(2, 3, 4)
    rows = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    places = torch.tensor([[-1.0, 0.0, 3.0], [2.0, -5.0, 1.0]], dtype=torch.float64)
    by_row, by_place = add_noise(x, eps, rows), add_noise(x, eps, places)
    for b in range(2):
        assert torch.equal(by_row[b], add_noise(x[b], eps[b], float(rows[b])))
        assert torch.equal(by_row[b], add_noise(x[b], eps[b], rows[b]))
        for i in range(3):
            assert torch.equal(by_place[b, i], add_noise(x[b, i], eps[b, i], float(places[b, i])))
    assert torch.equal(add_noise(x, eps, rows[:, None]), by_row)


def test_a_level_that_does_not_fit_is_refused() -> None:
    x, eps = pair(2, 3, 4)
    for shape in ((3,), (2, 4), (2, 3, 4, 1)):
        with pytest.raises(ValueError, match="does not fit"):
            add_noise(x, eps, torch.zeros(shape))
    assert spread(torch.ones(2), x.float()).shape == (2, 1, 1)


def test_low_precision_vectors_keep_their_dtype_and_get_precise_coefficients() -> None:
    x, eps = pair(2, 3, dtype=torch.bfloat16)
    g = torch.tensor([-6.03, 4.01])
    assert add_noise(x, eps, g).dtype == torch.bfloat16
    alpha, _ = coefficients(g, x)
    assert torch.equal(alpha[:, 0], alpha_sigma(g)[0].bfloat16())


@pytest.mark.parametrize("g", [-3.0, -0.6, 1.0])
def test_evidence_is_the_posterior_under_a_flat_prior(g: float) -> None:
    x, eps = pair(11, 6)
    table = x / x.norm(dim=1, keepdim=True) * math.sqrt(6)
    z = add_noise(table, eps, g)
    alpha, sigma = alpha_sigma(g)
    likelihood = -((z[:, None] - alpha * table) ** 2).sum(-1) / (2 * sigma**2)
    ours = (evidence(g) * z @ table.T).log_softmax(-1)
    assert torch.allclose(ours, likelihood.log_softmax(-1), atol=1e-12)


def test_an_unknown_kind_is_refused() -> None:
    x, eps = pair(2, 3)
    for call in (to_clean, from_clean, target):
        with pytest.raises(ConfigError, match="epsilon, v_prediction, sample"):
            call(x, eps, 0.0, "velocity")  # type: ignore[arg-type]
