"""Bi-WKV in Triton, forward and backward. Import only where triton is installed (`dispatch` asks first).

The sequence is cut into segments, one program per (row, segment, block of channels), in three launches: what each
segment leaves behind to both sides; the states that enter each segment, carried over the segments; then each program
walks its segment from the right, keeping states in its own scratch, and from the left, writing results. Sums for lam
and u are kept per segment and added in one order: no atomics, the same bits every time. State in lam's dtype (float32,
or float64).
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc,operator,index,attr-defined"
# (kernels are not python: their arguments are pointers, and triton reads their annotations itself)

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from unmask.core.errors import RunError
from unmask.ops.biwkv.common import EMPTY, NEG, Gradients, Inputs, Saved

NOTHING = tl.constexpr(NEG)
NO_KEY = tl.constexpr(EMPTY)
CHANNELS = 32
SEGMENT = 64
PROGRAMS = 4224
"""Programs at once at most (32 for each of 132 multiprocessors): bounds the scratch."""


@triton.jit
def _join(p, a, b, k, x, y):
    """The state with one more key; one exponential, since the larger weight's factor is 1."""
    d = p - k
    e = tl.exp(-tl.abs(d))
    old = tl.where(d < 0, e, 1.0)
    new = tl.where(d < 0, 1.0, e)
    return tl.maximum(p, k), a * old + x * new, b * old + y * new


@triton.jit
def _merge(p, a, b, q, x, y):
    """Two states."""
    top = tl.maximum(p, q)
    old = tl.exp(p - top)
    new = tl.exp(q - top)
    return top, a * old + x * new, b * old + y * new


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def _key(k_ptr, v_ptr, mask_ptr, row, at, ok, like, MASKED: tl.constexpr):
    """Key and value of one position; a masked one weighs nothing and is worth nothing."""
    k = tl.load(k_ptr + at, mask=ok, other=0.0).to(like.dtype)
    v = tl.load(v_ptr + at, mask=ok, other=0.0).to(like.dtype)
    k = tl.where(k < NOTHING, NOTHING, k)
    if MASKED:
        counts = tl.load(mask_ptr + row).to(tl.int1)
        k = tl.where(counts, k, NOTHING)
        v = tl.where(counts, v, 0.0)
    return k, v


@triton.jit
def _flow(go_ptr, r_ptr, y_ptr, z_ptr, at, ok, like):
    """G, H, the log-weight -Z and sigmoid(r) of one position."""
    gate = _sigmoid(tl.load(r_ptr + at, mask=ok, other=0.0).to(like.dtype))
    g = tl.load(go_ptr + at, mask=ok, other=0.0).to(like.dtype) * gate
    return g, g * tl.load(y_ptr + at, mask=ok, other=0.0), -tl.load(z_ptr + at, mask=ok, other=0.0), gate


@triton.jit
def _load_state(ptr, plane, at, ok):
    p = tl.load(ptr + at, mask=ok, other=NOTHING)
    return p, tl.load(ptr + plane + at, mask=ok, other=0.0), tl.load(ptr + 2 * plane + at, mask=ok, other=0.0)


@triton.jit
def _store_state(ptr, plane, at, ok, p, a, b):
    tl.store(ptr + at, p, mask=ok)
    tl.store(ptr + plane + at, a, mask=ok)
    tl.store(ptr + 2 * plane + at, b, mask=ok)


@triton.jit
def _leave(p, a, b, q, x, y, k, v, w, lam, away):
    """One position more in the states a segment leaves to its right (p, a, b) and to its left (q, x, y)."""
    p, a, b = _join(p, a, b, k, v, w)
    q, x, y = _join(q, x, y, k - lam * away, v, w)
    return p - lam, a, b, q, x, y


@triton.jit
def _ends(
    k_ptr, v_ptr, mask_ptr, lam_ptr, ends_ptr, B, T, C, S, MASKED: tl.constexpr, SEG: tl.constexpr, BC: tl.constexpr
):
    """States [2, 3, B, S, C] that each segment leaves behind."""
    b = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1).to(tl.int64)
    c = tl.program_id(2).to(tl.int64) * BC + tl.arange(0, BC)
    ok = c < C
    lam = tl.load(lam_ptr + b * C + c, mask=ok, other=1.0)
    p = tl.zeros_like(lam) + NOTHING
    q = p
    a = tl.zeros_like(lam)
    e, x, y = a, a, a
    one = a + 1.0
    start = s * SEG
    for t in range(start, tl.minimum(start + SEG, T)):
        row = b * T + t
        k, v = _key(k_ptr, v_ptr, mask_ptr, row, row * C + c, ok, lam, MASKED)
        p, a, e, q, x, y = _leave(p, a, e, q, x, y, k, v, one, lam, (t - start + 1).to(lam.dtype))
    plane = B * S * C
    at = (b * S + s) * C + c
    _store_state(ends_ptr, plane, at, ok, p, a, e)
    _store_state(ends_ptr + 3 * plane, plane, at, ok, q, x, y)


@triton.jit
def _flow_ends(go_ptr, r_ptr, y_ptr, z_ptr, lam_ptr, ends_ptr, B, T, C, S, SEG: tl.constexpr, BC: tl.constexpr):
    """The same for the gradient: log-weights -Z, values G and H."""
    b = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1).to(tl.int64)
    c = tl.program_id(2).to(tl.int64) * BC + tl.arange(0, BC)
    ok = c < C
    lam = tl.load(lam_ptr + b * C + c, mask=ok, other=1.0)
    p = tl.zeros_like(lam) + NOTHING
    q = p
    a = tl.zeros_like(lam)
    e, x, y = a, a, a
    start = s * SEG
    for t in range(start, tl.minimum(start + SEG, T)):
        g, h, w, _ = _flow(go_ptr, r_ptr, y_ptr, z_ptr, (b * T + t) * C + c, ok, lam)
        p, a, e, q, x, y = _leave(p, a, e, q, x, y, w, g, h, lam, (t - start + 1).to(lam.dtype))
    plane = B * S * C
    at = (b * S + s) * C + c
    _store_state(ends_ptr, plane, at, ok, p, a, e)
    _store_state(ends_ptr + 3 * plane, plane, at, ok, q, x, y)


@triton.jit
def _carry(ends_ptr, edges_ptr, lam_ptr, B, T, C, S, EDGES: tl.constexpr, SEG: tl.constexpr, BC: tl.constexpr):
    """In place: what each segment leaves behind becomes what enters each segment, from the left and from the right."""
    b = tl.program_id(0).to(tl.int64)
    side = tl.program_id(1)
    c = tl.program_id(2).to(tl.int64) * BC + tl.arange(0, BC)
    ok = c < C
    lam = tl.load(lam_ptr + b * C + c, mask=ok, other=1.0)
    p = tl.zeros_like(lam) + NOTHING
    a = tl.zeros_like(lam)
    e = a
    if EDGES:
        p, a, e = _load_state(edges_ptr + side * 3 * B * C, B * C, b * C + c, ok)
        p = tl.where(e > 0, p, NOTHING)
    plane = B * S * C
    ptr = ends_ptr + side * 3 * plane
    for i in range(S):
        s = tl.where(side == 0, i, S - 1 - i).to(tl.int64)
        at = (b * S + s) * C + c
        q, x, y = _load_state(ptr, plane, at, ok)
        _store_state(ptr, plane, at, ok, p, a, e)
        count = (tl.minimum(s * SEG + SEG, T) - s * SEG).to(lam.dtype)
        p, a, e = _merge(p - lam * count, a, e, q, x, y)


@triton.jit
def _forward(
    r_ptr, k_ptr, v_ptr, lam_ptr, u_ptr, mask_ptr, into_ptr, out_ptr, y_ptr, z_ptr, scratch_ptr, B, T, C, S, jobs,
    MASKED: tl.constexpr, SAVE: tl.constexpr, SEG: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, BC)
    everywhere = lane < BC
    blocks = tl.cdiv(C, BC)
    plane = B * S * C
    here_ptr = scratch_ptr + tl.program_id(0).to(tl.int64) * (SEG * 3 * BC)
    for job in range(tl.program_id(0), jobs, tl.num_programs(0)):
        c = (job % blocks).to(tl.int64) * BC + lane
        s = (job // blocks % S).to(tl.int64)
        b = (job // blocks // S).to(tl.int64)
        ok = c < C
        lam = tl.load(lam_ptr + b * C + c, mask=ok, other=1.0)
        u = tl.load(u_ptr + b * C + c, mask=ok, other=0.0)
        one = tl.zeros_like(lam) + 1.0
        start = s * SEG
        stop = tl.minimum(start + SEG, T)
        at = (b * S + s) * C + c
        p, a, e = _load_state(into_ptr + 3 * plane, plane, at, ok)
        for i in range(stop - start):
            row = b * T + stop - 1 - i
            _store_state(here_ptr, BC, (stop - 1 - i - start) * 3 * BC + lane, everywhere, p, a, e)
            k, v = _key(k_ptr, v_ptr, mask_ptr, row, row * C + c, ok, lam, MASKED)
            p, a, e = _join(p, a, e, k, v, one)
            p -= lam
        tl.debug_barrier()
        p, a, e = _load_state(into_ptr, plane, at, ok)
        for t in range(start, stop):
            row = b * T + t
            to = row * C + c
            k, v = _key(k_ptr, v_ptr, mask_ptr, row, to, ok, lam, MASKED)
            q, x, y = _load_state(here_ptr, BC, (t - start) * 3 * BC + lane, everywhere)
            own = k + u
            top = tl.maximum(tl.maximum(p, q), own)
            el = tl.exp(p - top)
            er = tl.exp(q - top)
            es = tl.exp(own - top)
            none = top < NO_KEY
            den = tl.where(none, 1.0, e * el + y * er + es)
            mean = tl.where(none, 0.0, (a * el + x * er + v * es) / den)
            gate = _sigmoid(tl.load(r_ptr + to, mask=ok, other=0.0).to(lam.dtype))
            tl.store(out_ptr + to, (gate * mean).to(out_ptr.dtype.element_ty), mask=ok)
            if SAVE:
                tl.store(y_ptr + to, mean, mask=ok)
                tl.store(z_ptr + to, tl.where(none, 0.0, top + tl.log(den)), mask=ok)
            p, a, e = _join(p, a, e, k, v, one)
            p -= lam
        tl.debug_barrier()


@triton.jit
def _backward(
    go_ptr, r_ptr, k_ptr, v_ptr, lam_ptr, u_ptr, mask_ptr, y_ptr, z_ptr, into_ptr, back_ptr, gr_ptr, gk_ptr, gv_ptr,
    glam_ptr, gu_ptr, scratch_ptr, B, T, C, S, jobs, MASKED: tl.constexpr, SEG: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, BC)
    everywhere = lane < BC
    blocks = tl.cdiv(C, BC)
    plane = B * S * C
    here_ptr = scratch_ptr + tl.program_id(0).to(tl.int64) * (SEG * 6 * BC)
    for job in range(tl.program_id(0), jobs, tl.num_programs(0)):
        c = (job % blocks).to(tl.int64) * BC + lane
        s = (job // blocks % S).to(tl.int64)
        b = (job // blocks // S).to(tl.int64)
        ok = c < C
        lam = tl.load(lam_ptr + b * C + c, mask=ok, other=1.0)
        u = tl.load(u_ptr + b * C + c, mask=ok, other=0.0)
        one = tl.zeros_like(lam) + 1.0
        start = s * SEG
        stop = tl.minimum(start + SEG, T)
        at = (b * S + s) * C + c
        pr, ar, br = _load_state(into_ptr + 3 * plane, plane, at, ok)
        qr, xr, wr = _load_state(back_ptr + 3 * plane, plane, at, ok)
        for i in range(stop - start):
            row = b * T + stop - 1 - i
            keep = (stop - 1 - i - start) * 6 * BC + lane
            _store_state(here_ptr, BC, keep, everywhere, pr, ar, br)
            _store_state(here_ptr + 3 * BC, BC, keep, everywhere, qr, xr, wr)
            k, v = _key(k_ptr, v_ptr, mask_ptr, row, row * C + c, ok, lam, MASKED)
            g, h, minus_z, _ = _flow(go_ptr, r_ptr, y_ptr, z_ptr, row * C + c, ok, lam)
            pr, ar, br = _join(pr, ar, br, k, v, one)
            qr, xr, wr = _join(qr, xr, wr, minus_z, g, h)
            pr -= lam
            qr -= lam
        tl.debug_barrier()
        pl, al, bl = _load_state(into_ptr, plane, at, ok)
        ql, xl, wl = _load_state(back_ptr, plane, at, ok)
        glam = tl.zeros_like(lam)
        gu = tl.zeros_like(lam)
        for t in range(start, stop):
            row = b * T + t
            to = row * C + c
            kept = (t - start) * 6 * BC + lane
            pr, ar, br = _load_state(here_ptr, BC, kept, everywhere)
            qr, xr, wr = _load_state(here_ptr + 3 * BC, BC, kept, everywhere)
            k, v = _key(k_ptr, v_ptr, mask_ptr, row, to, ok, lam, MASKED)
            g, h, minus_z, gate = _flow(go_ptr, r_ptr, y_ptr, z_ptr, to, ok, lam)
            es = tl.exp(k + u + minus_z)
            el = tl.exp(k + ql)
            er = tl.exp(k + qr)
            pg = es * g + el * xl + er * xr
            ph = es * h + el * wl + er * wr
            gu += es * (g * v - h)
            glam -= tl.exp(pl + minus_z) * (al * g - bl * h) + tl.exp(pl + qr) * (al * xr - bl * wr)
            glam -= tl.exp(pr + minus_z) * (ar * g - br * h) + tl.exp(pr + ql) * (ar * xl - br * wl)
            tl.store(gr_ptr + to, (h * (1.0 - gate)).to(gr_ptr.dtype.element_ty), mask=ok)
            tl.store(gk_ptr + to, (v * pg - ph).to(gk_ptr.dtype.element_ty), mask=ok)
            tl.store(gv_ptr + to, pg.to(gv_ptr.dtype.element_ty), mask=ok)
            pl, al, bl = _join(pl, al, bl, k, v, one)
            ql, xl, wl = _join(ql, xl, wl, minus_z, g, h)
            pl -= lam
            ql -= lam
        tl.store(glam_ptr + at, glam, mask=ok)
        tl.store(gu_ptr + at, gu, mask=ok)
        tl.debug_barrier()


def forward(x: Inputs, save: bool) -> tuple[Tensor, Saved | None]:
    """Output in r's dtype, and what the backward needs."""
    r, k, v, lam, u = (t.contiguous() for t in x[:5])
    batch, length, dim = r.shape
    out = torch.empty_like(r)
    y, z = (torch.empty(r.shape, dtype=lam.dtype, device=r.device) for _ in range(2)) if save else (lam, lam)
    sizes = (batch, length, dim, _segments(length))
    mask = k if x.mask is None else x.mask.contiguous().view(torch.uint8)
    with _on(r):
        into = _entering(k, v, mask, lam, x)
        jobs, programs, scratch = _scratch(sizes, 3, lam)
        _forward[(programs,)](
            r, k, v, lam, u, mask, into, out, y, z, scratch, *sizes, jobs,
            MASKED=x.mask is not None, SAVE=save, SEG=SEGMENT, BC=CHANNELS, num_warps=1,
        )  # fmt: skip
    return out, (y, z) if save else None


def backward(go: Tensor, x: Inputs, y: Tensor, z: Tensor) -> Gradients:
    """In closed form; sums have one order."""
    go, r, k, v, lam, u, y, z = (t.contiguous() for t in (go, *x[:5], y, z))
    batch, length, dim = r.shape
    segments = _segments(length)
    gr, gk, gv = (torch.empty_like(t) for t in (r, k, v))
    glam, gu = (torch.empty(batch, segments, dim, dtype=lam.dtype, device=r.device) for _ in range(2))
    sizes = (batch, length, dim, segments)
    mask = k if x.mask is None else x.mask.contiguous().view(torch.uint8)
    with _on(r):
        into, back = _entering(k, v, mask, lam, x), _states(sizes, lam)
        blocks = triton.cdiv(dim, CHANNELS)
        _flow_ends[(batch, segments, blocks)](go, r, y, z, lam, back, *sizes, SEG=SEGMENT, BC=CHANNELS, num_warps=1)
        _carry[(batch, 2, blocks)](back, back, lam, *sizes, EDGES=False, SEG=SEGMENT, BC=CHANNELS, num_warps=1)
        jobs, programs, scratch = _scratch(sizes, 6, lam)
        _backward[(programs,)](
            go, r, k, v, lam, u, mask, y, z, into, back, gr, gk, gv, glam, gu, scratch, *sizes, jobs,
            MASKED=x.mask is not None, SEG=SEGMENT, BC=CHANNELS, num_warps=1,
        )  # fmt: skip
    return gr, gk, gv, glam.sum(1), gu.sum(1)


@contextmanager
def _on(x: Tensor) -> Iterator[None]:
    """Launches go to the tensor's device and its current stream; triton's own errors become ours."""
    try:
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            yield
    except triton.TritonError as error:
        raise RunError(f"triton: {str(error).splitlines()[0]}") from error


def _segments(length: int) -> int:
    return -(-length // SEGMENT)


def _states(sizes: tuple[int, int, int, int], lam: Tensor) -> Tensor:
    batch, _, dim, segments = sizes
    return torch.empty(2, 3, batch, segments, dim, dtype=lam.dtype, device=lam.device)


def _entering(k: Tensor, v: Tensor, mask: Tensor, lam: Tensor, x: Inputs) -> Tensor:
    """The states [2, 3, B, S, C] that enter each segment from both sides."""
    batch, length, dim = k.shape
    sizes = (batch, length, dim, _segments(length))
    blocks = triton.cdiv(dim, CHANNELS)
    into = _states(sizes, lam)
    _ends[(batch, sizes[3], blocks)](
        k, v, mask, lam, into, *sizes, MASKED=x.mask is not None, SEG=SEGMENT, BC=CHANNELS, num_warps=1
    )
    edges = into if x.edges is None else x.edges.contiguous()
    _carry[(batch, 2, blocks)](
        into, edges, lam, *sizes, EDGES=x.edges is not None, SEG=SEGMENT, BC=CHANNELS, num_warps=1
    )
    return into


def _scratch(sizes: tuple[int, int, int, int], rows: int, lam: Tensor) -> tuple[int, int, Tensor]:
    """Jobs, programs that share them, and a segment's states for each program."""
    jobs = sizes[0] * sizes[3] * triton.cdiv(sizes[2], CHANNELS)
    programs = min(jobs, PROGRAMS)
    return jobs, programs, torch.empty(programs, SEGMENT, rows, CHANNELS, dtype=lam.dtype, device=lam.device)
