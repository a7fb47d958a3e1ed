"""The training forward of block diffusion: only the blocks that the loss depends on.

Enters: clean ids by block, the masked places of every view. Leaves: hidden states of the rows that speak for masked
tokens. Against the published [noisy; clean] layout of twice the length per view: the clean copy is computed once for
all views; a noisy block without a hole is its clean block, so it is not computed; neither is a noisy block whose rows
speak for nobody, nor a clean block that nothing looks back to. In the last layer only the rows that speak pass through
the MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unmask.core.types import Context
from unmask.models.transformer import Layer
from unmask.ops.attention.block_flex import FlexBlockAttention
from unmask.ops.attention.blocks import BlockAttention, BlockLayout, arrange
from unmask.ops.norm import rms_norm
from unmask.ops.swiglu import swiglu
from unmask.train.forward import Net

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class BlockPlan:
    """What one batch computes.

    layout: the units, in the order of the flat batch. ids, positions: [U * D]. speakers: flat rows that speak for a
    masked token each; view, row, position: [n] the token they speak for. clean_speakers, clean_row, clean_position: the
    same for tokens that clean rows of a causal context speak for.
    """

    layout: BlockLayout
    ids: Tensor
    positions: Tensor
    speakers: Tensor
    view: Tensor
    row: Tensor
    position: Tensor
    clean_speakers: Tensor
    clean_row: Tensor
    clean_position: Tensor


def plan(
    ids: Tensor,
    masked: Tensor,
    mask_id: int,
    shift: int,
    clean_reads: bool = False,
    context: Context = "block",
    clean_scored: Tensor | None = None,
) -> BlockPlan:
    """Finds the blocks to compute.

    Args:
        ids: clean ids [B, N, D]; what stands beyond a row's blocks is never computed.
        masked: [views, B, N, D].
        shift: row p speaks for token p + shift (0 or 1); nobody speaks for the first token when it is 1.
        clean_reads: a block's first token is read from the clean copy of the block before it, as decoding does; else
            from the same view's noisy copy, as published for training.
        context: how clean blocks see themselves.
        clean_scored: [B, N, D], tokens that the clean rows before them speak for (a causal context only); None, none.
    """
    device, (views, rows, count, size) = ids.device, masked.shape
    masked = masked.cpu()
    speaks = _ahead(masked, shift)
    told = torch.zeros(rows, count, size, dtype=torch.bool) if clean_scored is None else clean_scored.cpu()
    told = _ahead(told[None], 1)[0]
    holes = masked.any(3)
    from_clean = ~holes[..., None] & speaks
    if clean_reads and shift:
        from_clean = from_clean | (speaks & (torch.arange(size) == size - 1))
    noisy = (speaks & ~from_clean).any(3)
    reach = torch.arange(count)
    clean = torch.maximum(
        torch.where(noisy.any(0), reach, 0).amax(1),
        torch.where(from_clean.any(3).any(0) | told.any(2), reach + 1, 0).amax(1),
    )
    layout = arrange(clean, noisy, size, "row" if device.type == "cuda" else "block", context)
    unit = torch.zeros(views + 1, rows, count, dtype=torch.int64)
    unit[layout.copy, layout.row, layout.index] = torch.arange(len(layout.row))
    view, row, block, slot = speaks.nonzero().unbind(1)
    copy = torch.where(from_clean[view, row, block, slot], 0, view + 1)
    speakers = unit[copy, row, block] * size + slot
    clean_row, clean_block, clean_slot = told.nonzero().unbind(1)
    clean_speakers = unit[0, clean_row, clean_block] * size + clean_slot
    all_ids = torch.cat([ids.cpu()[None], ids.cpu()[None].masked_fill(masked, mask_id)])
    return BlockPlan(
        layout,
        all_ids[layout.copy, layout.row, layout.index].flatten().to(device),
        (layout.index[:, None] * size + torch.arange(size)).flatten().to(device),
        *(t.to(device) for t in (speakers, view, row, block * size + slot + shift)),
        *(t.to(device) for t in (clean_speakers, clean_row, clean_block * size + clean_slot + 1)),
    )


def _ahead(places: Tensor, shift: int) -> Tensor:
    """[views, B, N, D]: the places of the rows that speak, `shift` before those of their tokens."""
    return F.pad(places.flatten(2)[:, :, shift:], (0, shift)).view(places.shape)


def hidden(net: Net, plan: BlockPlan) -> Tensor:
    """Hidden states after the final norm at `plan.speakers`, then at `plan.clean_speakers`: [n, C]."""
    model = net.transformer
    x = model.embed_ids(plan.ids)
    rope, attend = model.rope(plan.positions, x.dtype), attention(plan.layout, x.device)
    speakers = torch.cat([plan.speakers, plan.clean_speakers])
    *layers, last = model.layers
    for layer in layers:
        x = net._layer(layer, x, rope, attend)
    run = _compiled_last() if net.compiled else _last
    if net.checkpointing:
        x = checkpoint(run, last, x, rope, attend, speakers, use_reentrant=False)
    else:
        x = run(last, x, rope, attend, speakers)
    return model.norm(x)


def attention(layout: BlockLayout, device: torch.device) -> Attend:
    """The attention of a layout on a device."""
    return FlexBlockAttention(layout, device) if device.type == "cuda" else BlockAttention(layout, device)


def _last(layer: nn.Module, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend, rows: Tensor) -> Tensor:
    """`Layer.forward`, cut to the wanted rows behind the attention."""
    assert isinstance(layer, Layer)
    mixed = attend(*layer.project(x, rope)).flatten(-2)
    x = x.index_select(0, rows) + layer.out(mixed.index_select(0, rows))
    return x + layer.down(swiglu(layer.gate_up(rms_norm(x, layer.mlp_norm, layer.cfg.norm_eps))))


@cache
def _compiled_last() -> Callable[..., Tensor]:
    return torch.compile(_last, dynamic=True)
