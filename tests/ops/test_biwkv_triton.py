"""The Triton kernels without a GPU: run in a process where Triton interprets them, and compiled for one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]


def test_the_kernels_under_the_interpreter() -> None:
    cases = Path(__file__).with_name("biwkv_triton_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


NARROW = {"r_ptr", "k_ptr", "v_ptr", "go_ptr", "out_ptr", "gr_ptr", "gk_ptr", "gv_ptr"}
SIZES = {"SEG": 64, "BC": 32}


@pytest.mark.filterwarnings("ignore::UserWarning:triton")
@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        ("_ends", {"MASKED": True}),
        ("_flow_ends", {}),
        ("_carry", {"EDGES": True}),
        ("_forward", {"MASKED": True, "SAVE": True}),
        ("_backward", {"MASKED": True}),
    ],
)
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_a_gpu(
    kernel: str, constants: dict[str, Any], capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """bfloat16 in and out; triton brings its own assembler."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from unmask.ops.biwkv import triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = getattr(kernels, kernel)
    constants = {**constants, **SIZES}
    types = {n: "constexpr" if n in constants else _type(n) for n in found.arg_names}
    source = ASTSource(found, types, {(found.arg_names.index(n),): value for n, value in constants.items()})
    made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1})
    assert made.asm["cubin"]


def _type(name: str) -> str:
    if name in NARROW:
        return "*bf16"
    return "*u8" if name == "mask_ptr" else "*fp32" if name.endswith("_ptr") else "i32"
