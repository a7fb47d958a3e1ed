"""Ops: the definition against what runs, forward and gradient; poisoned buffers; bf16 bit for bit."""

from __future__ import annotations

import json
import math

import bf16_golden as golden
import pytest
import torch
from torch import Tensor

from unmask import testing as t
from unmask.core.types import BlockCausal, Full, Traits, rows_in
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.transformer import Transformer, TransformerConfig
from unmask.ops import attention
from unmask.ops.attention import reference as attention_reference
from unmask.ops.norm import reference as norm_reference
from unmask.ops.norm import rms_norm
from unmask.ops.rope import apply_rope, rope_table
from unmask.ops.swiglu import swiglu

TABLE = json.loads(golden.TABLE.read_text("utf-8"))


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- attention -------------------------------------------------------------------------------------------------------

RUNS = {
    "one span": ((5, ((0, 9),)),),
    "two spans": ((5, ((0, 3), (6, 11))),),
    "runs of both": ((2, ((0, 4),)), (1, ((2, 5), (7, 8))), (2, ((1, 12),))),
    "staircase": tuple((1, ((0, 4 + i),)) for i in range(5)),
    "staircase from 2": tuple((1, ((2, 5 + i),)) for i in range(5)),
    "nearly a staircase": (*((1, ((0, 4 + i),)) for i in range(4)), (1, ((0, 9),))),
    "a staircase, then a block": (*((1, ((0, 4 + i),)) for i in range(3)), (2, ((0, 9),))),
    "a staircase, a block, the next": (*((1, ((1, 3 + i),)) for i in range(2)), (1, ((0, 7),)), (2, ((0, 4), (6, 9)))),
    "one step, then a block": ((1, ((0, 4),)), (4, ((0, 8),))),
    "two staircases": ((1, ((0, 4),)), (1, ((0, 5),)), (1, ((0, 3),)), (1, ((0, 4),)), (1, ((0, 5),))),
    "a block, then a staircase": ((3, ((0, 4),)), (1, ((0, 5),)), (1, ((0, 6),))),
    "one key": ((5, ((3, 4),)),),
    "block-causal": BlockCausal(2).visible(((3, 8),), 9),
    "context-causal": BlockCausal(3, "causal").visible(((4, 9),), 10, 6),
    "full": Full().visible(((0, 5),), 12),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2), (6, 1)])
def test_rows_equal_the_definition(name: str, heads: int, kv: int) -> None:
    gen = draw(heads)
    q = torch.randn(5, heads, 8, generator=gen, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(kv, 12, 8, generator=gen, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ours, right = attention.rows(q, k, v, RUNS[name]), attention_reference.rows(q, k, v, RUNS[name])
    assert torch.allclose(ours, right, atol=1e-12)
    weight = torch.randn(ours.shape, generator=gen, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((right * weight).sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("seed", range(12))
def test_random_spans_read_nothing_else(seed: int) -> None:
    """Rows outside every span are NaN; the answer is that of the clean tensors."""
    gen = draw(seed)

    def some(high: int) -> int:
        return int(torch.randint(0, high, (), generator=gen))

    runs: list[tuple[int, tuple[tuple[int, int], ...]]] = []
    for _ in range(1 + some(4)):
        edges = sorted({some(20) for _ in range(4)} | {20})
        spans = ((edges[0], edges[1]),) if len(edges) < 4 or some(2) else ((edges[0], edges[1]), (edges[2], edges[3]))
        runs.append((1 + some(3), spans))
    n = sum(c for c, _ in runs)
    q = torch.randn(n, 4, 8, generator=gen)
    k, v = torch.randn(2, 20, 8, generator=gen), torch.randn(2, 20, 8, generator=gen)
    seen = torch.zeros(20, dtype=torch.bool)
    for _, spans in runs:
        for a, b in spans:
            seen[a:b] = True
    dirty_k, dirty_v = (torch.where(seen[None, :, None], t, torch.nan) for t in (k, v))
    right = attention_reference.rows(q.double(), k.double(), v.double(), runs)
    if all(len(spans) == 1 and spans[0][1] - spans[0][0] for _, spans in runs):
        assert torch.allclose(attention.rows(q, dirty_k, dirty_v, runs).double(), right, atol=1e-5)
    else:
        assert torch.allclose(attention.rows(q, k, v, runs).double(), right, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_dense_is_rows_over_the_whole_batch(causal: bool) -> None:
    gen = draw(3)
    q = torch.randn(2, 7, 4, 8, generator=gen)
    k, v = (torch.randn(2, 7, 2, 8, generator=gen) for _ in range(2))
    ours = attention.dense(q, k, v, None, causal)
    rule = BlockCausal(1) if causal else Full()
    for b in range(2):
        keys, values = k[b].transpose(0, 1), v[b].transpose(0, 1)
        right = attention_reference.rows(q[b], keys, values, rule.visible(((0, 7),), 7))
        assert torch.allclose(ours[b], right, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_padded_keys_are_never_attended(causal: bool) -> None:
    gen, keep = draw(4), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    q, k, v = (torch.randn(2, 5, 2, 8, generator=gen) for _ in range(3))
    mask = attention.dense_mask(keep, 5, causal)
    ours = attention.dense(q, k, v, mask, causal and mask is None)
    assert not bool(ours.isnan().any())
    short = attention.dense(q[:1, 2:], k[:1, 2:], v[:1, 2:], None, causal)
    assert torch.allclose(ours[:1, 2:], short, atol=1e-5)
    if causal:
        assert bool((ours[0, :2] == 0).all()), "a row that sees nothing is zero"
    assert attention.dense_mask(torch.ones(2, 5), 5, causal) is None


@pytest.mark.parametrize("size", [1, 3, 4])
def test_block_causal_rows_see_their_block_and_all_before(size: int) -> None:
    for query in (((0, 10),), ((2, 5), (7, 10)), ((9, 10),)):
        runs = BlockCausal(size).visible(query, 10)
        rows = [p for a, b in query for p in range(a, b)]
        seen = [spans for count, spans in runs for _ in range(count)]
        assert len(seen) == rows_in(query)
        assert [s[0][1] for s in seen] == [min((p // size + 1) * size, 10) for p in rows]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_finished_rows_of_a_causal_context_see_what_comes_before_them(size: int) -> None:
    rule = BlockCausal(size, "causal")
    for query in (((0, 10),), ((2, 5), (7, 10)), ((9, 10),)):
        for final in range(0, 11, size):
            rows = [p for a, b in query for p in range(a, b)]
            seen = [spans for count, spans in rule.visible(query, 10, final) for _ in range(count)]
            right = [p + 1 if p < final else min((p // size + 1) * size, 10) for p in rows]
            assert seen == [((0, stop),) for stop in right]
        assert (
            rule.visible(query, 10) == BlockCausal(size).visible(query, 10) == BlockCausal(size).visible(query, 10, 9)
        )


# ---- norm, rope, swiglu ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norm_equals_its_definition(dtype: torch.dtype) -> None:
    gen = draw(1)
    x = torch.randn(3, 5, 32, generator=gen).to(dtype).requires_grad_()
    weight = torch.randn(32, generator=gen).to(dtype).requires_grad_()
    ours, right = rms_norm(x, weight, 1e-6), norm_reference.rms_norm(x, weight, 1e-6)
    assert ours.dtype == dtype
    assert torch.allclose(ours, right, atol=1e-6)
    up = torch.randn(ours.shape, generator=gen).to(dtype)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), up), torch.autograd.grad(right, (x, weight), up), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-4)


def test_golden_table_is_that_of_the_formulas() -> None:
    assert golden.table(*golden.stored(TABLE)) == TABLE


@pytest.mark.parametrize("training", [True, False])
def test_norm_in_bf16_bit_for_bit(training: bool) -> None:
    """Without gradients a compiled kernel may run."""
    x, weight = golden.tensor(TABLE["x"], 6, 48), golden.tensor(TABLE["weight"], 48)
    with torch.set_grad_enabled(training):
        assert golden.bits(rms_norm(x, weight, 1e-5)) == TABLE["norm"]
    assert golden.bits(norm_reference.rms_norm(x, weight, 1e-5)) == TABLE["norm"]
    assert TABLE["norm"] != TABLE["norm_late_cast"], "the vectors tell the cast orders apart"


@pytest.mark.parametrize(("name", "dtype"), [("rope_float32", None), ("rope_hidden", torch.bfloat16)])
@pytest.mark.parametrize("training", [True, False])
def test_rope_in_bf16_bit_for_bit(name: str, dtype: torch.dtype | None, training: bool) -> None:
    q, positions = golden.tensor(TABLE["q"], 5, 2, 16), golden.inputs()[3]
    cos, sin = rope_table(positions, 16, 500_000.0, dtype)
    with torch.set_grad_enabled(training):
        assert golden.bits(apply_rope(q, cos, sin)) == TABLE[name]
    assert TABLE["rope_float32"] != TABLE["rope_hidden"], "the vectors tell the precisions apart"


def test_rope_turns_pairs_by_position_times_frequency() -> None:
    gen = draw(2)
    x = torch.randn(6, 3, 8, generator=gen, dtype=torch.float64, requires_grad=True)
    positions = torch.tensor([0, 1, 2, 10, 100, 1000])
    cos, sin = (t.double() for t in rope_table(positions, 8, 10_000.0, None))
    ours = apply_rope(x, cos, sin)
    for i, p in enumerate(positions.tolist()):
        for j in range(4):
            angle = p * 10_000.0 ** (-2 * j / 8)
            pair = torch.complex(x[i, :, j], x[i, :, j + 4]) * complex(math.cos(angle), math.sin(angle))
            assert torch.allclose(ours[i, :, j], pair.real, atol=2e-3)
            assert torch.allclose(ours[i, :, j + 4], pair.imag, atol=2e-3)
    assert torch.allclose(ours.norm(dim=-1), x.norm(dim=-1), atol=1e-6), "a rotation"
    up = torch.randn(ours.shape, generator=gen, dtype=torch.float64)
    (grad,) = torch.autograd.grad(ours, x, up)
    assert torch.allclose(grad, apply_rope(up, cos, -sin), atol=1e-9), "its gradient turns back"


def test_swiglu_is_silu_of_the_gate_times_the_rest() -> None:
    x = torch.randn(4, 10, generator=draw(7))
    gate, up = x[:, :5], x[:, 5:]
    assert torch.allclose(swiglu(x), gate / (1 + torch.exp(-gate)) * up, atol=1e-6)


# ---- the whole model -------------------------------------------------------------------------------------------------


def _logits(model: Transformer, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.logits(model(ids)).float()


@pytest.mark.parametrize("full_precision", [True, False])
@pytest.mark.parametrize("qk_norm", [None, "head"])
def test_bf16_logits_stay_within_two_percent_of_float32(full_precision: bool, qk_norm: str | None) -> None:
    cfg = TransformerConfig(200, 64, 4, 4, 2, 16, 160, rope_float32=full_precision, qk_norm=qk_norm)  # type: ignore[arg-type]
    model = Transformer(cfg).eval()
    model.init_weights(0, 0.05)
    ids = torch.randint(0, 200, (2, 40), generator=draw(0))
    right = _logits(model, ids)
    ours = _logits(model.to(torch.bfloat16), ids)
    assert float((ours - right).norm() / right.norm()) < 0.02


def test_a_fresh_store_of_nan_leaks_into_nothing() -> None:
    model = Transformer(TransformerConfig(32, 16, 2, 2, 1, 8, 24)).eval()
    model.init_weights(1, 0.3)
    clean, dirty = TransformerDenoiser(model, Traits(31)), TransformerDenoiser(model, Traits(31))
    inner = dirty.new_store

    def poisoned(slots: int, rows: int) -> object:
        store = inner(slots, rows)
        store.keys.fill_(torch.nan)
        store.values.fill_(torch.nan)
        return store

    dirty.new_store = poisoned  # type: ignore[method-assign, assignment]
    for cache in ("none", "prefix", "dual"):
        requests = t.crowd(t.strategy("growing(4)", "threshold(0.5)", cache))
        assert t.decode(dirty, requests).answers == t.decode(clean, requests).answers
