"""Noise schedules of continuous diffusion: published tables, monotony, shifts, strata, where tokens are told apart."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.core import catalog
from unmask.core.errors import ConfigError, SpecError
from unmask.noise.gaussian import (
    FLOOR,
    Cosine,
    Linear,
    LogitNormal,
    LogSnrLinear,
    Schedule,
    Sigmoid,
    bounds,
    identifiable_share,
    shifted_to,
    slope,
    snr_threshold,
    stratified,
    window_share,
)
from unmask.ops.vp import add_noise, alpha_sigma, evidence

SPECS = [
    "logsnr_linear",
    "logsnr_linear(high=9, low=-9, shift=1.5)",
    "linear",
    "linear(beta_start=0.001, beta_end=0.05, steps=200, zero_terminal=True)",
    "cosine",
    "cosine(s=0.02, zero_terminal=True, shift=-2.0)",
    "sigmoid",
    "sigmoid(steps=50, zero_terminal=True)",
    "logit_normal",
    "logit_normal(mean=0.5, std=2.0, tail=0.01)",
]
TABLES = ["linear", "cosine", "sigmoid"]


def schedule(spec: str) -> Schedule:
    """The object behind a spec."""
    return catalog.parse("noise", spec)


def table(spec: str, steps: int = 1000) -> torch.Tensor:
    """g of every published step."""
    return schedule(spec).logsnr(torch.linspace(0, 1, steps, dtype=torch.float64))


def test_every_line_of_the_catalog_is_tried_here() -> None:
    ours = {n for n, e in catalog.entries("noise").items() if e.target.startswith("unmask.")}
    assert ours == {type(schedule(s)).spec_name for s in SPECS}  # type: ignore[attr-defined]
    for spec in SPECS:
        assert schedule(repr(schedule(spec))) == schedule(spec)


@pytest.mark.parametrize(("name", "first", "terminal"), [("linear", 1 - 1e-4, 4.0e-5), ("sigmoid", None, 4.0e-5)])
def test_terminal_signal_is_that_of_the_published_tables(name: str, first: float | None, terminal: float) -> None:
    abar = table(name).sigmoid()
    assert float(abar[-1]) == pytest.approx(terminal, rel=0.02)
    assert first is None or float(abar[0]) == pytest.approx(first, rel=1e-9)


def test_terminal_signal_of_the_cosine_is_that_of_the_published_table() -> None:
    g = table("cosine")
    assert float(g.sigmoid()[-1]) == pytest.approx(2.4e-9, rel=0.02)
    # the last beta is cut: only a thousandth of abar is left by it
    assert float(g[-1].sigmoid() / g[-2].sigmoid()) == pytest.approx(1e-3, rel=1e-6)


def test_tables_are_the_products_of_their_betas() -> None:
    rise = torch.sigmoid(torch.linspace(-3, 3, 1000, dtype=torch.float64))
    time = (torch.linspace(0, 1, 1001, dtype=torch.float64) + 0.008) / 1.008
    signal = torch.cos(time * math.pi / 2) ** 2
    betas = {
        "linear": torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64),
        "sigmoid": 1e-4 + (0.02 - 1e-4) * rise,
        "cosine": (1 - signal[1:] / signal[:-1]).clamp(max=0.999),
    }
    for name, beta in betas.items():
        assert torch.allclose(table(name).sigmoid(), (1 - beta).cumprod(0), rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", TABLES)
def test_between_two_steps_the_level_is_interpolated(name: str) -> None:
    g = table(name)
    middle = schedule(name).logsnr(torch.tensor(400.25 / 999, dtype=torch.float64))
    assert float(middle) == pytest.approx(float(0.75 * g[400] + 0.25 * g[401]), abs=1e-9)


@pytest.mark.parametrize("spec", SPECS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_levels_fall_with_t(spec: str, data: st.DataObject) -> None:
    low = data.draw(st.floats(0, 1), label="t")
    high = data.draw(st.floats(low, 1), label="later t")
    clean, noisy = schedule(spec).logsnr(torch.tensor([low, high], dtype=torch.float64)).tolist()
    assert math.isfinite(clean) and clean >= noisy
    assert high - low < 1e-6 or clean > noisy


@pytest.mark.parametrize("spec", SPECS)
def test_float32_gives_the_same_levels(spec: str) -> None:
    t = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)).clamp(max=0.98)
    g = schedule(spec).logsnr(t)
    assert g.dtype == torch.float32 and g.shape == t.shape
    assert torch.allclose(g.double(), schedule(spec).logsnr(t.double()), atol=2e-3)


@pytest.mark.parametrize("spec", SPECS)
def test_the_slope_is_the_derivative(spec: str) -> None:
    gaps = getattr(schedule(spec), "steps", 1000) - 1
    t = (torch.arange(1, gaps - 1, dtype=torch.float64) + 0.5) / gaps  # between two steps of a table
    with torch.inference_mode():
        found = slope(schedule(spec), t)
    h = 1e-7
    numeric = (schedule(spec).logsnr(t - h) - schedule(spec).logsnr(t + h)) / (2 * h)
    assert (found > 0).all() and torch.allclose(found, numeric, rtol=1e-5)


@pytest.mark.parametrize("spec", ["logsnr_linear", "logit_normal", *TABLES])
def test_shift_moves_every_level(spec: str) -> None:
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    moved = dataclasses.replace(schedule(spec), shift=-2.5)  # type: ignore[type-var]
    assert torch.allclose(moved.logsnr(t), schedule(spec).logsnr(t) - 2.5, atol=1e-12)


@pytest.mark.parametrize("name", TABLES)
def test_zero_terminal_leaves_no_signal_and_keeps_the_clean_end(name: str) -> None:
    plain, zero = table(name), table(f"{name}(zero_terminal=True)")
    assert float(zero[-1]) == FLOOR and float(alpha_sigma(zero[-1].float())[0]) < 4e-7
    assert float(zero[0]) == pytest.approx(float(plain[0]), abs=1e-6)
    # as published: alpha is moved and stretched, so that the last becomes 0
    alpha = plain.sigmoid().sqrt()
    wanted = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    assert torch.allclose(zero.sigmoid().sqrt(), wanted, atol=4e-7)
    shifted = table(f"{name}(zero_terminal=True, shift=4)")
    assert float(shifted[-1]) == FLOOR and float(shifted[500]) == pytest.approx(float(zero[500]) + 4, abs=1e-9)


def test_logit_normal_levels_have_the_published_distribution() -> None:
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    g = LogitNormal().logsnr(t)
    assert float(g.median()) == pytest.approx(-3.0, abs=1e-3)
    assert float(g.mean()) == pytest.approx(-3.0, abs=1e-3)
    assert float(g.std()) == pytest.approx(1.6, rel=0.02)  # the tails are cut
    tau = (g / 2).sigmoid()
    flow_snr = (tau / (1 - tau)).square()
    assert torch.allclose(flow_snr, g.exp())


def test_bounds_are_the_ends() -> None:
    assert bounds(LogSnrLinear()) == (5.0, -7.0)
    assert bounds(LogSnrLinear(shift=1.0)) == (6.0, -6.0)


@given(st.integers(1, 300), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_strata_hold_one_t_each(n: int, seed: int) -> None:
    t = stratified(n, torch.Generator().manual_seed(seed))
    assert t.shape == (n,) and t.dtype == torch.float32
    offset = t.double().sort().values * n - torch.arange(n)
    assert (offset > -1e-4).all() and (offset < 1 + 1e-4).all()
    again = stratified(n, torch.Generator().manual_seed(seed))
    assert torch.equal(t, again)


def test_strata_are_uniform_one_by_one_and_steady_together() -> None:
    rng = torch.Generator().manual_seed(0)
    drawn = torch.stack([stratified(8, rng) for _ in range(4000)])
    assert drawn[:, 0].mean().item() == pytest.approx(0.5, abs=0.02)
    assert drawn[:, 0].var().item() == pytest.approx(1 / 12, rel=0.05)
    assert drawn.mean(1).std().item() == pytest.approx(
        math.sqrt(1 / 12 / 8) / 8, rel=0.05
    )  # an eighth of independent draws


@pytest.mark.parametrize(("vocab", "dim"), [(80, 16), (4096, 64)])
def test_tokens_are_told_apart_from_the_threshold_on(vocab: int, dim: int) -> None:
    gen = torch.Generator().manual_seed(0)
    rows = torch.randn(vocab, dim, generator=gen)
    rows = rows / rows.norm(dim=1, keepdim=True) * math.sqrt(dim)
    ids = torch.randint(vocab, (1500,), generator=gen)

    def accuracy(g: float) -> float:
        z = add_noise(rows[ids], torch.randn(len(ids), dim, generator=gen), g)
        return float(((evidence(g).float() * z @ rows.T).argmax(-1) == ids).double().mean())

    centre = snr_threshold(vocab, dim)
    assert 0.05 <= accuracy(centre - 1) <= 0.25
    assert 0.50 <= accuracy(centre) <= 0.72
    assert accuracy(centre + 1) >= 0.93


def test_thresholds_of_known_sizes() -> None:
    assert snr_threshold(82, 16) == pytest.approx(-0.596, abs=1e-3)
    assert snr_threshold(50257, 1024) == pytest.approx(-3.856, abs=1e-3)


def test_the_published_embedding_scale_leaves_few_steps_with_a_plain_token() -> None:
    published = Linear(shift=math.log(0.02**2))  # embeddings of std 0.02 against unit noise
    g = published.logsnr(torch.linspace(0, 1, 1000, dtype=torch.float64))
    assert int((g > snr_threshold(50257, 1024)).sum()) == 39
    assert identifiable_share(published, 50257, 1024) == pytest.approx(0.039, abs=1e-3)
    assert window_share(published, 50257, 1024) == pytest.approx(0.355, abs=2e-3)
    assert window_share(shifted_to(published, 50257, 1024), 50257, 1024) > 0.6


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("vocab", "dim"), [(82, 16), (50257, 128), (50257, 1024)])
def test_a_shifted_schedule_is_centred_below_the_threshold(spec: str, vocab: int, dim: int) -> None:
    ours = shifted_to(schedule(spec), vocab, dim)
    median = float(ours.logsnr(torch.tensor(0.5, dtype=torch.float64)))
    assert median == pytest.approx(snr_threshold(vocab, dim) - 1, abs=1e-9)
    if "high=9" not in spec and "std=2" not in spec:  # these two are wider than the window
        assert window_share(ours, vocab, dim) > 0.5


def test_shares_of_the_even_schedule_are_lengths() -> None:
    plain = LogSnrLinear()
    centre = snr_threshold(82, 16)
    assert window_share(plain, 82, 16) == pytest.approx(8 / 12, abs=2e-4)
    assert identifiable_share(plain, 82, 16) == pytest.approx((5 - centre) / 12, abs=2e-4)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("linear(beta_start=0)", "beta_start.*> 0"),
        ("linear(beta_end=1.0)", "beta_end.*0.999"),
        ("linear(beta_start=0.03)", "at most beta_end"),
        ("sigmoid(beta_start=0.03)", "at most beta_end"),
        ("linear(steps=2)", "steps.*>= 3"),
        ("linear(steps=10.5)", "steps"),
        ("linear(zero_terminal=1)", "zero_terminal"),
        ("cosine(s=-0.1)", "s.*>= 0"),
        ("cosine(beta_end=0.1)", "unknown"),
        ("logsnr_linear(high=-7, low=5)", "below high"),
        ("logsnr_linear(high=float)", "literal"),
        ("logsnr_linear(shift=40)", "shift"),
        ("logit_normal(std=0)", "std.*> 0"),
        ("logit_normal(tail=0.5)", "tail"),
        ("logsnr", "did you mean logsnr_linear"),
    ],
)
def test_bad_options_are_refused(spec: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        schedule(spec)
    assert re.search(says, f"{caught.value} {caught.value.remedy}")


def test_sizes_that_make_no_sense_are_refused() -> None:
    for vocab, dim in ((1, 16), (80, 0)):
        with pytest.raises(ConfigError):
            window_share(Cosine(), vocab, dim)
        with pytest.raises(ConfigError):
            shifted_to(Sigmoid(), vocab, dim)
