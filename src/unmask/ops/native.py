"""Compiled kernels for bfloat16 on the CPU: built once by the system's C compiler, optional, never trusted unchecked.

The sources are `<op>/cpu.c`. At first use they are compiled into the user's cache folder and loaded; every kernel must
then agree with its plain-torch definition on a small case before it is used. Where anything is missing, the plain path
runs and `describe` says why in one line. Switch off with UNMASK_KERNELS=torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FLAGS = (
    *("-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fPIC"),
    # no contraction: a product is rounded before it is added, as torch does; the other two only allow vectorising
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
PTR, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@dataclass(frozen=True)
class Kernel:
    """A compiled function, or None and the reason."""

    call: Callable[..., Any] | None
    why: str


def load(symbol: str, arguments: Sequence[Any], agrees: Callable[[Callable[..., Any]], bool]) -> Kernel:
    """The function of that name, once `agrees` has compared it with the definition."""
    library, why = _library()
    if library is None:
        return Kernel(None, why)
    call = getattr(library, symbol)
    call.argtypes, call.restype = list(arguments), ctypes.c_int
    if not agrees(call):
        return Kernel(None, "plain torch: the compiled kernel gave other numbers on this machine")
    return Kernel(call, why)


def fits(*tensors: Tensor) -> bool:
    """Whether these may go to a compiled kernel: bfloat16 on the CPU, and nothing that autograd or a tracer follows."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    for t in tensors:  # noqa: SIM110 - a plain loop: this runs some hundred times per forward
        if t.dtype is not torch.bfloat16 or not t.is_cpu:
            return False
    return True


@cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The loaded library, or None, and one line about it."""
    why = _unsuitable()
    if why:
        return None, f"plain torch: {why}"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None, "plain torch: no C compiler (gcc) was found"
    try:
        return ctypes.CDLL(str(_built(compiler)), mode=os.RTLD_NOW), "compiled for this CPU (avx512_bf16)"
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        return None, f"plain torch: {Path(compiler).name} failed: {said[0] if said else error.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"plain torch: {str(error).splitlines()[0]}"


def _unsuitable() -> str:
    """Why no kernel is built here; "" when one is."""
    if os.environ.get("UNMASK_KERNELS", "").lower() in ("torch", "off", "0"):
        return "UNMASK_KERNELS says so"
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return "kernels are written for Linux on x86-64"
    if not torch.cpu._is_avx512_bf16_supported():
        return "this CPU has no avx512_bf16"
    return ""


def _sources() -> list[Path]:
    return sorted(Path(__file__).parent.glob("*/cpu.c"))


def _built(compiler: str) -> Path:
    """The library in the user's cache folder, compiled unless it is there.

    Raises:
        CalledProcessError, TimeoutExpired: the compiler failed. OSError: no compiler, or no folder to write to.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "unmask" / "kernels"
    path = folder / f"{_fingerprint(compiler)}.so"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = _compile(compiler, Path(work))
        os.replace(made, path)
    return path


def _compile(compiler: str, work: Path) -> Path:
    """Compiles and links. The link names no OpenMP library: the symbols bind to the one torch has loaded already, so
    that kernels and torch share their threads.
    """
    objects = []
    for source in _sources():
        objects.append(str(work / f"{source.parent.name}.o"))
        _call(compiler, *FLAGS, "-c", str(source), "-o", objects[-1])
    _call(compiler, "-shared", "-o", str(work / "kernels.so"), *objects, "-lm")
    return work / "kernels.so"


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def _fingerprint(compiler: str) -> str:
    """Changes with the sources, the flags, the compiler and the CPU: a shared home serves different machines."""
    found = hashlib.sha256(repr((FLAGS, compiler, os.stat(compiler).st_size, os.stat(compiler).st_mtime_ns)).encode())
    for source in (*_sources(), Path(__file__).parent / "native.h"):
        found.update(source.read_bytes())
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    found.update("\n".join(line for line in cpu.splitlines() if line.startswith(("model name", "flags"))).encode())
    return found.hexdigest()[:24]
