"""Which implementation of Bi-WKV runs: the fastest that is there and has passed its check on this device.

Enters: a wish ("auto", a name, or UNMASK_BIWKV in the environment, which speaks for every "auto") and a device. Leaves:
an implementation, or an error where a named one cannot run. What cannot be built or disagrees with the definition is
left out, with one line that names cause and remedy (`describe`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from subprocess import SubprocessError

import torch
from torch import Tensor

from unmask.core.errors import InputError, UnmaskError
from unmask.ops.biwkv import chunk, cpu, cuda, matmul, reference
from unmask.ops.biwkv.common import Gradients, Inputs, Saved

VARIABLE = "UNMASK_BIWKV"


@dataclass(frozen=True)
class Implementation:
    """One way to compute Bi-WKV. `missing` says why it cannot run on a device ("" if it can). `checked`: kinds of
    devices on which it must pass the self-check. `edges`: it takes incoming states.
    """

    forward: Callable[[Inputs, bool], tuple[Tensor, Saved | None]]
    backward: Callable[[Tensor, Inputs, Tensor, Tensor], Gradients]
    missing: Callable[[torch.device], str]
    meaning: str
    checked: tuple[str, ...] = ()
    edges: bool = True


def _anywhere(device: torch.device) -> str:
    return ""


def _no_triton(device: torch.device) -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "triton needs a CUDA device (or TRITON_INTERPRET=1)"
    return ""


def _triton_forward(x: Inputs, save: bool) -> tuple[Tensor, Saved | None]:
    found: tuple[Tensor, Saved | None] = importlib.import_module("unmask.ops.biwkv.triton").forward(x, save)
    return found


def _triton_backward(go: Tensor, x: Inputs, y: Tensor, z: Tensor) -> Gradients:
    module = importlib.import_module("unmask.ops.biwkv.triton")
    found: Gradients = module.backward(go, x, y, z)
    return found


IMPLEMENTATIONS: dict[str, Implementation] = {
    "cpu": Implementation(cpu.forward, cpu.backward, cpu.missing, "compiled C++, log-space", checked=("cpu",)),
    "triton": Implementation(_triton_forward, _triton_backward, _no_triton, "Triton, log-space", checked=("cuda",)),
    "cuda": Implementation(cuda.forward, cuda.backward, cuda.missing, cuda.STATUS, checked=("cuda",)),
    "chunk": Implementation(chunk.forward, chunk.backward, _anywhere, "torch, chunks in log-space"),
    "matmul": Implementation(
        matmul.forward, matmul.backward, _anywhere, "torch, matrix products; keys of bounded range", edges=False
    ),
    "reference": Implementation(reference.forward, reference.backward, _anywhere, "the definition, T x T"),
}
AUTO = {"cpu": ("cpu", "chunk"), "cuda": ("triton", "cuda", "chunk")}
"""What "auto" tries on a kind of device, the fastest first; the last always runs."""


def wish(impl: str) -> str:
    """The name asked for, refused if there is no such implementation.

    Raises:
        InputError: an unknown name, in the call or in the environment.
    """
    asked, where = (impl, "impl") if impl != "auto" else (os.environ.get(VARIABLE, "").lower() or "auto", VARIABLE)
    if asked != "auto" and asked not in IMPLEMENTATIONS:
        raise InputError(where, expected=f"auto or one of: {', '.join(IMPLEMENTATIONS)}", got=repr(asked))
    return asked


def choose(impl: str, device: torch.device, edges: bool = False) -> Implementation:
    """The implementation that runs.

    Raises:
        InputError: a named implementation that cannot run here, or takes no incoming states.
    """
    asked = wish(impl)
    if asked == "auto":
        return IMPLEMENTATIONS[_picked(device, edges)]
    why = why_not(asked, device)
    if not why and edges and not IMPLEMENTATIONS[asked].edges:
        why = "it takes no incoming states"
    if why:
        remedy = f"Use auto or chunk instead ({VARIABLE}, or impl=)."
        raise InputError(f"Bi-WKV implementation {asked!r}", expected="one that runs here", got=why, remedy=remedy)
    return IMPLEMENTATIONS[asked]


def _picked(device: torch.device, edges: bool = False) -> str:
    candidates = AUTO.get(device.type, ("chunk",))
    return next(n for n in candidates if not why_not(n, device) and (IMPLEMENTATIONS[n].edges or not edges))


@cache
def why_not(name: str, device: torch.device) -> str:
    """Why an implementation is left out on this device; "" if it runs."""
    impl = IMPLEMENTATIONS[name]
    why = impl.missing(device)
    if why or device.type not in impl.checked:
        return why
    try:
        return disagreement(impl, device)
    except (UnmaskError, RuntimeError, OSError, SubprocessError) as error:
        return f"its self-check failed here: {str(error).splitlines()[0]}"


def disagreement(impl: Implementation, device: torch.device) -> str:
    """The self-check: values and gradients of a small case, several segments of every kernel long, against the chunked
    form in float64 on the CPU; "" if they agree.
    """
    made = torch.Generator().manual_seed(0)
    r, k, v, go = (torch.randn(2, 300, 70, generator=made, dtype=torch.float64) for _ in range(4))
    lam, u = (torch.rand(2, 70, generator=made, dtype=torch.float64) + 0.01 for _ in range(2))
    mask = torch.ones(2, 300, dtype=torch.bool)
    mask[0, 250:], mask[1, :3] = False, False
    right = Inputs(r, k * 4, v, lam, u, mask)
    expected = _results(IMPLEMENTATIONS["chunk"], right, go)
    r, k, v, lam, u = (t.to(device, torch.float32) for t in right[:5])
    ours = Inputs(r, k, v, lam, u, mask.to(device))
    found = _results(impl, ours, go.to(device, torch.float32))
    for name, a, b in zip(("output", "gr", "gk", "gv", "glam", "gu"), found, expected):
        off = float((a.double().cpu() - b).norm() / b.norm())
        if not off < 1e-4:
            return f"its self-check failed here: {name} is off by {off:.1e}; report it"
    return ""


def _results(impl: Implementation, x: Inputs, go: Tensor) -> tuple[Tensor, ...]:
    out, saved = impl.forward(x, True)
    assert saved is not None
    return out, *impl.backward(go, x, *saved)


def describe() -> str:
    """What "auto" runs on this machine's devices; then a line for each implementation that cannot run here, and why."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda", torch.cuda.current_device()))
    lines = ["; ".join(f"{d.type}: {_picked(d)} ({IMPLEMENTATIONS[_picked(d)].meaning})" for d in devices)]
    for name, impl in IMPLEMENTATIONS.items():
        reasons = {d.type: why_not(name, d) for d in devices}
        if all(reasons.values()):
            lines.append(f"{name} ({impl.meaning}): not used, {reasons[devices[-1].type]}")
    return "\n".join(lines)
