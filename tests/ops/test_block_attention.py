"""Block-diffusion attention: the published mask by a double loop, and every path against the rule written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from unmask.ops.attention import blocks, reference
from unmask.ops.attention.block_flex import FlexBlockAttention
from unmask.ops.attention.blocks import BlockAttention, BlockLayout, arrange, training_mask


def test_the_training_mask_is_the_formula() -> None:
    n, size = 96, 32
    mask = training_mask(n, size)
    for q in range(2 * n):
        for k in range(2 * n):
            same = (q >= n) == (k >= n) and q % n // size == k % n // size
            offset = q < n <= k and q // size > (k - n) // size
            causal = q >= n and k >= n and (q - n) // size >= (k - n) // size
            assert bool(mask[q, k]) == (same or offset or causal), (q, k)


def test_noise_sees_no_noise_elsewhere_and_never_its_own_answer() -> None:
    mask, n = training_mask(96, 32), 96
    assert not mask[n:, :n].any()
    assert not (mask[:n, n:] & torch.eye(n, dtype=torch.bool)).any()


def draw_layout(
    seed: int, block: int, order: str, rows: int = 5, count: int = 4, views: int = 2, context: str = "block"
) -> BlockLayout:
    """Noisy blocks anywhere; clean blocks at least up to each of them."""
    gen = torch.Generator().manual_seed(seed)
    noisy = torch.rand(views, rows, count, generator=gen) < 0.5
    reach = torch.where(noisy.any(0), torch.arange(count), 0).amax(1)
    clean = torch.maximum(reach, torch.randint(0, count + 1, (rows,), generator=gen))
    return arrange(clean, noisy, block, order, context)  # type: ignore[arg-type]


CONTEXTS = ["block", "causal"]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("order", ["block", "row"])
def test_the_rule_of_a_layout_is_the_formula(order: str, context: str) -> None:
    """Token by token: the clean blocks of its row before its own, and its own block in its own copy; a clean token of a
    causal context sees no later one.
    """
    layout = draw_layout(4, 3, order, context=context)
    assert layout.context == context
    units = list(zip(*(t.tolist() for t in layout.units), strict=True))
    tokens = [(*unit, at) for unit in units for at in range(3)]
    assert len(set(tokens)) == len(tokens)
    mask = layout.mask()
    for i, (row, index, copy, at) in enumerate(tokens):
        for j, (other, block, version, place) in enumerate(tokens):
            before = row == other and version == 0 and block < index
            own = (row, index, copy) == (other, block, version)
            ahead = context == "causal" and copy == 0 and place > at
            assert bool(mask[i, j]) == (before or (own and not ahead)), (tokens[i], tokens[j])


def tensors(tokens: int, heads: int, kv: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    gen = torch.Generator().manual_seed(seed)
    made = [torch.randn(tokens, h, 8, generator=gen, dtype=torch.float64).to(dtype) for h in (heads, kv, kv)]
    return [t.requires_grad_() for t in made]


def dense(layout: BlockLayout, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = (t.transpose(0, 1)[None] for t in (q, k, v))
    out = F.scaled_dot_product_attention(*parts, attn_mask=layout.mask(), enable_gqa=True)
    return out[0].transpose(0, 1)


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.autograd.grad((out * weight.to(out.dtype)).sum(), inputs)


def assert_same(layout: BlockLayout, heads: int, kv: int) -> None:
    inputs = tensors(len(layout.row) * layout.block, heads, kv)
    ours, right = BlockAttention(layout)(*inputs), dense(layout, *inputs)
    assert torch.allclose(ours, right, atol=1e-12)
    for a, b in zip(gradients(ours, inputs), gradients(right, inputs), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("heads", "kv"), [(2, 2), (4, 2), (3, 1)])
def test_products_equal_the_rule(seed: int, heads: int, kv: int, context: str) -> None:
    assert_same(draw_layout(seed, 3, "block", context=context), heads, kv)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(1, 5),
    st.sampled_from([1, 2]),
    st.sampled_from(CONTEXTS),
)
def test_products_equal_the_rule_for_any_layout(
    seed: int, block: int, rows: int, count: int, views: int, context: str
) -> None:
    layout = draw_layout(seed, block, "block", rows, count, views, context)
    if len(layout.row):
        assert_same(layout, 2, 1)


@pytest.mark.parametrize("context", CONTEXTS)
def test_weights_made_again_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch, context: str) -> None:
    monkeypatch.setattr(blocks, "_KEEP", 0)
    assert_same(draw_layout(3, 4, "block", context=context), 4, 2)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("block", [16, 33])
def test_bfloat16_is_within_its_rounding(block: int, context: str) -> None:
    layout = draw_layout(1, block, "block", context=context)
    wide = tensors(len(layout.row) * block, 4, 2)
    narrow = [t.detach().bfloat16().requires_grad_() for t in wide]
    right, ours = dense(layout, *wide), BlockAttention(layout)(*narrow)
    assert ours.dtype == torch.bfloat16
    pairs = [(ours, right), *zip(gradients(ours, narrow), gradients(right, wide), strict=True)]
    assert all(float((a.detach().double() - b.detach()).norm() / b.detach().norm()) < 0.02 for a, b in pairs)


def test_queries_may_be_wider_than_values() -> None:
    """RoPE in float32 under autocast: q and k float32, v bfloat16; gradients come back in the dtype of each."""
    layout = draw_layout(1, 4, "block")
    q, k, v = (t.detach().float().requires_grad_() for t in tensors(len(layout.row) * 4, 4, 2))
    narrow = v.detach().bfloat16().requires_grad_()
    out = BlockAttention(layout)(q, k, narrow)
    grads = torch.autograd.grad(out.float().sum(), (q, k, narrow))
    assert (out.dtype, *(g.dtype for g in grads)) == (torch.bfloat16, torch.float32, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("seed", range(4))
def test_spans_say_the_same(seed: int, context: str) -> None:
    layout = draw_layout(seed, 3, "row", context=context)
    q, k, v = (t.detach() for t in tensors(len(layout.row) * 3, 4, 2))
    by_span = reference.rows(q, k.transpose(0, 1), v.transpose(0, 1), layout.spans())
    assert torch.allclose(by_span, dense(layout, q, k, v), atol=1e-12)
    assert all(len(spans) <= 2 for _, spans in layout.spans())


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("block", [16, 32, 24, 5, 256])
def test_the_tiles_of_flex_attention_are_the_rule(block: int, context: str) -> None:
    """Tiles, and the rule inside partial ones, for blocks that divide a tile and blocks that do not."""
    rows, count = (4, 5) if block < 128 else (2, 2)
    layout = draw_layout(block, block, "row", rows, count, context=context)
    tokens = len(layout.row) * block
    mask = FlexBlockAttention(layout, torch.device("cpu")).mask
    at = torch.arange(tokens)
    inside = mask.mask_mod(0, 0, at[:, None], at[None])
    assert torch.equal(inside, layout.mask())
    tiles = F.pad(inside, (0, -tokens % 128, 0, -tokens % 128))
    tiles = tiles.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).transpose(1, 2)
    computed = mask.to_dense()[0, 0].bool()
    assert torch.equal(computed[:-1], tiles.any(3).any(2)[:-1])
    assert computed[-1].ge(tiles.any(3).any(2)[-1]).all()
    counts, order = mask.full_kv_num_blocks[0, 0].tolist(), mask.full_kv_indices[0, 0].tolist()
    whole = {(row, tile) for row, n in enumerate(counts) for tile in order[row][:n]}
    assert whole == {tuple(at) for at in tiles.all(3).all(2).nonzero().tolist()}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("block", [16, 12, 256])
def test_flex_attention_equals_the_rule(block: int, context: str) -> None:
    """Uncompiled, on the CPU; also for blocks wider than a tile."""
    rows, count = (5, 4) if block < 128 else (1, 2)
    layout = draw_layout(2, block, "row", rows, count, context=context)
    q, k, v = (t.detach().float() for t in tensors(len(layout.row) * block, 4, 2))
    assert torch.allclose(FlexBlockAttention(layout, q.device)(q, k, v), dense(layout, q, k, v), atol=1e-5)


def test_equal_layouts_share_a_block_mask() -> None:
    first, again, other = (FlexBlockAttention(draw_layout(s, 16, "row"), torch.device("cpu")).mask for s in (1, 1, 2))
    assert first is again and first is not other
    causal = FlexBlockAttention(draw_layout(1, 16, "row", context="causal"), torch.device("cpu")).mask
    assert causal is not first


@pytest.mark.gpu
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("block", [16, 32, 12])
def test_compiled_flex_attention_on_the_gpu(block: int, context: str) -> None:
    layout = draw_layout(2, block, "row", rows=6, count=9, context=context)
    gen = torch.Generator().manual_seed(0)
    shapes = [(len(layout.row) * block, h, 32) for h in (4, 2, 2)]
    cpu = [torch.randn(s, generator=gen, dtype=torch.float64).requires_grad_() for s in shapes]
    gpu = [t.detach().float().cuda().requires_grad_() for t in cpu]
    ours, right = FlexBlockAttention(layout, gpu[0].device)(*gpu), dense(layout, *cpu)
    pairs = [(ours, right)]
    pairs += list(zip(torch.autograd.grad(ours.sum(), gpu), torch.autograd.grad(right.sum(), cpu), strict=True))
    assert all(float((a.detach().cpu().double() - b.detach()).norm() / b.detach().norm()) < 5e-3 for a, b in pairs)
