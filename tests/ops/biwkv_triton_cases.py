"""The Triton kernels under Triton's interpreter: small segments, so that carries, partial tiles, shared programs run.

Run by test_biwkv_triton.py in a process of its own: TRITON_INTERPRET must be set before anything imports triton.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from unmask.ops.biwkv import State, biwkv, states
from unmask.ops.biwkv import triton as kernels
from unmask.ops.biwkv.reference import dense


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SEGMENT", 4), ("CHANNELS", 4), ("PROGRAMS", 3)):
        monkeypatch.setattr(kernels, name, value)


def case(batch: int, length: int, dim: int, scale: float = 1.0, lam: float = 1.5) -> list[Tensor]:
    gen = torch.Generator().manual_seed(length)
    r, k, v = (torch.randn(batch, length, dim, generator=gen, dtype=torch.float64) for _ in range(3))
    decay = torch.rand(batch, dim, generator=gen, dtype=torch.float64) * lam + 0.02
    return [r, k * scale, v, decay, torch.randn(batch, dim, generator=gen, dtype=torch.float64)]


def triton(*x: Tensor) -> Tensor:
    return biwkv(*x, impl="triton")


def gradients(fn, operands: list[Tensor], *more) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
    leaves = [x.detach().clone().requires_grad_() for x in operands]
    out = fn(*leaves, *more)
    go = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return (out.detach(), *torch.autograd.grad(out, leaves, go.to(out.dtype)))


def worst(found: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    return max(
        float((a.double() - b.double()).abs().max() / (1 + b.double().abs().max())) for a, b in zip(found, right)
    )


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 5, 1)])
def test_gradcheck(shape: tuple[int, int, int]) -> None:
    assert gradcheck(triton, [x.requires_grad_() for x in case(*shape)], eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("length", "scale", "lam"), [(2, 1, 1.5), (11, 20, 0.01), (12, 200, 3.0), (9, 1, 60.0)])
def test_values_and_gradients_equal_the_definition(length: int, scale: float, lam: float, masked: bool) -> None:
    operands = case(2, length, 5, scale, lam)
    mask = torch.rand(2, length, generator=torch.Generator().manual_seed(5)) > 0.4 if masked else None
    if mask is not None:
        mask[0, length // 2 :] = False
    assert worst(gradients(triton, operands, mask), gradients(dense, operands, mask)) < 1e-10


def test_a_row_without_any_key() -> None:
    found = gradients(triton, case(2, 5, 3), torch.tensor([[False] * 5, [True] * 5]))
    assert all(not x[0].any() for x in found)
    assert all(bool(x.isfinite().all()) for x in found)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
def test_dtypes(dtype: torch.dtype, close: float) -> None:
    operands = case(1, 9, 6)
    narrow = [x.to(dtype) for x in operands[:3]] + [x.float() for x in operands[3:]]
    found = gradients(triton, narrow)
    assert {x.dtype for x in found[:4]} == {dtype}
    assert {x.dtype for x in found[4:]} == {torch.float32}
    assert worst(found, gradients(dense, [x.double() for x in narrow])) < close


def test_two_runs_give_the_same_bits() -> None:
    operands = [x.float() for x in case(2, 9, 5)]
    assert all(torch.equal(a, b) for a, b in zip(gradients(triton, operands), gradients(triton, operands)))


@pytest.mark.parametrize(("start", "stop"), [(0, 14), (3, 9)])
def test_a_block_with_its_states_equals_the_whole(start: int, stop: int) -> None:
    r, k, v, lam, u = case(2, 14, 5, 30.0, 0.1)
    left, right = states(k, v, lam, at=(start, stop))
    found = biwkv(
        *(x[:, start:stop] for x in (r, k, v)), lam, u, impl="triton",
        left=State(*(x[:, 0] for x in left)), right=State(*(x[:, 1] for x in right)),
    )  # fmt: skip
    assert worst((found,), (dense(r, k, v, lam, u)[:, start:stop],)) < 1e-12
