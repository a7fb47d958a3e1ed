"""The CUDA Bi-WKV (`cuda.cu`): built on demand by nvcc for the GPU at hand, launched on the current stream."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from functools import cache
from pathlib import Path
from subprocess import CalledProcessError, TimeoutExpired

import torch
from torch import Tensor

from unmask.core.errors import RunError
from unmask.ops import native
from unmask.ops.biwkv.common import Gradients, Inputs, Saved

SOURCE = Path(__file__).with_name("cuda.cu")
FLAGS = ("-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC")
CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
OLDEST = (8, 0)
"""The compute capability it is written for, at least."""
STATUS = "CUDA, log-space; compiles, never run on a GPU"


def missing(device: torch.device) -> str:
    """Why it cannot run on a device; "" if it can. Builds it."""
    if device.type != "cuda":
        return "it needs a CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"it needs compute capability {OLDEST} or newer, this GPU has {capability}"
    found, why = library(f"sm_{capability[0]}{capability[1]}")
    return "" if found is not None else why


def compiler() -> str | None:
    """nvcc of CUDA_HOME, or the one on the path."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")


@cache
def library(architecture: str) -> tuple[ctypes.CDLL | None, str]:
    """The loaded library for an architecture ("sm_90"), or None with cause and remedy."""
    nvcc = compiler()
    if nvcc is None:
        return None, "no nvcc was found; install the CUDA toolkit, or set CUDA_HOME"
    try:
        stat = os.stat(nvcc)
        said = repr((nvcc, stat.st_size, stat.st_mtime_ns, architecture, FLAGS)).encode() + SOURCE.read_bytes()
        path = native.kept(hashlib.sha256(said).hexdigest()[:24], lambda work: _build(nvcc, architecture, work))
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW), "built"
    except CalledProcessError as error:
        lines = [x for x in (error.stderr or "").splitlines() if "error" in x]
        return None, f"nvcc failed: {lines[0] if lines else error.returncode}"
    except (OSError, TimeoutExpired) as error:
        return None, str(error).splitlines()[0]


def _build(nvcc: str, architecture: str, work: Path) -> Path:
    made = work / "biwkv.so"
    native.run(nvcc, *FLAGS, f"-arch={architecture}", str(SOURCE), "-o", str(made))
    return made


def forward(x: Inputs, save: bool) -> tuple[Tensor, Saved | None]:
    """Output in r's dtype, and what the backward needs."""
    r, k, v, lam, u = (t.contiguous() for t in x[:5])
    out = torch.empty_like(r)
    y, z = (torch.empty(r.shape, dtype=lam.dtype, device=r.device) for _ in range(2)) if save else (None, None)
    mask, edges = (None if t is None else t.contiguous() for t in (x.mask, x.edges))
    _launch("unmask_biwkv_cuda_forward", r, (r, k, v, lam, u, mask, edges, _states(r, lam), out, y, z))
    return out, None if y is None or z is None else (y, z)


def backward(go: Tensor, x: Inputs, y: Tensor, z: Tensor) -> Gradients:
    """In closed form; partial sums per segment, added in one order: no atomics, the same bits every time."""
    go, r, k, v, lam, u, y, z = (t.contiguous() for t in (go, *x[:5], y, z))
    mask = None if x.mask is None else x.mask.contiguous()
    into, back = _states(r, lam), _states(r, lam)
    gr, gk, gv = (torch.empty_like(t) for t in (r, k, v))
    glam, gu = (torch.empty_like(into[0, 0]) for _ in range(2))
    _launch("unmask_biwkv_cuda_backward", r, (go, r, k, v, lam, u, mask, y, z, into, back, gr, gk, gv, glam, gu))
    return gr, gk, gv, glam.sum(1), gu.sum(1)


def _states(r: Tensor, lam: Tensor) -> Tensor:
    """Room for both sides' states at every segment."""
    batch, length, dim = r.shape
    segments = -(-length // _library(r).unmask_biwkv_cuda_segment())
    return torch.empty(2, 3, batch, segments, dim, dtype=lam.dtype, device=r.device)


def _library(r: Tensor) -> ctypes.CDLL:
    major, minor = torch.cuda.get_device_capability(r.device)
    found, why = library(f"sm_{major}{minor}")
    assert found is not None, why
    return found


def _stream(r: Tensor) -> tuple[int, int]:
    """The tensor's device, and torch's current stream there."""
    stream = torch.cuda.current_stream(r.device)
    return stream.device.index, stream.cuda_stream


def _launch(symbol: str, r: Tensor, tensors: tuple[Tensor | None, ...]) -> None:
    """Raises:
    RunError: a launch that CUDA refused.
    """
    if any(t is not None and (t.device != r.device or not t.is_contiguous()) for t in tensors):
        raise RunError("Bi-WKV on CUDA: a tensor is on another device or not contiguous")
    found = _library(r)
    call = getattr(found, symbol)
    call.argtypes = [native.INT, native.PTR, native.INT, *[native.PTR] * len(tensors), *[native.INT] * 3]
    call.restype = ctypes.c_int
    addresses = (None if t is None else t.data_ptr() for t in tensors)
    code = call(*_stream(r), CODES[r.dtype], *addresses, *r.shape)
    if code:
        found.unmask_biwkv_cuda_error.restype = ctypes.c_char_p
        raise RunError(f"Bi-WKV on CUDA: {found.unmask_biwkv_cuda_error(code).decode()}")
