"""Bi-WKV on the CPU: every implementation against a python loop over the positions, and how cost grows with the length.

    python benchmarks/biwkv.py                     # the tables of docs/benchmarks/birwkv.md
    python benchmarks/biwkv.py --json              # the same as one JSON value
    python benchmarks/biwkv.py --shape 2 256 128   # another batch, length and width

`layer` is a whole layer of the model, with the default implementation inside.

Processor time of one thread, all paths in one process and interleaved (A B A B), medians. The loop is the baseline:
log-space, one step per position, with the same closed-form backward. Memory is what the peak of a fresh process grows
by during one forward and backward (Linux), inputs and outputs included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.models.birwkv_net import TIME, Block
from unmask.models.config import BiRWKVConfig
from unmask.ops.biwkv import biwkv, dispatch

PATHS = ("cpu", "chunk", "matmul")
CPU = torch.device("cpu")
LAYER = "layer"
State = tuple[Tensor, Tensor, Tensor]


def walk(k: Tensor, x: Tensor, y: Tensor, lam: Tensor, backwards: bool) -> State:
    """States (p, a, b) before each position: weights e^k summed over x and y, one position after the other."""
    p, a, b = torch.full_like(lam, -1e30), torch.zeros_like(lam), torch.zeros_like(lam)
    kept = torch.empty_like(k), torch.empty_like(k), torch.empty_like(k)
    steps = range(k.shape[1])
    for t in reversed(steps) if backwards else steps:
        kept[0][:, t], kept[1][:, t], kept[2][:, t] = p, a, b
        top = torch.maximum(p, k[:, t])
        old, new = torch.exp(p - top), torch.exp(k[:, t] - top)
        p, a, b = top - lam, a * old + x[:, t] * new, b * old + y[:, t] * new
    return kept


class Loop(torch.autograd.Function):
    """The baseline."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, k: Tensor, v: Tensor, lam: Tensor, u: Tensor) -> Tensor:
        one = torch.ones_like(v)
        (pl, al, bl), (pr, ar, br) = (walk(k, v, one, lam, side) for side in (False, True))
        own = k + u[:, None]
        top = torch.maximum(torch.maximum(pl, pr), own)
        el, er, es = torch.exp(pl - top), torch.exp(pr - top), torch.exp(own - top)
        den = bl * el + br * er + es
        y, z = (al * el + ar * er + v * es) / den, top + den.log()
        gate = torch.sigmoid(r)
        ctx.save_for_backward(gate, k, v, lam, u, y, z)
        return gate * y

    @staticmethod
    def backward(ctx: Any, go: Tensor) -> tuple[Tensor, ...]:
        gate, k, v, lam, u, y, z = ctx.saved_tensors
        g = go * gate
        h = g * y
        near = [walk(k, v, torch.ones_like(v), lam, side) for side in (False, True)]
        back = [walk(-z, g, h, lam, side) for side in (False, True)]
        es = torch.exp(k + u[:, None] - z)
        gv, ph = es * g, es * h
        gu, glam = (gv * v - ph).sum(1), torch.zeros_like(lam)
        for p, x, w in back:
            weight = torch.exp(k + p)
            gv, ph = gv + weight * x, ph + weight * w
        for (p, a, b), (q, x, w) in zip(near, reversed(back)):
            glam -= (torch.exp(p - z) * (a * g - b * h) + torch.exp(p + q) * (a * x - b * w)).sum(1)
        return go * y * gate * (1 - gate), v * gv - ph, gv, glam, gu


def operands(name: str, batch: int, length: int, dim: int) -> list[Tensor]:
    gen = torch.Generator().manual_seed(0)
    if name == LAYER:
        return [torch.randn(batch, length, dim, generator=gen), torch.randn(batch, TIME, generator=gen)]
    r, k, v = (torch.randn(batch, length, dim, generator=gen) for _ in range(3))
    return [r, k, v, torch.rand(batch, dim, generator=gen) * 0.5 + 0.02, torch.randn(batch, dim, generator=gen)]


def path(name: str) -> Callable[..., Tensor]:
    if name == LAYER:
        return lambda x, tau: layer(x.shape[-1])(x, tau, None)
    return Loop.apply if name == "loop" else lambda *x: biwkv(*x, impl=name)


@cache
def layer(dim: int) -> Block:
    """A whole layer of the model, with its shifts, norms and matrices."""
    torch.manual_seed(0)
    return Block(BiRWKVConfig(8, dim, 1, int(2.5 * dim), 16), 0)


def both(name: str, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Forward and backward."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = path(name)(*leaves)
    if name == LAYER:
        leaves = [*leaves, *layer(inputs[0].shape[-1]).parameters()]
    return out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))


@torch.no_grad()
def forward(name: str, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Forward alone."""
    return (path(name)(*inputs),)


def measured(names: list[str], shapes: dict[str, tuple[int, int, int]], rounds: int) -> dict[str, dict[str, Any]]:
    """Processor milliseconds per path and shape, forward and forward with backward, interleaved."""
    inputs = {(n, label): operands(n, *shape) for label, shape in shapes.items() for n in names}
    runs = [(n, label, kind) for label in shapes for n in names for kind in (forward, both)]
    taken: dict[tuple[str, str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for name, label, run in runs:
            begun = time.process_time()
            run(name, inputs[name, label])
            if turn:  # the first warms up
                taken.setdefault((name, label, run.__name__), []).append((time.process_time() - begun) * 1e3)
    found: dict[str, dict[str, Any]] = {}
    for (name, label, kind), ms in taken.items():
        row = found.setdefault(f"{name} {label}", {"path": name, "shape": shapes[label]})
        row[kind] = {"median_ms": statistics.median(ms), "min_ms": min(ms), "max_ms": max(ms)}
    return found


def agreement(names: list[str], inputs: list[Tensor]) -> dict[str, float]:
    """The largest relative norm of a difference to the loop, over the output and the five gradients."""
    right = both("loop", inputs)
    found = {n: both(n, inputs) for n in names if n != "loop"}
    return {n: max(float((a - b).norm() / b.norm()) for a, b in zip(out, right)) for n, out in found.items()}


def memory(name: str, length: int, dim: int) -> None:
    """Prints the growth of this process's peak in MiB."""
    both(name, operands(name, 1, 64, 64))
    before = peak()
    both(name, operands(name, 4, length, dim))
    print(peak() - before)


def peak() -> float:
    """MiB; a child starts from nothing here, unlike with getrusage."""
    line = next(x for x in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def grown(name: str, length: int, dim: int) -> float:
    command = [sys.executable, __file__, "--memory", name, str(length), str(dim)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def speed(names: list[str], shape: tuple[int, int, int], rounds: int) -> list[dict[str, Any]]:
    rows = list(measured(names, {"": shape}, rounds).values())
    base, off = rows[0], agreement(names, operands("loop", *shape))
    for row in rows:
        row["speedup_forward"] = base["forward"]["median_ms"] / row["forward"]["median_ms"]
        row["speedup_both"] = base["both"]["median_ms"] / row["both"]["median_ms"]
        row["off"] = off.get(row["path"], 0.0)
    return rows


def growth(names: list[str], dim: int, rounds: int) -> list[dict[str, Any]]:
    short, long = 1024, 4096
    found = measured(names, {"short": (4, short, dim), "long": (4, long, dim)}, rounds)
    rows = []
    for name in names:
        a, b = found[f"{name} short"], found[f"{name} long"]
        mib = grown(name, short, dim), grown(name, long, dim)
        row: dict[str, Any] = {"path": name, "short": a, "long": b, "peak_mib": mib, "ratio_memory": mib[1] / mib[0]}
        for kind in ("forward", "both"):
            row[f"ratio_{kind}"] = b[kind]["median_ms"] / a[kind]["median_ms"]
        row["backward_over_forward"] = a["both"]["median_ms"] / a["forward"]["median_ms"] - 1
        rows.append(row)
    return rows


def cell(found: dict[str, float]) -> str:
    return f"{found['median_ms']:.1f} ({found['min_ms']:.1f} to {found['max_ms']:.1f})"


def table(shape: tuple[int, int, int], fast: list[dict[str, Any]], linear: list[dict[str, Any]], rounds: int) -> None:
    print(f"B, T, C = {', '.join(map(str, shape))}; CPU ms of one thread, median of {rounds} (range)\n")
    print("| path | forward | x loop | forward + backward | x loop | off by |\n|---|---|---|---|---|---|")
    for row in fast:
        times = (
            f"{cell(row['forward'])} | {row['speedup_forward']:.1f} | {cell(row['both'])} | {row['speedup_both']:.1f}"
        )
        print(f"| {row['path']} | {times} | {row['off']:.0e} |")
    print("\nB = 4, C = 256, T = 4096 against T = 1024; peak MiB of a fresh process, forward + backward\n")
    print("| path | forward | fwd + bwd | backward / forward | peak MiB | peak ratio |\n|---|---|---|---|---|---|")
    for row in linear:
        ratios = f"{row['ratio_forward']:.2f} | {row['ratio_both']:.2f} | {row['backward_over_forward']:.2f}"
        mib = f"{row['peak_mib'][0]:.0f}, {row['peak_mib'][1]:.0f} | {row['ratio_memory']:.2f}"
        print(f"| {row['path']} | {ratios} | {mib} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(4, 1024, 2048), metavar=("B", "T", "C"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        memory(args.memory[0], *map(int, args.memory[1:]))
        return
    left_out = {n: why for n in PATHS if (why := dispatch.why_not(n, CPU))}
    names = [n for n in PATHS if n not in left_out]
    shape = (args.shape[0], args.shape[1], args.shape[2])
    fast, linear = speed(["loop", *names], shape, args.rounds), growth([LAYER, *names], 256, args.rounds)
    if args.json:
        print(json.dumps({"torch": torch.__version__, "speed": fast, "growth": linear, "left_out": left_out}, indent=1))
        return
    table(shape, fast, linear, args.rounds)
    for name, why in left_out.items():
        print(f"\n{name} was left out: {why}")


if __name__ == "__main__":
    main()
