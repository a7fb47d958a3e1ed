"""Bi-WKV: every implementation that runs here against the definition, its properties, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from unmask.core.errors import InputError
from unmask.ops import biwkv as room
from unmask.ops.biwkv import State, biwkv, dispatch, states
from unmask.ops.biwkv.common import NEG, Inputs
from unmask.ops.biwkv.reference import dense

CPU = torch.device("cpu")
RUNS = [n for n in dispatch.IMPLEMENTATIONS if not dispatch.why_not(n, CPU)]
EXACT = [n for n in RUNS if n != "matmul"]
"""For keys of any size."""


@pytest.fixture(autouse=True)
def _no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


def case(
    batch: int,
    length: int,
    dim: int,
    scale: float = 1.0,
    lam: float = 1.5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """r, k, v, lam, u."""
    gen = torch.Generator().manual_seed(seed)
    r, k, v = (torch.randn(batch, length, dim, generator=gen, dtype=torch.float64) for _ in range(3))
    decay = torch.rand(batch, dim, generator=gen, dtype=torch.float64) * lam + 0.02
    return [x.to(dtype) for x in (r, k * scale, v, decay, torch.randn(batch, dim, generator=gen, dtype=torch.float64))]


def gradients(fn, operands: list[Tensor], *more) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
    """Output and the five gradients for one fixed direction."""
    leaves = [x.detach().clone().requires_grad_() for x in operands]
    out = fn(*leaves, *more)
    go = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return (out.detach(), *torch.autograd.grad(out, leaves, go.to(out.dtype)))


def on(impl: str):  # type: ignore[no-untyped-def]
    return lambda *x: biwkv(*x, impl=impl)


def worst(found: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    return max(
        float((a.double() - b.double()).abs().max() / (1 + b.double().abs().max())) for a, b in zip(found, right)
    )


def relative(found: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    return max(
        float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-9)) for a, b in zip(found, right)
    )


def holes(batch: int, length: int) -> Tensor:
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(5)) > 0.4
    mask[0, length // 2 :] = False
    return mask


@pytest.mark.parametrize("shape", [(2, 5, 2), (1, 1, 2), (2, 2, 1)])
@pytest.mark.parametrize("impl", RUNS)
def test_gradcheck(impl: str, shape: tuple[int, int, int]) -> None:
    operands = [x.requires_grad_() for x in case(*shape, seed=shape[1])]
    assert gradcheck(on(impl), operands, eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("impl", RUNS)
def test_gradcheck_with_a_mask(impl: str) -> None:
    mask = torch.tensor([[True, False, True, True, False], [False] * 5])
    operands = [x.requires_grad_() for x in case(2, 5, 3)]
    assert gradcheck(lambda *x: biwkv(*x, mask, impl=impl), operands, eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("scale", "lam"), [(1, 1.5), (20, 0.01), (200, 3.0), (1, 60.0)])
@pytest.mark.parametrize("impl", EXACT)
def test_values_and_gradients_equal_the_definition(impl: str, scale: float, lam: float, masked: bool) -> None:
    operands, mask = case(2, 67, 5, scale, lam), holes(2, 67) if masked else None
    assert worst(gradients(on(impl), operands, mask), gradients(dense, operands, mask)) < 1e-10


@pytest.mark.parametrize("length", [1, 2, 3, 31, 32, 33])
@pytest.mark.parametrize("dim", [1, 65])
@pytest.mark.parametrize("impl", RUNS)
def test_every_length_and_width(impl: str, length: int, dim: int) -> None:
    operands = case(2, length, dim, seed=length)
    assert worst(gradients(on(impl), operands), gradients(dense, operands)) < 1e-11


@pytest.mark.parametrize("impl", [n for n in RUNS if n != "reference"])
def test_a_thousand_positions_in_float32(impl: str) -> None:
    operands = case(1, 1000, 16, 4.0, 0.05)
    right = gradients(on("chunk"), operands)
    assert relative(gradients(on(impl), [x.float() for x in operands]), right) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("impl", [n for n in RUNS if n != "reference"])
def test_long_sequences_stay_precise(impl: str) -> None:
    operands = case(1, 16384, 3, 3.0, 0.004)
    right = gradients(on("chunk"), operands)
    assert relative(gradients(on(impl), [x.float() for x in operands]), right) < 5e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", RUNS)
def test_half_precision_keeps_its_state_in_float32(impl: str, dtype: torch.dtype) -> None:
    operands = case(2, 90, 70, 2.0, 0.1)
    halves = [x.to(dtype) for x in operands[:3]] + [x.float() for x in operands[3:]]
    found = gradients(on(impl), halves)
    right = gradients(on("chunk"), [x.double() for x in halves])
    assert {x.dtype for x in found[:4]} == {dtype}
    assert {x.dtype for x in found[4:]} == {torch.float32}
    assert relative(found, right) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", [n for n in RUNS if n != "reference"])
def test_two_runs_are_the_same_bits(impl: str, dtype: torch.dtype) -> None:
    """Values and gradients, large enough for several threads, segments and channel blocks."""
    operands = case(3, 300, 130, 2.0, 0.1)
    operands = [x.to(dtype) for x in operands[:3]] + [x.float() for x in operands[3:]]
    first, *others = (gradients(on(impl), operands, holes(3, 300)) for _ in range(3))
    assert all(torch.equal(a, b) for again in others for a, b in zip(first, again, strict=True))


def test_no_kernel_adds_in_an_order_that_may_change() -> None:
    """What makes the kernels for GPUs deterministic: partial sums are written out and added in one order."""
    for module in ("cuda.cu", "triton.py", "cpu.cpp"):
        source = Path(room.__file__).with_name(module).read_text("utf-8")
        assert not re.search(r"atomic[A-Z_]|fetch_add|omp atomic", source), module


@pytest.mark.parametrize("impl", RUNS)
def test_inputs_that_are_not_contiguous(impl: str) -> None:
    r, k, v, lam, u = case(3, 20, 12)
    fused = torch.cat([r, k, v], 2)
    parts = [*fused.chunk(3, 2), lam.t().contiguous().t(), u]
    assert worst((biwkv(*parts, impl=impl),), (biwkv(r, k, v, lam, u, impl=impl),)) < 1e-13
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (r, k, v)]
    before = [x.clone() for x in turned]
    assert worst(gradients(on(impl), [*turned, lam, u]), gradients(dense, [r, k, v, lam, u])) < 1e-11
    assert all(torch.equal(a, b) for a, b in zip(before, turned)), "inputs are not written to"


@pytest.mark.parametrize("impl", RUNS)
def test_inputs_are_not_written_to(impl: str) -> None:
    """One chunk of one position, where a layout inside may be the input itself."""
    operands = case(1, 1, 8)
    before = [x.clone() for x in operands]
    gradients(on(impl), operands)
    biwkv(*operands, impl=impl)
    assert all(torch.equal(a, b) for a, b in zip(before, operands))


class TestProperties:
    @pytest.mark.parametrize("impl", EXACT)
    def test_the_mean_is_convex_for_any_key(self, impl: str) -> None:
        r, k, v, lam, u = (x.float() for x in case(2, 50, 4, 300.0))
        y = 2 * biwkv(torch.zeros_like(r), k, v, lam, u, impl=impl)
        assert bool((y.abs() <= v.abs().amax(1, keepdim=True) + 1e-4).all())

    @pytest.mark.parametrize("impl", RUNS)
    def test_a_constant_on_all_keys_changes_nothing(self, impl: str) -> None:
        r, k, v, lam, u = case(2, 50, 4)
        assert worst((biwkv(r, k + 1234.5, v, lam, u, impl=impl),), (biwkv(r, k, v, lam, u, impl=impl),)) < 1e-9

    @pytest.mark.parametrize("impl", RUNS)
    def test_reversal(self, impl: str) -> None:
        r, k, v, lam, u = case(2, 50, 4)
        turned = biwkv(r.flip(1), k.flip(1), v.flip(1), lam, u, impl=impl).flip(1)
        assert worst((turned,), (biwkv(r, k, v, lam, u, impl=impl),)) < 1e-12

    @pytest.mark.parametrize("impl", RUNS)
    def test_without_decay_it_is_the_softmax_mean(self, impl: str) -> None:
        r, k, v, lam, u = case(2, 50, 4)
        y = 2 * biwkv(r * 0, k, v, lam * 0, u * 0, impl=impl)
        assert worst((y,), ((torch.softmax(k, 1) * v).sum(1, keepdim=True).expand_as(y),)) < 1e-12

    @pytest.mark.parametrize("impl", EXACT)
    def test_a_large_bonus_gives_the_own_value(self, impl: str) -> None:
        r, k, v, lam, u = case(2, 50, 4)
        assert worst((2 * biwkv(r * 0, k, v, lam, u * 0 + 80, impl=impl),), (v,)) < 1e-12

    @pytest.mark.parametrize("impl", RUNS)
    def test_one_position_gives_its_own_value(self, impl: str) -> None:
        r, k, v, lam, u = case(2, 1, 4)
        assert worst((2 * biwkv(r * 0, k, v, lam, u, impl=impl),), (v,)) < 1e-15


class TestMasks:
    @pytest.mark.parametrize("impl", RUNS)
    def test_a_padded_row_equals_the_shorter_row_whatever_the_pads_hold(self, impl: str) -> None:
        r, k, v, lam, u = case(1, 50, 70)
        mask = (torch.arange(50) < 40)[None]
        noisy = [torch.where(mask[..., None], x, torch.full_like(x, 777.0)) for x in (r, k, v)]
        padded = gradients(on(impl), [*noisy, lam, u], mask)
        short = gradients(on(impl), [r[:, :40], k[:, :40], v[:, :40], lam, u])
        assert worst((padded[0][:, :40],), (short[0],)) < 1e-12
        assert not padded[2][:, 40:].any() and not padded[3][:, 40:].any(), "pads get no gradient"

    @pytest.mark.parametrize("impl", RUNS)
    def test_the_content_of_masked_positions_changes_no_bit_of_the_others(self, impl: str) -> None:
        r, k, v, lam, u = (x.float() for x in case(2, 33, 70))
        mask = holes(2, 33)
        other = [torch.where(mask[..., None], x, x * -3 + 1) for x in (k, v)]
        a, b = biwkv(r, k, v, lam, u, mask, impl=impl), biwkv(r, *other, lam, u, mask, impl=impl)
        assert torch.equal(a, b)

    @pytest.mark.parametrize("impl", RUNS)
    def test_a_row_without_any_key_yields_zero_and_no_gradient(self, impl: str) -> None:
        mask = torch.tensor([[False] * 9, [True] * 9])
        found = gradients(on(impl), case(2, 9, 4), mask)
        assert all(not x[0].any() for x in found)
        assert all(bool(x.isfinite().all()) and bool(x[1].any()) for x in found)

    @pytest.mark.parametrize("fill", [NEG, -torch.inf, torch.finfo(torch.float32).min])
    @pytest.mark.parametrize("impl", EXACT)
    def test_keys_of_minus_infinity_are_masked_keys(self, impl: str, fill: float) -> None:
        r, k, v, lam, u = (x.float() for x in case(2, 33, 5))
        mask = holes(2, 33)
        filled = k.masked_fill(~mask[..., None], fill)
        found, right = gradients(on(impl), [r, filled, v, lam, u]), gradients(dense, [r, k, v, lam, u], mask)
        assert relative(found, right) < 1e-5


class TestStates:
    @pytest.mark.parametrize("impl", [n for n in RUNS if dispatch.IMPLEMENTATIONS[n].edges])
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize(("start", "stop"), [(0, 40), (0, 9), (13, 20), (31, 40), (7, 8)])
    def test_a_block_with_its_states_equals_the_whole(self, impl: str, masked: bool, start: int, stop: int) -> None:
        r, k, v, lam, u = case(2, 40, 70, 30.0, 0.1)
        mask = holes(2, 40) if masked else None
        left, right = states(k, v, lam, mask, (stop, start))
        cut = [x[:, start:stop] for x in (r, k, v)]
        found = biwkv(
            *cut, lam, u, None if mask is None else mask[:, start:stop],
            left=State(*(x[:, 1] for x in left)), right=State(*(x[:, 0] for x in right)), impl=impl,
        )  # fmt: skip
        assert worst((found,), (dense(r, k, v, lam, u, mask)[:, start:stop],)) < 1e-12

    def test_states_go_on_from_block_to_block(self) -> None:
        _, k, v, lam, _ = case(2, 40, 3)
        whole, _ = states(k, v, lam, at=(40,))
        first, _ = states(k[:, :17], v[:, :17], lam, at=(17,))
        then, _ = states(k[:, 17:], v[:, 17:], lam, at=(23,), left=State(*(x[:, 0] for x in first)))
        assert worst(tuple(then), tuple(whole)) < 1e-13

    def test_a_state_is_the_decayed_sum(self) -> None:
        _, k, v, lam, _ = case(2, 12, 3)
        left, right = states(k, v, lam, at=(5, 0, 12))
        i = torch.arange(12.0, dtype=torch.float64)[None, :, None]
        before, after = (torch.exp(k - lam[:, None] * (5 - i))[:, :5], torch.exp(k - lam[:, None] * (i - 4))[:, 5:])
        for state, weight, values in ((left, before, v[:, :5]), (right, after, v[:, 5:])):
            assert torch.allclose(state.p[:, 0].exp() * state.a[:, 0], (weight * values).sum(1))
            assert torch.allclose(state.p[:, 0].exp() * state.b[:, 0], weight.sum(1))
        assert not left.b[:, 1].any() and not right.b[:, 2].any(), (
            "nothing lies before the first and after the last cut"
        )

    @pytest.mark.parametrize("impl", [n for n in RUNS if dispatch.IMPLEMENTATIONS[n].edges])
    def test_only_a_state_and_no_key_of_its_own(self, impl: str) -> None:
        r, k, v, lam, u = case(1, 4, 3)
        left = State(torch.zeros(1, 3), torch.full((1, 3), 3.0), torch.ones(1, 3))
        none = torch.zeros(1, 4, dtype=torch.bool)
        assert torch.allclose(biwkv(r, k, v, lam, u, none, left=left, impl=impl), 3 * torch.sigmoid(r))

    def test_no_gradient_through_a_block_with_states(self) -> None:
        r, k, v, lam, u = case(1, 4, 3)
        left, _ = states(k, v, lam, at=(4,))
        with pytest.raises(InputError, match="inference only"):
            biwkv(r.requires_grad_(), k, v, lam, u, left=State(*(x[:, 0] for x in left)))


def test_gradients_reach_the_time_conditioning() -> None:
    r, k, v, _, _ = case(2, 9, 4)
    gen = torch.Generator().manual_seed(1)
    shapes = ((2, 6), (4,), (4,), (6, 4), (6, 4))
    tau = [torch.randn(s, generator=gen, dtype=torch.float64).requires_grad_() for s in shapes]

    def fn(tau: Tensor, w: Tensor, u: Tensor, dw: Tensor, du: Tensor) -> Tensor:
        return biwkv(r, k, v, torch.exp(w + 0.3 * torch.tanh(tau @ dw)), u + tau @ du)

    assert gradcheck(fn, tau)


class TestCompile:
    @pytest.mark.parametrize("dynamic", [False, True])
    def test_one_graph_forward_and_backward(self, dynamic: bool) -> None:
        torch._dynamo.reset()

        def fn(r: Tensor, k: Tensor, v: Tensor, lam: Tensor, u: Tensor, mask: Tensor) -> Tensor:
            return biwkv(r * 2, k, v, lam.exp(), u, mask) + 1

        compiled = torch.compile(fn, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for length in (12, 15):
            operands, mask = case(2, length, 5), holes(2, length)
            assert worst(gradients(compiled, operands, mask), gradients(fn, operands, mask)) < 1e-12

    def test_the_op_is_registered_as_torch_wants_it(self) -> None:
        operands = [x.requires_grad_() for x in case(2, 5, 3)]
        arguments = (*operands, holes(2, 5), None, "auto", True)
        torch.library.opcheck(torch.ops.unmask.biwkv.default, arguments)


class TestChoice:
    def test_the_environment_names_an_implementation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(dispatch.VARIABLE, "reference")
        assert dispatch.choose("auto", CPU) is dispatch.IMPLEMENTATIONS["reference"]
        assert dispatch.choose("chunk", CPU) is dispatch.IMPLEMENTATIONS["chunk"], "a named one goes before it"
        monkeypatch.setenv(dispatch.VARIABLE, "magic")
        with pytest.raises(InputError, match="UNMASK_BIWKV"):
            biwkv(*case(1, 2, 3))

    def test_a_named_one_that_cannot_run_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = dispatch.Implementation(
            dispatch.chunk.forward, dispatch.chunk.backward, lambda _: "no compiler was found; install gcc", "broken"
        )
        monkeypatch.setitem(dispatch.IMPLEMENTATIONS, "broken", broken)
        monkeypatch.setitem(dispatch.AUTO, "cpu", ("broken", *dispatch.AUTO["cpu"]))
        with pytest.raises(InputError, match="no compiler") as refused:
            biwkv(*case(1, 2, 3), impl="broken")
        assert refused.value.remedy
        assert dispatch.choose("auto", CPU) is not broken
        assert "broken (broken): not used, no compiler was found; install gcc" in room.describe()

    def test_wrong_numbers_are_left_out(self) -> None:
        def off(x: Inputs, save: bool):  # type: ignore[no-untyped-def]
            out, saved = dispatch.chunk.forward(x, save)
            return out * 1.01, saved

        wrong = dispatch.Implementation(off, dispatch.chunk.backward, lambda _: "", "off by one percent")
        assert "self-check failed" in dispatch.disagreement(wrong, CPU)
        assert dispatch.disagreement(dispatch.IMPLEMENTATIONS["chunk"], CPU) == ""

    def test_keys_too_wide_for_matrix_products_are_refused_not_answered_wrongly(self) -> None:
        r, k, v, lam, u = (x.float() for x in case(2, 40, 5))
        biwkv(r, k, v, lam, u, impl="matmul")
        mask = (torch.arange(40) < 4).expand(2, 40)
        for bad in ((k * 100, u, None), (k, u + 70, None), (k, u, mask)):
            with pytest.raises(InputError, match="matmul"):
                biwkv(r, bad[0], v, lam + 2, bad[1], bad[2], impl="matmul")
        assert bool(biwkv(r, k * 100, v, lam, u).isfinite().all()), "auto takes any key"

    def test_unknown_names_and_wrong_shapes_are_refused(self) -> None:
        r, k, v, lam, u = case(2, 5, 3)
        for bad, what in (
            (lambda: biwkv(r, k, v, lam, u, impl="fast"), "impl"),
            (lambda: biwkv(r, k[:, :4], v, lam, u), "r, k, v"),
            (lambda: biwkv(r, k, v, lam[0], u), "lam"),
            (lambda: biwkv(r, k, v, lam, u[:, None]), "u;"),
            (lambda: biwkv(r, k, v, lam, u, torch.ones(2, 5)), "mask"),
            (lambda: biwkv(r.long(), k, v, lam, u), "floating"),
            (lambda: states(k, v, lam, at=(6,)), "at;"),
            (lambda: biwkv(r, k, v, lam, u, left=State(lam, lam, lam[:1])), "left"),
        ):
            with pytest.raises(InputError, match=what):
                bad()

    def test_empty_tensors(self) -> None:
        for shape in ((0, 4, 3), (2, 0, 3), (2, 4, 0)):
            assert biwkv(*case(*shape)).shape == shape

    def test_it_says_what_runs(self) -> None:
        assert room.describe().startswith("cpu: ")
