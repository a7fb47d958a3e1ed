"""Compiled kernels for the CPU: built once by the system's compiler, optional, never trusted unchecked.

The sources are `<op>/cpu.c` (bfloat16, for CPUs with units for it) and `<op>/cpu.cpp` (any dtype, any CPU): two
libraries. At first use each is compiled into the user's cache folder and loaded; every kernel must then agree with its
plain-torch definition on a small case before it is used. Where anything is missing, the plain path runs and `describe`
says why in one line. Switch off with UNMASK_KERNELS=torch.
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
class Build:
    """One library: its sources below this folder, compilers that may build it (the first that is found), and how."""

    sources: str
    compilers: tuple[str, ...]
    language: str
    flags: tuple[str, ...]
    bf16_units: bool


BF16 = Build("*/cpu.c", ("gcc", "cc"), "C", FLAGS, bf16_units=True)
ANY = Build(
    "*/cpu.cpp",
    ("g++", "clang++", "c++"),
    "C++",
    (
        *("-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-exceptions", "-fno-math-errno", "-fno-trapping-math"),
        *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
    ),
    bf16_units=False,
)


@dataclass(frozen=True)
class Kernel:
    """A compiled function, or None and the reason."""

    call: Callable[..., Any] | None
    why: str


def load(symbol: str, arguments: Sequence[Any], agrees: Callable[[Callable[..., Any]], bool]) -> Kernel:
    """The bfloat16 function of that name, once `agrees` has compared it with the definition."""
    found, why = library(BF16)
    if found is None:
        return Kernel(None, f"plain torch: {why}")
    call = getattr(found, symbol)
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
def library(build: Build) -> tuple[ctypes.CDLL | None, str]:
    """The loaded library, or None, and one line about it: what it is made for, or cause and remedy."""
    why = _unsuitable(build)
    if why:
        return None, why
    compiler = next((found for name in build.compilers if (found := shutil.which(name))), None)
    if compiler is None:
        return None, f"no {build.language} compiler ({build.compilers[0]}) was found; install one"
    try:
        made = ctypes.CDLL(str(_built(build, compiler)), mode=os.RTLD_NOW)
        return made, f"compiled for this CPU{' (avx512_bf16)' if build.bf16_units else ''}"
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        return None, f"{Path(compiler).name} failed: {said[0] if said else error.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error).splitlines()[0]


def _unsuitable(build: Build = BF16) -> str:
    """Why no kernel is built here; "" when one is."""
    if os.environ.get("UNMASK_KERNELS", "").lower() in ("torch", "off", "0"):
        return "UNMASK_KERNELS says so"
    if sys.platform != "linux":
        return "kernels are built on Linux only"
    if build.bf16_units and platform.machine() not in ("x86_64", "AMD64"):
        return "kernels are written for Linux on x86-64"
    if build.bf16_units and not torch.cpu._is_avx512_bf16_supported():
        return "this CPU has no avx512_bf16"
    return ""


def _sources(build: Build) -> list[Path]:
    return sorted(Path(__file__).parent.glob(build.sources))


def _built(build: Build, compiler: str) -> Path:
    """The library in the user's cache folder, compiled unless it is there.

    Raises:
        CalledProcessError, TimeoutExpired: the compiler failed. OSError: no compiler, or no folder to write to.
    """
    return kept(_fingerprint(build, compiler), lambda work: _compile(build, compiler, work))


def kept(fingerprint: str, make: Callable[[Path], Path]) -> Path:
    """The library of that fingerprint in the user's cache folder; `make` builds it in an empty folder if it is missing.

    Raises:
        OSError: no folder to write to. Whatever `make` raises.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "unmask" / "kernels" / f"{fingerprint}.so"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        os.replace(make(Path(work)), path)
    return path


def _compile(build: Build, compiler: str, work: Path) -> Path:
    """Compiles and links. The link names no OpenMP library: the symbols bind to the one torch has loaded already, so
    that kernels and torch share their threads. That is gcc's; what clang builds runs on one thread.
    """
    flags = [f for f in build.flags if f != "-fopenmp" or not _is_clang(compiler)]
    objects = []
    for source in _sources(build):
        objects.append(str(work / f"{source.parent.name}.o"))
        run(compiler, *flags, "-c", str(source), "-o", objects[-1])
    run(compiler, "-shared", "-o", str(work / "kernels.so"), *objects, "-lm")
    return work / "kernels.so"


def _is_clang(compiler: str) -> bool:
    return "clang" in run(compiler, "--version").lower()


def run(*command: str) -> str:
    """What a compiler prints.

    Raises:
        CalledProcessError, TimeoutExpired: it failed. OSError: it is not there.
    """
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    return done.stdout


def _fingerprint(build: Build, compiler: str) -> str:
    """Changes with the sources, the flags, the compiler and the CPU: a shared home serves different machines."""
    stat = os.stat(compiler)
    found = hashlib.sha256(repr((build, compiler, stat.st_size, stat.st_mtime_ns)).encode())
    for source in (*_sources(build), Path(__file__).parent / "native.h"):
        found.update(source.read_bytes())
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    found.update("\n".join(line for line in cpu.splitlines() if line.startswith(("model name", "flags"))).encode())
    return found.hexdigest()[:24]
