"""Bi-WKV: a decayed, bidirectional weighted mean per channel, in time linear in the length.

`biwkv` is the operator, `states` what the two sides of a cut know of each other (block decoding). Time conditioning
stays outside: lam and u are ordinary [B, C] tensors with gradients. Source: RWKV-4's WKV, made bidirectional as in
Vision-RWKV (arXiv 2403.02308); forward and backward here are written in log-space, so no key is too large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from unmask.core.errors import InputError
from unmask.ops.biwkv import chunk, op
from unmask.ops.biwkv.common import Inputs, State, state_dtype
from unmask.ops.biwkv.dispatch import describe, wish
from unmask.ops.biwkv.origin import origin, vision

__all__ = ["State", "biwkv", "describe", "states"]

Compat = Literal["clean", "origin", "vision"]


def biwkv(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    u: Tensor,
    mask: Tensor | None = None,
    *,
    left: State | None = None,
    right: State | None = None,
    impl: str = "auto",
    compat: Compat = "clean",
    tau: Tensor | None = None,
) -> Tensor:
    """sigmoid(r) times the mean of v under softmax_i(k[i] - lam |t - i|), where i = t has k[t] + u instead.

    Args:
        r, k, v: [B, T, C], receptance, keys (any size; below -1e29 they count as masked) and values.
        lam: [B, C] decay in nats per token, >= 0. u: [B, C] bonus of the own position, in nats.
        mask: bool [B, T], True = a key that counts. Positions outside it are answered like all others (from the keys
            that count); a row of the batch without any key yields 0.
        left, right: states [B, C] that enter from outside, as `states` gives them for the block's first and last cut;
            inference only.
        impl: "auto" (the fastest that runs here; UNMASK_BIWKV names another) or an implementation's name.
        compat: what lam and u mean. "origin": the w and u of BiRWKV-LLaDA's published formula, time terms added, with
            its time embedding tau [B, D]. "vision": the w and u of Vision-RWKV, w >= 0.

    Returns:
        [B, T, C] in the dtype of r, k and v (their promotion if they differ). States are float32 (float64 for float64).

    Raises:
        InputError: wrong shapes, dtypes or devices, or a named implementation that cannot run.
    """
    _check(r, k, v, lam, u, mask)
    gain = None
    if (tau is not None) != (compat == "origin"):
        got = f"compat {compat!r} {'without' if tau is None else 'with'} tau"
        raise InputError("tau", expected='a time embedding [B, D] with compat="origin", and only there', got=got)
    if tau is not None:
        lam, u, gain = origin(lam, u, tau)
    elif compat == "vision":
        lam, u = vision(lam, u, r.shape[1])
    elif compat != "clean":
        raise InputError("compat", expected="clean, origin or vision", got=repr(compat))
    dtype = torch.promote_types(torch.promote_types(r.dtype, k.dtype), v.dtype)
    state = state_dtype(dtype)
    edges = _edges(left, right, lam, state)
    wish(impl)
    needs = torch.is_grad_enabled() and any(t.requires_grad for t in (r, k, v, lam, u))
    if edges is not None and needs:
        raise InputError(
            "left, right", expected="no gradient (inference only)", remedy="Wrap the call in torch.no_grad()."
        )
    if r.numel() == 0:
        return torch.sigmoid(r.to(dtype)) * v
    r, k, v = (t.to(dtype) for t in (r, k, v))
    out: Tensor = op.forward(r, k, v, lam.to(state), u.to(state), mask, edges, impl, needs)[0]
    return out if gain is None else out * gain[:, None].to(dtype)


def states(
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    mask: Tensor | None = None,
    at: Sequence[int] = (),
    *,
    left: State | None = None,
    right: State | None = None,
) -> tuple[State, State]:
    """What crosses the cuts of a sequence: cut c lies between positions c - 1 and c, 0 <= c <= T.

    A block of rows [s, e) gives the same output as the whole sequence when `biwkv` gets the left state of cut s and the
    right state of cut e. The left state is measured at position c, the right one at c - 1. No gradient.

    Args:
        k, v, lam, mask: as for `biwkv`. at: the cuts, in any order.
        left, right: states that enter this sequence from outside: a state goes on from block to block.

    Returns:
        (left, right), each [B, len(at), C].

    Raises:
        InputError: wrong shapes, or a cut outside the sequence.
    """
    _check(k, k, v, lam, lam, mask)
    if not all(0 <= c <= k.shape[1] for c in at):
        raise InputError("at", expected=f"cuts from 0 to {k.shape[1]}", got=str(list(at)))
    dtype = state_dtype(torch.promote_types(k.dtype, v.dtype))
    lam = lam.to(dtype)
    with torch.no_grad():
        return chunk.states(Inputs(k, k, v, lam, lam, mask, _edges(left, right, lam, dtype)), at)


def _check(r: Tensor, k: Tensor, v: Tensor, lam: Tensor, u: Tensor, mask: Tensor | None) -> None:
    shape = r.shape
    if r.dim() != 3 or k.shape != shape or v.shape != shape:
        got = ", ".join(str(list(t.shape)) for t in (r, k, v))
        raise InputError("r, k, v", expected="three tensors [B, T, C] of one shape", got=got)
    for name, t in (("lam", lam), ("u", u)):
        if t.shape != (shape[0], shape[2]):
            raise InputError(name, expected=f"[B, C] = [{shape[0]}, {shape[2]}]", got=str(list(t.shape)))
    if mask is not None and (mask.dtype != torch.bool or mask.shape != shape[:2]):
        expected = f"bool [B, T] = [{shape[0]}, {shape[1]}]"
        raise InputError("mask", expected=expected, got=f"{mask.dtype} {list(mask.shape)}", remedy="Pass mask.bool().")
    for t in (r, k, v, lam, u):
        if not t.is_floating_point() or t.device != r.device:
            expected = f"floating tensors, all on {r.device}"
            raise InputError("r, k, v, lam, u", expected=expected, got=f"{t.dtype} on {t.device}")
    if mask is not None and mask.device != r.device:
        raise InputError("mask", expected=f"on {r.device}", got=str(mask.device))


def _edges(left: State | None, right: State | None, lam: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Both states as one tensor [2, 3, B, C]; the side that is missing is the state of nothing."""
    if left is None and right is None:
        return None
    sides = []
    for name, side in (("left", left), ("right", right)):
        if side is not None and any(t.shape != lam.shape for t in side):
            got = ", ".join(str(list(t.shape)) for t in side)
            raise InputError(name, expected=f"a state (p, a, b) of [B, C] = {list(lam.shape)} each", got=got)
        sides.append(torch.stack([t.to(dtype) for t in side]) if side else lam.new_zeros(3, *lam.shape, dtype=dtype))
    return torch.stack(sides)
