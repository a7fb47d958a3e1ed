"""The training forward: logits of chosen rows of a padded batch, without computing a single pad.

Enters: ids [B, T] with a key mask. Leaves: hidden states and losses only at the rows that must speak. Real tokens are
packed into one flat row; only attention sees the padded shape. Activation checkpointing wraps single layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unmask.core.errors import ConfigError
from unmask.models.backbone import Backbone
from unmask.models.transformer import Transformer
from unmask.ops import attention as attn_op

_SHORT = 512  # keys up to which plain products beat the CPU's fused attention (and fit in memory)
_LOGITS_AT_ONCE = 1 << 26  # rows x vocabulary that may exist together; beyond it the head runs in chunks

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q [n, H, D], k and v [n, KV, D] of flat rows -> [n, H, D]."""


@dataclass(frozen=True)
class Net:
    """The backbone as the objectives use it.

    Args:
        model: the transformer, or the recurrent backbone, which its own objective drives.
        checkpointing: recompute each layer in the backward pass instead of keeping its activations.
        compiled: fuse the pointwise work of a layer by torch.compile (a C++ compiler is needed on the CPU); attention
            stays outside. About a fifth faster for small models on a CPU.
    """

    model: Backbone
    checkpointing: bool = False
    compiled: bool = False

    def hidden(self, ids: Tensor, key_mask: Tensor, at: Tensor, causal: bool = False) -> Tensor:
        """Hidden states after the final norm at the rows where `at` [B, T] is True: [n, C], in row-major order."""
        model = self.transformer
        flat = key_mask.reshape(-1).nonzero().squeeze(1)
        positions = torch.arange(ids.shape[1], device=ids.device).repeat(ids.shape[0])[flat]
        x = model.embed_ids(ids.reshape(-1)[flat])
        rope, attend = model.rope(positions, x.dtype), _Attend(key_mask, causal)
        for layer in model.layers:
            x = self._layer(layer, x, rope, attend)
        return model.norm(x[at.reshape(-1)[flat]])

    @property
    def transformer(self) -> Transformer:
        """The backbone, where it is a transformer."""
        if not isinstance(self.model, Transformer):
            raise ConfigError("this objective", expected="a transformer", got="a recurrent model")
        return self.model

    def _layer(self, layer: nn.Module, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        run = _compiled_layer() if self.compiled else _run_layer
        if self.checkpointing:
            out = checkpoint(run, layer, x, rope, attend, use_reentrant=False)
        else:
            out = run(layer, x, rope, attend)
        assert isinstance(out, Tensor)
        return out

    def losses(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy in float32 of each row: hidden [n, C], target [n] -> [n]; the head runs in chunks if need
        be.
        """
        rows = max(1, _LOGITS_AT_ONCE // self.model.cfg.vocab_size)
        if hidden.shape[0] <= rows:
            return self._losses(hidden, target)
        parts = [
            checkpoint(self._losses, h, t, use_reentrant=False)
            for h, t in zip(hidden.split(rows), target.split(rows), strict=True)
        ]
        return torch.cat([p for p in parts if isinstance(p, Tensor)])

    def _losses(self, hidden: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(self.transformer.logits(hidden).float(), target, reduction="none")


def _run_layer(layer: nn.Module, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
    out = layer(x, rope, attend)
    assert isinstance(out, Tensor)
    return out


@cache
def _compiled_layer() -> Callable[..., Tensor]:
    """One compiled function for all layers and all batch sizes."""
    return torch.compile(_run_layer, dynamic=True)


class _Attend:
    """Attention for flat rows, bidirectional or causal; rows of similar length share one padded shape."""

    def __init__(self, key_mask: Tensor, causal: bool) -> None:
        self.groups = [_Group(first, real, causal) for first, real in _groups(key_mask)]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = q.to(v.dtype), k.to(v.dtype)
        return torch.cat([g(q, k, v) for g in self.groups])


def _groups(key_mask: Tensor) -> list[tuple[int, Tensor]]:
    """Runs of neighbouring rows of similar length: (index of the first flat token, key mask cut to the longest)."""
    lengths = key_mask.sum(1).tolist()
    out, first, at = [], 0, 0
    while at < len(lengths):
        stop = at + 1
        while stop < len(lengths) and max(lengths[at : stop + 1]) <= 1.2 * min(lengths[at : stop + 1]) + 6:
            stop += 1
        real = key_mask[at:stop]
        width = int(real.any(0).nonzero().max()) + 1
        out.append((first, real[:, :width]))
        first, at = first + sum(lengths[at:stop]), stop
    return out


class _Group:
    """Attention of some rows in one padded shape. `first` is the flat index of their first token."""

    def __init__(self, first: int, real: Tensor, causal: bool) -> None:
        self.shape, self.causal = real.shape, causal
        self.full = bool(real.all())
        self.flat = real.reshape(-1).nonzero().squeeze(1)
        self.span = (first, first + self.flat.numel())
        self.real = real

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (self._pad(t[slice(*self.span)]) for t in (q, k, v))
        if q.device.type == "cpu" and self.shape[1] <= _SHORT:
            out = self._small(q, k, v)
        else:
            mask = attn_op.dense_mask(self.real, self.shape[1], self.causal)
            out = attn_op.dense(q, k, v, mask, self.causal and mask is None)
        out = out.flatten(0, 1)
        return out if self.full else out[self.flat]

    def _pad(self, t: Tensor) -> Tensor:
        if self.full:
            return t.unflatten(0, self.shape)
        out = t.new_zeros(self.real.numel(), *t.shape[1:])
        return out.index_copy(0, self.flat, t).unflatten(0, self.shape)

    def _small(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Batched products: for short rows 4 to 6 times faster than the CPU's fused backward in bf16."""
        rows, _, heads, dim = q.shape
        k, v = (t.repeat_interleave(heads // t.shape[2], dim=2) if t.shape[2] != heads else t for t in (k, v))
        q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
        scores = torch.baddbmm(self._bias(q.dtype, heads), q, k.mT, alpha=dim**-0.5)
        out = scores.softmax(-1, dtype=scores.dtype) @ v
        return out.unflatten(0, (rows, heads)).transpose(1, 2)

    def _bias(self, dtype: torch.dtype, heads: int) -> Tensor:
        """What is added to the scores, [rows * heads, 1 or length, length]: lowest number where a key is not seen.

        A pad sees itself under a causal rule, so that no row is without keys.
        """
        rows, length = self.shape
        seen = self.real[:, None, None, :]
        if self.causal:
            triangle = torch.ones(length, length, dtype=torch.bool, device=seen.device).tril()
            seen = seen & triangle | torch.eye(length, dtype=torch.bool, device=seen.device)
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
        return bias.expand(rows, heads, -1, length).flatten(0, 1)
