"""The one backbone: RMSNorm, RoPE, grouped-query attention and SwiGLU, as LLaDA, Dream and their AR parents use them.

Enters: token ids and absolute positions. Leaves: hidden states after the final norm (no logits: `denoiser.py` picks the
rows that must speak first). Two ways in share every layer: `forward` runs dense batches [B, T] (training, likelihood),
`rows` runs packed query rows of many sequences against a KV store (decoding). They differ only in the attention
callback.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unmask.models.config import TransformerConfig as TransformerConfig
from unmask.ops import attention as attn_op
from unmask.ops.norm import rms_norm
from unmask.ops.rope import apply_rope, rope_table
from unmask.ops.swiglu import swiglu

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Layer(nn.Module):
    """One pre-norm block; q, k, v and gate, up are fused into one projection each (fewer, larger matrix products)."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.attn_norm = nn.Parameter(torch.ones(cfg.dim))
        self.mlp_norm = nn.Parameter(torch.ones(cfg.dim))
        self.qkv = nn.Linear(cfg.dim, cfg.q_dim + 2 * cfg.kv_dim, bias=cfg.qkv_bias)
        self.out = nn.Linear(cfg.q_dim, cfg.dim, bias=cfg.out_bias)
        self.gate_up = nn.Linear(cfg.dim, 2 * cfg.mlp_dim, bias=cfg.mlp_bias)
        self.down = nn.Linear(cfg.mlp_dim, cfg.dim, bias=cfg.mlp_bias)
        if cfg.qk_norm is not None:
            full = cfg.qk_norm == "full"
            self.q_norm = nn.Parameter(torch.ones(cfg.q_dim if full else cfg.head_dim))
            self.k_norm = nn.Parameter(torch.ones(cfg.kv_dim if full else cfg.head_dim))

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """x [..., C] -> [..., C]; `attend` maps q [..., H, D], k and v [..., KV, D] to [..., H, D]."""
        q, k, v = self.project(x, rope)
        x = x + self.out(attend(q, k, v).flatten(-2))
        return x + self.down(swiglu(self.gate_up(rms_norm(x, self.mlp_norm, self.cfg.norm_eps))))

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        cfg = self.cfg
        qkv = self.qkv(rms_norm(x, self.attn_norm, cfg.norm_eps))
        if cfg.qk_norm is None:  # q and k lie side by side: one rotation for both
            heads = qkv.unflatten(-1, (-1, cfg.head_dim))
            qk = apply_rope(heads[..., : cfg.heads + cfg.kv_heads, :], *rope)
            return qk[..., : cfg.heads, :], qk[..., cfg.heads :, :], heads[..., cfg.heads + cfg.kv_heads :, :]
        q, k, v = qkv.split((cfg.q_dim, cfg.kv_dim, cfg.kv_dim), dim=-1)
        if cfg.qk_norm == "full":
            q, k = rms_norm(q, self.q_norm, cfg.norm_eps), rms_norm(k, self.k_norm, cfg.norm_eps)
        q, k, v = (t.unflatten(-1, (-1, cfg.head_dim)) for t in (q, k, v))
        if cfg.qk_norm == "head":
            q, k = rms_norm(q, self.q_norm, cfg.norm_eps), rms_norm(k, self.k_norm, cfg.norm_eps)
        return apply_rope(q, *rope), apply_rope(k, *rope), v


class Transformer(nn.Module):
    """The backbone with its embedding and head. `attention` decides only the mask of the dense path."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.layers))
        self.final_norm = nn.Parameter(torch.ones(cfg.dim))
        self.head = None if cfg.tied else nn.Linear(cfg.dim, cfg.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """[V, C]; the embedding itself when the checkpoint ties them."""
        return self.embed.weight if self.head is None else self.head.weight

    def init_weights(self, seed: int, std: float = 0.02) -> None:
        """Normal(0, std) for every matrix, the two residual outputs scaled by 1/sqrt(2 * layers) (GPT-2's rule)."""
        gen = torch.Generator().manual_seed(seed)
        depth = (2 * self.cfg.layers) ** -0.5
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.dim() < 2:
                    p.fill_(0.0 if name.endswith("bias") else 1.0)
                else:
                    scale = std * depth if name.endswith(("out.weight", "down.weight")) else std
                    p.copy_(torch.randn(p.shape, generator=gen) * scale)

    def rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos, sin for absolute positions [...]: each [..., 1, D], float32 or cast to `dtype` by the checkpoint's
        rule.
        """
        return rope_table(positions, self.cfg.head_dim, self.cfg.rope_theta, None if self.cfg.rope_float32 else dtype)

    def embed_ids(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embed(ids)
        return x if self.cfg.embed_scale == 1.0 else x * self.cfg.embed_scale

    def run(self, x: Tensor, positions: Tensor, attend: Attend, layers: range | None = None) -> Tensor:
        """Layers over x [..., C] (all of them, or the named ones), without the final norm."""
        rope = self.rope(positions, x.dtype)
        for i in layers if layers is not None else range(self.cfg.layers):
            x = self.layers[i](x, rope, lambda q, k, v, i=i: attend(i, q, k, v))
        return x

    def norm(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.final_norm, self.cfg.norm_eps)

    def forward(
        self,
        ids: Tensor,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Dense forward. ids [B, T], key_mask [B, T] (True or 1 = real token; padded keys are never attended),
        positions [B, T] or None for 0..T-1 -> hidden [B, T, C] after the final norm."""
        if positions is None:
            positions = torch.arange(ids.shape[-1], device=ids.device)
        mask = attn_op.dense_mask(key_mask, ids.shape[-1], causal)

        def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attn_op.dense(q, k, v, mask, causal and mask is None)

        return self.norm(self.run(self.embed_ids(ids), positions, attend))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., C] -> logits [..., V] in the model's dtype."""
        out = torch.nn.functional.linear(hidden, self.head_weight)
        return out if self.cfg.logit_scale == 1.0 else out * self.cfg.logit_scale
