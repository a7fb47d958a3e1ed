"""Every compiled kernel against its definition, the plain path beside it, and what happens where none can be built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unmask.core.types import Head, Sampling
from unmask.ops import attention, native, norm, rope, score, swiglu
from unmask.ops.attention import cpu as attention_cpu
from unmask.ops.attention import reference as attention_reference
from unmask.ops.norm import cpu as norm_cpu
from unmask.ops.norm import reference as norm_reference
from unmask.ops.rope import cpu as rope_cpu
from unmask.ops.rope import reference as rope_reference
from unmask.ops.score import cpu as score_cpu
from unmask.ops.score import reference as score_reference
from unmask.ops.swiglu import cpu as swiglu_cpu
from unmask.ops.swiglu import reference as swiglu_reference

BF16 = torch.bfloat16
compiled = pytest.mark.skipif(norm_cpu.kernel().call is None, reason=norm_cpu.kernel().why)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def ulps(a: torch.Tensor, b: torch.Tensor) -> int:
    """Largest distance in units of bfloat16."""
    order = [torch.where((i := t.view(torch.int16).int()) < 0, -32768 - i, i) for t in (a, b)]
    return int((order[0] - order[1]).abs().max())


@compiled
@pytest.mark.parametrize(("rows", "dim"), [(1, 8), (3, 33), (40, 1024), (300, 512)])
def test_norm(rows: int, dim: int) -> None:
    x, weight = drawn(rows, 2 * dim)[:, :dim], drawn(dim, seed=1)
    with torch.inference_mode():
        assert norm_cpu.takes(x, weight)
        assert ulps(norm.rms_norm(x, weight, 1e-5), norm_reference.rms_norm(x, weight, 1e-5)) <= 1


@compiled
@pytest.mark.parametrize("table", [None, BF16])
@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 1, 2), (5, 3, 64), (200, 20, 64)])
def test_rope_is_bit_equal_in_both_precisions(table: torch.dtype | None, rows: int, heads: int, dim: int) -> None:
    x = drawn(rows, heads + 1, dim)[:, :heads]
    cos, sin = rope.rope_table(torch.arange(rows) * 7, dim, 10_000.0, table)
    expected = rope_reference.apply_rope(x, cos, sin)
    with torch.inference_mode():
        assert rope_cpu.takes(x, cos, sin)
        assert torch.equal(rope.apply_rope(x, cos, sin), expected)


@compiled
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (3, 33), (100, 704)])
def test_swiglu(rows: int, dim: int) -> None:
    x = drawn(rows, 2 * dim) * 20
    with torch.inference_mode():
        assert swiglu_cpu.takes(x)
        found, expected = swiglu.swiglu(x), swiglu_reference.swiglu(x)
    assert torch.allclose(found.float(), expected.float(), rtol=2**-7, atol=1e-30)


@compiled
@pytest.mark.parametrize(("n", "heads", "kv", "dim"), [(32, 4, 4, 64), (11, 4, 2, 32), (8, 2, 1, 128), (13, 3, 3, 96)])
@pytest.mark.parametrize("span", [(0, 1), (0, 40), (5, 38), (3, 67)])
def test_attention(n: int, heads: int, kv: int, dim: int, span: tuple[int, int]) -> None:
    q, k, v = drawn(n, 3 * heads, dim)[:, :heads], drawn(kv, 70, dim, seed=1), drawn(kv, 70, dim, seed=2)
    k[:, span[1] :] = v[:, span[1] :] = torch.nan  # rows beyond the span must not be touched
    k[:, : span[0]] = v[:, : span[0]] = torch.nan
    runs = ((n, (span,)),)
    expected = attention_reference.rows(q.double(), k.double(), v.double(), runs)
    with torch.inference_mode():
        assert attention_cpu.takes(q, k[:, span[0] : span[1]], v[:, span[0] : span[1]])
        found = attention.rows(q, k, v, runs)
    assert found.shape == q.shape
    assert torch.linalg.vector_norm(found.double() - expected) <= 5e-3 * torch.linalg.vector_norm(expected)


@compiled
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_attention_shares_few_heads_between_many_threads(threads: int) -> None:
    q, k, v = drawn(50, 4, 32), drawn(2, 40, 32, seed=1), drawn(2, 40, 32, seed=2)
    before = torch.get_num_threads()
    with torch.inference_mode():
        alone = attention_cpu.attend(q, k, v)
        torch.set_num_threads(threads)
        try:
            assert torch.equal(attention_cpu.attend(q, k, v), alone)
        finally:
            torch.set_num_threads(before)


@compiled
def test_score() -> None:
    logits = drawn(9, 1000) * 5
    logits[0, 3] = logits[0, 900] = 90.0
    logits[1] = -torch.inf
    logits[2, 5] = torch.nan
    with torch.inference_mode():
        assert score_cpu.takes(logits)
        index, largest, mass = score.best(logits)
    expected = score_reference.best(logits)
    assert index.tolist() == expected[0].tolist()
    assert torch.equal(largest.nan_to_num(-1.0), expected[1].nan_to_num(-1.0))
    assert torch.allclose(mass, expected[2], rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_greedy_over_tiles_equals_one_softmax(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "TILE", 64)
    monkeypatch.setattr(score, "TILE_ROWS", 4)
    hidden, weight = drawn(11, 16).to(dtype), drawn(300, 16, seed=1).to(dtype)
    weight[200] = weight[40]  # a tie between tiles: the lower id wins
    closed = [*range(64, 128), 299]  # a whole tile, and the last id
    sampling = Sampling(suppress=tuple(closed[:-1]))
    with torch.inference_mode():
        found = score.score([hidden], Head(weight), sampling, mask_id=299)
        logits = hidden @ weight.T
        logits[:, closed] = -torch.inf
    assert found.token.tolist() == logits.argmax(-1).tolist()
    assert torch.allclose(found.prob, logits.float().softmax(-1).max(-1).values, rtol=1e-5)


def test_a_nan_in_the_logits_is_not_hidden() -> None:
    hidden, weight = drawn(2, 16).float(), drawn(300, 16, seed=1).float()
    weight[150] = torch.nan
    _, prob = score.greedy(hidden, Head(weight))
    assert bool(prob.isnan().all())


def test_gradients_and_other_dtypes_take_the_plain_path() -> None:
    x, weight = drawn(3, 8), drawn(8, seed=1)
    assert not norm_cpu.takes(x, weight)  # gradients are on
    assert not native.fits(x)
    with torch.inference_mode():
        assert not native.fits(x.float())
    leaf = drawn(3, 8).requires_grad_()
    norm.rms_norm(leaf, weight, 1e-5).sum().backward()
    assert leaf.grad is not None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"UNMASK_KERNELS": "torch"}, "UNMASK_KERNELS says so"),
        ({"PATH": "/nowhere"}, "no C compiler"),
        ({"XDG_CACHE_HOME": "/dev/null"}, "plain torch: "),
    ],
)
def test_without_a_kernel_the_plain_path_runs_and_says_why(setting: dict[str, str], said: str, tmp_path: Path) -> None:
    if native._unsuitable():
        pytest.skip(native._unsuitable())
    code = (
        "import torch; from unmask.ops import norm; x = torch.ones(2, 8).bfloat16()\n"
        "with torch.inference_mode(): print(norm.rms_norm(x, x[0], 1e-5).sum().item(), norm.describe())"
    )
    source = str(Path(norm.__file__).parents[3])
    env = {**os.environ, "PYTHONPATH": source, "XDG_CACHE_HOME": str(tmp_path), **setting}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("16.0 plain torch: ")
    assert said in done.stdout


def test_a_kernel_that_disagrees_is_not_used() -> None:
    if norm_cpu.kernel().call is None:
        pytest.skip(norm_cpu.kernel().why)
    found = native.load("unmask_rms_norm", norm_cpu.ARGUMENTS, lambda _: False)
    assert found.call is None
    assert "other numbers" in found.why
