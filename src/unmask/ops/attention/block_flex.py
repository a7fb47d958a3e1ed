"""The attention of `blocks.py` on CUDA: flex_attention over the flat batch, with one block mask per layout.

Enters: a `BlockLayout` ordered by row (so that what a unit sees lies together), q [N, H, D], k and v [N, KV, D].
Leaves: [N, H, D]. The mask of whole tiles is computed from the layout, never token by token; equal layouts share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from unmask.ops.attention.blocks import BlockLayout

TILE = 128


class FlexBlockAttention:
    """The attention of one layout, as a layer calls it."""

    def __init__(self, layout: BlockLayout, device: torch.device) -> None:
        units = [bytes(t.to(torch.int32).numpy()) for t in layout.units]
        self.mask = _block_mask(layout.block, *units, layout.context == "causal", device)
        self.run = _compiled() if device.type == "cuda" else _flex

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        more = -len(q) % TILE
        q, k, v = (F.pad(t.to(v.dtype), (0, 0, 0, 0, 0, more)).transpose(0, 1)[None] for t in (q, k, v))
        out = self.run(q, k, v, self.mask)[0].transpose(0, 1)
        return out[: len(out) - more]


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    out = flex_attention(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    assert isinstance(out, Tensor)
    return out


@cache
def _compiled() -> Callable[..., Tensor]:
    """One compiled kernel for all layouts and lengths."""
    return torch.compile(_flex, dynamic=True)


@lru_cache(maxsize=8)
def _block_mask(block: int, row: bytes, index: bytes, copy: bytes, causal: bool, device: torch.device) -> BlockMask:
    """Which tiles are whole, partly or not at all allowed.

    Between two granules (of the greatest common divisor of block and tile) the rule is the same for all tokens; it is
    not within one of a causal unit, which lies in a tile on the diagonal. Padding up to whole tiles sees itself only.
    """
    units = [torch.frombuffer(bytearray(t), dtype=torch.int32) for t in (row, index, copy)]
    tokens = [t.repeat_interleave(block).to(device) for t in (*units, torch.arange(len(units[0])))]
    more = -len(tokens[0]) % TILE
    rows, indices, copies, own = (
        F.pad(t, (0, more), value=fill) for t, fill in zip(tokens, (-1, 0, 0, -1), strict=True)
    )

    def allowed(batch: Any, head: Any, q: Any, k: Any) -> Any:
        earlier = (rows[q] == rows[k]) & (copies[k] == 0) & (indices[k] < indices[q])
        same = own[q] == own[k]
        if causal:
            same = same & ((copies[q] > 0) | (k <= q))
        return earlier | same

    granule = math.gcd(block, TILE)
    at = torch.arange(0, len(rows), granule, device=device)
    tiles = len(rows) // TILE
    some, whole = [], []
    for part in at.view(tiles, -1):
        seen = allowed(0, 0, part[:, None], at[None]).view(len(part), tiles, -1)
        some.append(seen.any(2).any(0))
        whole.append(seen.all(2).all(0))
    full = torch.stack(whole)
    if causal:
        full.diagonal().logical_and_(copies.view(tiles, TILE).amin(1) > 0)
    partial = torch.stack(some) & ~full
    return BlockMask.from_kv_blocks(*_ordered(partial), *_ordered(full), BLOCK_SIZE=TILE, mask_mod=allowed)


def _ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Number of tiles per row of tiles [1, 1, n], and their indices first [1, 1, n, n]."""
    count = tiles.sum(1).to(torch.int32)
    order = tiles.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return count[None, None], order[None, None].contiguous()
