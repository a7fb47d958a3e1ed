"""The CUDA kernels: compiled for the GPUs they are written for, run on the CPU thread by thread, and on a GPU if there
is one (with the Triton kernels).
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unmask.ops.biwkv import State, biwkv, chunk, cuda, dispatch, states
from unmask.ops.biwkv.common import Inputs

GPU = ("triton", "cuda")
DTYPES = [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)]


def case(batch: int, length: int, dim: int, scale: float = 1.0, lam: float = 1.5) -> list[Tensor]:
    gen = torch.Generator().manual_seed(length)
    r, k, v = (torch.randn(batch, length, dim, generator=gen, dtype=torch.float64) for _ in range(3))
    decay = torch.rand(batch, dim, generator=gen, dtype=torch.float64) * lam + 0.02
    return [r, k * scale, v, decay, torch.randn(batch, dim, generator=gen, dtype=torch.float64)]


def holes(batch: int, length: int) -> Tensor:
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(5)) > 0.4
    mask[0] = False
    return mask


def typed(operands: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    state = torch.float64 if dtype == torch.float64 else torch.float32
    return [x.to(dtype) for x in operands[:3]] + [x.to(state) for x in operands[3:]]


def relative(found: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    pairs = [(a.double().cpu(), b.double().cpu()) for a, b in zip(found, right)]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-9)) for a, b in pairs)


def results(run: object, operands: list[Tensor], mask: Tensor | None) -> tuple[Tensor, ...]:
    """Output and gradients, straight from an implementation."""
    assert run is cuda or run is chunk
    x = Inputs(*operands, mask)
    out, saved = run.forward(x, True)
    assert saved is not None
    go = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(out.dtype)
    return out, *run.backward(go, x, *saved)


@pytest.mark.slow
@pytest.mark.skipif(cuda.compiler() is None, reason="nvcc (the CUDA compiler) is not installed")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_it_compiles_without_spills_that_matter(architecture: str, tmp_path: Path) -> None:
    nvcc = cuda.compiler()
    assert nvcc is not None
    command = [
        nvcc,
        *cuda.FLAGS,
        f"-arch={architecture}",
        "-Xptxas",
        "-v",
        str(cuda.SOURCE),
        "-o",
        str(tmp_path / "k.so"),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", done.stderr)]
    assert len(registers) == 18, "four dtypes of four kernels, two of the carry"
    assert max(registers) <= 168
    assert max(spilled) <= 16


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`cuda.py` with the source compiled for the CPU behind it."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    work = tmp_path_factory.mktemp("cuda_on_cpu")
    source = re.sub(r"#include <cuda.*\n", "", cuda.SOURCE.read_text())
    source = re.sub(r"(\w+<[\w, ]+>)<<<([\w.]+), (\w+), 0, on>>>\(", r"launch(\2, \3, \1, ", source)
    shim = Path(__file__).with_name("cuda_on_cpu.h").read_text()
    (work / "k.cpp").write_text(shim + source)
    flags = ("-O1", "-std=c++17", "-fPIC", "-shared", "-w")
    subprocess.run([compiler, *flags, str(work / "k.cpp"), "-o", str(work / "k.so")], check=True)
    library = ctypes.CDLL(str(work / "k.so"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_library", lambda _: library)
        patch.setattr(cuda, "_stream", lambda _: (0, 0))
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu")
class TestThreadByThreadOnTheCpu:
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize(
        ("shape", "scale", "lam"),
        [
            ((2, 67, 5), 1, 1.5),
            ((2, 150, 130), 20, 0.01),
            ((2, 64, 3), 200, 3.0),
            ((2, 65, 4), 1, 60),
            ((2, 1, 3), 1, 1),
        ],
    )
    def test_values_and_gradients(self, shape: tuple[int, int, int], scale: float, lam: float, masked: bool) -> None:
        operands, mask = case(*shape, scale, lam), holes(*shape[:2]) if masked else None
        found, right = results(cuda, operands, mask), results(chunk, operands, mask)
        assert max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(found, right)) < 1e-10

    @pytest.mark.parametrize(("dtype", "close"), DTYPES[1:])
    def test_dtypes(self, dtype: torch.dtype, close: float) -> None:
        operands = typed(case(2, 70, 20, 2.0, 0.1), dtype)
        found = results(cuda, operands, None)
        assert {x.dtype for x in found[:4]} == {dtype}
        assert relative(found, results(chunk, [x.double() for x in operands], None)) < close

    def test_incoming_states(self) -> None:
        r, k, v, lam, u = case(2, 100, 5, 30.0, 0.1)
        left, right = states(k, v, lam, at=(13, 90))
        edges = torch.stack([torch.stack([x[:, i] for x in s]) for i, s in enumerate((left, right))])
        cut = Inputs(r[:, 13:90], k[:, 13:90], v[:, 13:90], lam, u, None, edges)
        whole = biwkv(r, k, v, lam, u, impl="chunk")[:, 13:90]
        assert torch.allclose(cuda.forward(cut, False)[0], whole, atol=1e-12)


def test_without_a_gpu_it_is_left_out_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda.missing(torch.device("cpu")) == "it needs a CUDA device"
    monkeypatch.setattr(cuda, "compiler", lambda: None)
    cuda.library.cache_clear()
    assert "install the CUDA toolkit" in cuda.library("sm_90")[1]
    cuda.library.cache_clear()


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho 'cuda.cu(1): error: no such thing' >&2\nexit 2\n")
    broken.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cuda, "compiler", lambda: str(broken))
    cuda.library.cache_clear()
    assert cuda.library("sm_90") == (None, "nvcc failed: cuda.cu(1): error: no such thing")
    cuda.library.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("impl", GPU)
class TestOnAGpu:
    def test_it_runs_there(self, impl: str) -> None:
        assert dispatch.why_not(impl, torch.device("cuda", 0)) == ""

    @pytest.mark.parametrize(("dtype", "close"), DTYPES)
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("shape", [(2, 1, 3), (2, 33, 65), (3, 1000, 70), (1, 32768, 64)])
    def test_values_and_gradients(
        self, impl: str, shape: tuple[int, int, int], masked: bool, dtype: torch.dtype, close: float
    ) -> None:
        operands = typed(case(*shape, 2.0, 0.1), dtype)
        mask = holes(*shape[:2]) if masked else None
        right = results(chunk, [x.double() for x in operands], mask)
        assert relative(gradients(impl, operands, mask), right) < close

    def test_the_same_bits_every_time(self, impl: str) -> None:
        operands = typed(case(2, 3000, 200), torch.bfloat16)
        first = gradients(impl, operands, None)
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(first, gradients(impl, operands, None)))

    def test_the_current_stream(self, impl: str) -> None:
        operands = [x.float().cuda() for x in case(2, 500, 64)]
        right = biwkv(*operands, impl="chunk")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            late = [x * 1 for x in operands]
            found = biwkv(*late, impl=impl)
        stream.synchronize()
        assert torch.allclose(found, right, atol=1e-5)

    def test_a_graph(self, impl: str) -> None:
        operands = [x.float().cuda() for x in case(2, 500, 64)]
        right = biwkv(*operands, impl=impl)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = biwkv(*operands, impl=impl)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, right)

    def test_incoming_states(self, impl: str) -> None:
        r, k, v, lam, u = (x.cuda() for x in case(2, 200, 70, 3.0, 0.1))
        left, right = states(k, v, lam, at=(13, 150))
        found = biwkv(
            *(x[:, 13:150] for x in (r, k, v)), lam, u, impl=impl,
            left=State(*(x[:, 0] for x in left)), right=State(*(x[:, 1] for x in right)),
        )  # fmt: skip
        assert torch.allclose(found, biwkv(r, k, v, lam, u, impl="chunk")[:, 13:150], atol=1e-10)


def gradients(impl: str, operands: list[Tensor], mask: Tensor | None) -> tuple[Tensor, ...]:
    """Output and gradients on the GPU, for the direction that `results` takes."""
    leaves = [x.detach().cuda().requires_grad_() for x in operands]
    out = biwkv(*leaves, None if mask is None else mask.cuda(), impl=impl)
    go = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(out.dtype)
    return (out.detach(), *torch.autograd.grad(out, leaves, go.cuda()))
