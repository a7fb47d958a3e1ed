"""The compiled kernels against their definitions: random shapes, poisoned output buffers, and the whole model in bf16.

Where no kernel can be built the plain path runs through the same tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.core.types import Batch, Head, Lane, Plan, Sampling, Traits
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.transformer import Transformer, TransformerConfig
from unmask.ops import attention, norm, rope, score, swiglu
from unmask.ops.attention import reference as attention_reference
from unmask.ops.norm import reference as norm_reference
from unmask.ops.rope import reference as rope_reference
from unmask.ops.score import reference as score_reference
from unmask.ops.swiglu import reference as swiglu_reference

BF16 = torch.bfloat16


def _poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        out = make(*args, **kwargs)
        return out.fill_(torch.nan) if out.is_floating_point() else out.fill_(-1)

    return made


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What nobody wrote is NaN, and nothing is differentiated, so that kernels may run."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    with torch.inference_mode():
        yield


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def close(ours: Tensor, right: Tensor, relative: float = 1e-2, absolute: float = 1e-2) -> None:
    assert ours.shape == right.shape
    assert not bool(ours.isnan().any()), "an output was left unwritten"
    assert torch.allclose(ours.float(), right.float(), rtol=relative, atol=absolute)


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2), (7, 1)])
@pytest.mark.parametrize("dim", [16, 32, 64, 96])
@pytest.mark.parametrize(("n", "first", "last"), [(1, 0, 1), (9, 0, 5), (16, 3, 70), (33, 7, 40), (40, 0, 128)])
def test_attention(heads: int, kv: int, dim: int, n: int, first: int, last: int) -> None:
    """Query rows as views of a fused projection, keys as views of a longer store whose other rows are NaN."""
    fused = noise(1, n, heads + 2 * kv, dim)
    q = fused[:, :heads]
    store = torch.full((2, kv, 130, dim), torch.nan, dtype=BF16)
    store[:, :, first:last] = noise(2, 2, kv, last - first, dim)
    runs = ((n, ((first, last),)),)
    right = attention_reference.rows(q.float(), store[0].float(), store[1].float(), runs)
    before = fused.clone()
    close(attention.rows(q, store[0], store[1], runs), right, 2e-2, 2e-2)
    assert torch.equal(fused, before), "inputs are not written to"


@pytest.mark.parametrize("shape", [(1, 8), (5, 48), (3, 4, 80), (200, 129), (0, 16)])
def test_norm(shape: tuple[int, ...]) -> None:
    x, weight = noise(3, *shape) * 3, noise(4, shape[-1])
    close(norm.rms_norm(x, weight, 1e-6), norm_reference.rms_norm(x, weight, 1e-6))
    wide = noise(5, shape[0] or 1, 3 * shape[-1])[:, shape[-1] : 2 * shape[-1]]
    close(norm.rms_norm(wide, weight, 1e-6), norm_reference.rms_norm(wide, weight, 1e-6))


@pytest.mark.parametrize("table", [torch.float32, BF16])
@pytest.mark.parametrize(("n", "heads", "dim"), [(1, 1, 8), (7, 3, 24), (64, 8, 64)])
def test_rope_bit_for_bit_and_only_its_own_heads(table: torch.dtype, n: int, heads: int, dim: int) -> None:
    fused = noise(6, n, heads + 2, dim)
    cos, sin = rope.rope_table(torch.arange(n) * 37, dim, 10_000.0, None if table == torch.float32 else table)
    right, rest = rope_reference.apply_rope(fused[:, :heads].clone(), cos, sin), fused[:, heads:].clone()
    assert torch.equal(rope.apply_rope(fused[:, :heads], cos, sin), right)
    assert torch.equal(fused[:, heads:], rest)


@pytest.mark.parametrize("shape", [(1, 2), (5, 74), (2, 3, 256), (0, 8)])
def test_swiglu(shape: tuple[int, ...]) -> None:
    x = noise(7, *shape) * 20
    close(swiglu.swiglu(x), swiglu_reference.swiglu(x))


@pytest.mark.parametrize("vocab", [1, 15, 16, 63, 64, 333, 5000])
@pytest.mark.parametrize("dtype", [BF16, torch.float32, torch.float64])
def test_best(vocab: int, dtype: torch.dtype) -> None:
    logits = (noise(8, 9, vocab) * 4).to(dtype)
    logits[1] = 2.0
    logits[2, vocab // 2 :] = -torch.inf
    found, right = score.best(logits), score_reference.best(logits)
    assert torch.equal(found[0], right[0])
    assert torch.equal(found[1], right[1].float())
    assert torch.allclose(found[2], right[2].float(), rtol=1e-4)
    assert int(found[0][1]) == 0, "ties: the lowest id"


@pytest.mark.parametrize("tile", [4, 7, 30, 8192])
@pytest.mark.parametrize("rows", [1, 2, 256])
@pytest.mark.parametrize("dtype", [BF16, torch.float32, torch.float64])
def test_greedy_tiles_give_what_whole_rows_give(
    tile: int, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short way for greedy decoding, against the general one (which margin asks for)."""
    hidden, weight = noise(9, 11, 12).to(dtype), noise(10, 30, 12).to(dtype)
    weight[17] = weight[3] = weight[3] * 3  # ties in different tiles
    monkeypatch.setattr(score, "TILE", tile)
    monkeypatch.setattr(score, "TILE_ROWS", rows)
    for closed in ((), (3,), (17,), (0, 3, 17, 29)):
        sampling = Sampling(suppress=closed)
        short = score.score([hidden], Head(weight, 0.7), sampling, mask_id=5)
        whole = score.score([hidden], Head(weight, 0.7), sampling, mask_id=5, wanted=("margin",))
        assert torch.equal(short.token, whole.token)
        assert torch.allclose(short.prob.float(), whole.prob.float(), rtol=1e-4)
        assert not {5, *closed} & set(short.token.tolist())


def test_greedy_of_no_rows() -> None:
    found = score.score([torch.zeros(0, 12)], Head(torch.zeros(30, 12)), Sampling(), mask_id=5)
    assert found.token.shape == found.prob.shape == (0,)


@pytest.mark.parametrize("full_precision", [True, False])
@pytest.mark.parametrize("kv", [1, 4])
def test_bf16_rows_through_the_store_stay_within_two_percent_of_float32(full_precision: bool, kv: int) -> None:
    cfg = TransformerConfig(200, 128, 3, 4, kv, 32, 320, rope_float32=full_precision, qkv_bias=not full_precision)
    model = Transformer(cfg).eval()
    model.init_weights(0, 0.05)
    n = 40
    ids = torch.randint(0, 200, (n,), generator=torch.Generator().manual_seed(0))
    right = model.logits(model(ids[None]))[0]
    found = TransformerDenoiser(model.to(BF16), Traits(199))
    plan = Plan(((0, n),), torch.arange(n), (), ((n, ((0, n),)),))
    hidden = found(Batch(ids, torch.arange(n), torch.arange(n), (Lane(0, plan),)), found.new_store(1, n + 9)).hidden
    ours = score.logits_of(hidden, found.head).float()
    assert float((ours - right).norm() / right.norm()) < 0.02


def test_each_op_says_which_kernel_runs() -> None:
    for op in (attention, norm, rope, score, swiglu):
        said = op.describe()
        assert said.startswith(("plain torch: ", "compiled")) and "\n" not in said
