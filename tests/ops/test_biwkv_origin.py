"""Published parametrisations against recurrences written out here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask.core.errors import InputError
from unmask.ops.biwkv import biwkv


def origin(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, tau: Tensor) -> Tensor:
    return biwkv(r, k, v, w, u, compat="origin", tau=tau)


def eager(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, tau: Tensor) -> Tensor:
    """The published recurrence: both running sums hold the own position; it is taken out once, put in with e^u."""
    phi = torch.sigmoid(tau.sum(1))[:, None]
    decay = torch.exp(-torch.exp(w)) * (0.5 + 0.5 * phi)
    weight = torch.exp(k.clamp(max=30.0))
    bonus = torch.exp((k + u[:, None]).clamp(max=30.0))
    num, den = bonus * v - weight * v, bonus - weight
    for order in (range(k.shape[1]), reversed(range(k.shape[1]))):
        n, m = torch.zeros_like(w), torch.zeros_like(w)
        for t in order:
            n, m = n * decay + weight[:, t] * v[:, t], m * decay + weight[:, t]
            num[:, t] += n
            den[:, t] += m
    return torch.sigmoid(r) * num / den.clamp_min(1e-8) * (0.8 + 0.2 * phi)[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_the_published_formula(dtype: torch.dtype, spread: float) -> None:
    gen = torch.Generator().manual_seed(0)
    r, k, v = (torch.randn(3, 33, 5, generator=gen, dtype=torch.float64) for _ in range(3))
    w, u = (torch.randn(3, 5, generator=gen, dtype=torch.float64) for _ in range(2))
    tau = torch.randn(3, 128, generator=gen, dtype=torch.float64) * spread
    ours = origin(*(x.to(dtype) for x in (r, k, v, w * 0.5, u, tau)))
    assert float((ours.double() - eager(r, k, v, w * 0.5, u, tau)).abs().max()) < 1e-6


def test_its_gradients_are_those_of_the_recurrence() -> None:
    gen = torch.Generator().manual_seed(1)
    shapes = ((2, 9, 4), (2, 9, 4), (2, 9, 4), (2, 4), (2, 4), (2, 128))
    leaves = [(torch.randn(s, generator=gen, dtype=torch.float64) * 0.3).requires_grad_() for s in shapes]
    found = torch.autograd.grad(origin(*leaves).square().sum(), leaves)
    right = torch.autograd.grad(eager(*leaves).square().sum(), leaves)
    for a, b in zip(found, right):
        assert torch.allclose(a, b, atol=1e-10)


def test_shifted_keys_change_nothing_here_where_the_origin_clamps() -> None:
    gen = torch.Generator().manual_seed(2)
    r, k, v = (torch.randn(1, 9, 4, generator=gen) for _ in range(3))
    w, u, tau = torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1, 128)
    assert torch.allclose(origin(r, k + 40, v, w, u, tau), origin(r, k, v, w, u, tau), atol=1e-5)
    assert not torch.allclose(eager(r, k + 40, v, w, u, tau), eager(r, k, v, w, u, tau), atol=1e-2)


def test_vision_rwkv() -> None:
    """Neighbours weigh exp(-(|t - i| - 1) w / T + k[i]), the own position exp(u / T + k[t])."""
    gen = torch.Generator().manual_seed(3)
    r, k, v = (torch.randn(2, 12, 3, generator=gen, dtype=torch.float64) for _ in range(3))
    w, u = torch.rand(3, generator=gen, dtype=torch.float64) * 5, torch.randn(3, generator=gen, dtype=torch.float64)
    t = torch.arange(12.0, dtype=torch.float64)
    far = -((t[:, None] - t).abs() - 1)[..., None] * w / 12
    score = torch.where(torch.eye(12, dtype=torch.bool)[..., None], (u / 12).expand_as(far), far) + k[:, None]
    right = torch.sigmoid(r) * torch.einsum("btic,bic->btc", torch.softmax(score, 2), v)
    assert torch.allclose(biwkv(r, k, v, w.expand(2, -1), u.expand(2, -1), compat="vision"), right, atol=1e-12)


def test_the_time_embedding_belongs_to_the_origin_alone() -> None:
    r, lam = torch.zeros(1, 4, 2), torch.zeros(1, 2)
    for words in ({"compat": "origin"}, {"tau": torch.zeros(1, 8)}, {"compat": "vision", "tau": torch.zeros(1, 8)}):
        with pytest.raises(InputError, match="tau"):
            biwkv(r, r, r, lam, lam, **words)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="clean, origin or vision"):
        biwkv(r, r, r, lam, lam, compat="orign")  # type: ignore[arg-type]
