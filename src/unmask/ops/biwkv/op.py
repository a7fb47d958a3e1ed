"""`unmask::biwkv` for torch: an op of its own with shapes for tracers and the closed-form backward for autograd.

The implementation is chosen when the op runs, not when it is traced: a compiled graph holds a name ("auto"), no kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.ops.biwkv.common import Inputs
from unmask.ops.biwkv.dispatch import choose


@torch.library.custom_op("unmask::biwkv", mutates_args=())
def forward(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    u: Tensor,
    mask: Tensor | None,
    edges: Tensor | None,
    impl: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and (empty unless `save`) the weighted mean y and the log normaliser Z for the backward."""
    x = Inputs(r, k, v, lam, u, mask, edges)
    out, saved = choose(impl, r.device, edges is not None).forward(x, save)
    y, z = saved or (lam.new_empty(0), lam.new_empty(0))
    return out.contiguous(), y.contiguous(), z.contiguous()


@forward.register_fake
def _(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    u: Tensor,
    mask: Tensor | None,
    edges: Tensor | None,
    impl: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = r.shape if save else (0,)
    return torch.empty_like(r, memory_format=torch.contiguous_format), lam.new_empty(shape), lam.new_empty(shape)


@torch.library.custom_op("unmask::biwkv_backward", mutates_args=())
def backward(
    go: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    u: Tensor,
    mask: Tensor | None,
    y: Tensor,
    z: Tensor,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of r, k, v, lam, u."""
    x = Inputs(r, k, v, lam, u, mask)
    gr, gk, gv, glam, gu = choose(impl, r.device).backward(go.contiguous(), x, y, z)
    return gr.contiguous(), gk.contiguous(), gv.contiguous(), glam.contiguous(), gu.contiguous()


@backward.register_fake
def _(
    go: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    u: Tensor,
    mask: Tensor | None,
    y: Tensor,
    z: Tensor,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gr, gk, gv = (torch.empty_like(r, memory_format=torch.contiguous_format) for _ in range(3))
    return gr, gk, gv, torch.empty_like(lam), torch.empty_like(u)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # y and Z have none: do not fill two tensors with zeros for them
    r, k, v, lam, u, mask, _, ctx.impl, _ = inputs
    ctx.save_for_backward(r, k, v, lam, u, mask, *output[1:])


def _backward(ctx: Any, go: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if go is None:
        return (None,) * 9
    r, k, v, lam, u, mask, y, z = ctx.saved_tensors
    return (*backward(go, r, k, v, lam, u, mask, y, z, ctx.impl), None, None, None, None)


forward.register_autograd(_backward, setup_context=_keep)
