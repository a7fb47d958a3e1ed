"""The bidirectional recurrent backbone: BiShift, Bi-WKV and a squared-ReLU feed-forward part, conditioned on a noise
level.

Enters: vectors of the positions (clean, noised or none), their kinds and the noise level of each sequence. Leaves:
hidden states after the final norm; `speak` turns them into token logits, `denoised` into an estimate of the clean
vectors. Cost is linear in the length. Parameters have the names of the published BiRWKV-LLaDA code wherever it has
them. Source: BiRWKV-LLaDA, Vision-RWKV (arXiv 2403.02308), Plaid (2305.18619), CDCD (2211.15089), Diffusion-LM
(2205.14217).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.models.config import BiRWKVConfig
from unmask.ops import attention as attn_op
from unmask.ops import vp
from unmask.ops.biwkv import State, biwkv, states
from unmask.ops.norm import rms_norm
from unmask.ops.rope import apply_rope, rope_table

CLEAN, NOISY, MASKED, NULL = 0, 1, 2, 3
"""Kinds of a position: its token is known; its vector is noised; nothing is known; a prompt that guidance leaves
out."""
KINDS = 4
TIME = 128
DECAY_LIMITS, BONUS_LIMIT = (-8.0, 2.0), 8.0
FORGOTTEN = 10.0
"""At exp(10) nats per token nothing of a neighbour is left in any dtype; above, the origin's decay would overflow."""


@dataclass
class Border:
    """What one layer knows of the rows to the left and to the right of a block, [B, C] each: a row at each end for both
    shifts, a state at each end for the recurrence. Its size does not depend on how many rows there are.

    ends: [B], whether there is any row to the left, to the right.
    """

    left: State
    right: State
    rows: tuple[tuple[Tensor, Tensor], ...]
    ends: tuple[Tensor, Tensor]


class Around(Protocol):
    """What stands beside the rows of a forward."""

    def border(self, layer: int) -> Border | None:
        """The summary that a layer reads at both ends; None where nothing is there."""

    def saw(self, layer: int, part: int, x: Tensor) -> None:
        """The rows [B, T, C] that shift number `part` of a layer mixed."""

    def keys(self, layer: int, k: Tensor, v: Tensor, lam: Tensor) -> None:
        """The keys and values [B, T, C] of a layer's recurrence, and its decay [B, C]."""


class Shift(nn.Module):
    """BiShift: the first third of the channels looks at the next row, the second at the one before, the third at its
    own.

    A border, or a neighbour that does not exist, is replaced by the row itself.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(1, 1, dim))
        self.shift_patterns = nn.Parameter(torch.zeros(3, dim))
        self.time_shift_proj = nn.Linear(TIME, dim, bias=False)
        self.time_scale_proj = nn.Linear(TIME, dim, bias=False)
        self.sizes = [dim // 3 + (i < dim % 3) for i in range(3)]

    def forward(self, x: Tensor, tau: Tensor, mask: Tensor | None, border: Border | None, part: int = 0) -> Tensor:
        """x [B, T, C], tau [B, 128], mask [B, T] (True = a row that exists); `part` of the border is this shift's."""
        before, after = x[:, :1], x[:, -1:]
        if border is not None:
            own = zip(border.ends, border.rows[part], (before, after), strict=True)
            before, after = (torch.where(there[:, None, None], row[:, None], x) for there, row, x in own)
        following, earlier = torch.cat([x[:, 1:], after], 1), torch.cat([before, x[:, :-1]], 1)
        if mask is not None:
            there = F.pad(mask, (1, 1), value=True)[..., None]
            following, earlier = torch.where(there[:, 2:], following, x), torch.where(there[:, :-2], earlier, x)
        offset = self.time_shift_proj(tau)[:, None]
        parts = zip(*(t.split(self.sizes, -1) for t in (following, earlier, x)), strict=True)
        moved = torch.cat([group[i] for i, group in enumerate(parts)], -1)
        rates = torch.cat(
            [p[i] for i, p in enumerate(zip(*(q.split(self.sizes) for q in self.shift_patterns), strict=True))]
        )
        moved = moved + offset * rates
        amount = torch.sigmoid(self.mu) * torch.sigmoid(self.time_scale_proj(tau))[:, None]
        return x + amount * (moved - x)


class Linear(nn.Module):
    """A matrix without bias; with `timed`, a projection of the level is added (the origin's layers)."""

    def __init__(self, inner: int, outer: int, timed: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inner, outer, bias=False)
        if timed:
            self.time_proj = nn.Linear(TIME, outer, bias=False)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out + self.time_proj(tau)[:, None] if hasattr(self, "time_proj") else out


class Decay(nn.Module):
    """Decay and self bonus of the recurrence per channel, moved by the level."""

    def __init__(self, cfg: BiRWKVConfig, layer: int) -> None:
        super().__init__()
        self.origin = cfg.conditioning == "origin"
        self.w = nn.Parameter(torch.zeros(1, 1, cfg.dim))
        self.u = nn.Parameter(torch.zeros(1, 1, cfg.dim))
        self.time_w_proj = nn.Linear(TIME, cfg.dim, bias=False)
        self.time_u_proj = nn.Linear(TIME, cfg.dim, bias=False)
        if self.origin:
            self.layer_time_scale = nn.Parameter(torch.tensor([1.0 / (layer + 1)]))

    def forward(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """lam and u [B, C] (nats per token; log weight), and the factor on the output."""
        scale = self.layer_time_scale if self.origin else 1.0
        w = (self.w[0, 0] + scale * self.time_w_proj(tau)).float()
        u = (self.u[0, 0] + scale * self.time_u_proj(tau)).float()
        if not self.origin:
            return torch.exp(w.clamp(*DECAY_LIMITS)), u.clamp(-BONUS_LIMIT, BONUS_LIMIT), 1.0
        phi = torch.sigmoid(tau.float().sum(-1, keepdim=True))
        return torch.exp(w.clamp(max=FORGOTTEN)) - torch.log(0.5 + 0.5 * phi), F.softplus(u), (0.8 + 0.2 * phi)[:, None]


class Mixer(nn.Module):
    """Bi-WKV over the whole sequence, or attention (q, k, v from the same three matrices)."""

    def __init__(self, cfg: BiRWKVConfig, layer: int) -> None:
        super().__init__()
        self.cfg, self.layer, self.attends = cfg, layer, cfg.attends(layer)
        timed = cfg.conditioning == "origin"
        self.r_proj, self.k_proj, self.v_proj = (Linear(cfg.dim, cfg.dim, timed) for _ in range(3))
        self.attn_out = Linear(cfg.dim, cfg.dim, timed)
        if not self.attends:
            self.attention = Decay(cfg, layer)

    def forward(self, h: Tensor, tau: Tensor, mask: Tensor | None, around: Around | None) -> Tensor:
        r, k, v = self.r_proj(h, tau), self.k_proj(h, tau), self.v_proj(h, tau)
        if self.attends:
            return self.attn_out(self._attention(r, k, v, mask), tau)
        if self.cfg.key_cap is not None:
            k = self.cfg.key_cap * torch.tanh(k / self.cfg.key_cap)
        lam, u, gain = self.attention(tau)
        border = around.border(self.layer) if around is not None else None
        if around is not None:
            around.keys(self.layer, k, v, lam)
        left, right = (None, None) if border is None else (border.left, border.right)
        out = biwkv(r, k, v, lam, u, mask, left=left, right=right)
        return self.attn_out((out * gain).to(h.dtype), tau)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        heads = self.cfg.heads
        q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
        rope = rope_table(torch.arange(q.shape[1], device=q.device), q.shape[-1], 10_000.0, None)
        q, k = apply_rope(q, *rope).to(v.dtype), apply_rope(k, *rope).to(v.dtype)
        return attn_op.dense(q, k, v, attn_op.dense_mask(mask, q.shape[1], False), False).flatten(-2)


class Block(nn.Module):
    """One pre-norm layer: shift and mixer, then shift and feed-forward part."""

    def __init__(self, cfg: BiRWKVConfig, layer: int) -> None:
        super().__init__()
        self.cfg, self.layer = cfg, layer
        timed = cfg.conditioning == "origin"
        self.ln1, self.ln2 = Norm(cfg), Norm(cfg)
        self.shift1, self.shift2 = Shift(cfg.dim), Shift(cfg.dim)
        mixer = Mixer(cfg, layer)
        self.r_proj, self.k_proj, self.v_proj, self.attn_out = mixer.r_proj, mixer.k_proj, mixer.v_proj, mixer.attn_out
        if not mixer.attends:
            self.attention = mixer.attention
        self._mixer = [mixer]  # in a list: its parameters are this layer's own, under the published names
        width = cfg.dim if cfg.ff_gate == "after" else cfg.mlp_dim
        self.ff_r_proj = Linear(cfg.dim, width, timed)
        self.ff_k_proj = Linear(cfg.dim, cfg.mlp_dim, timed)
        self.ff_v_proj = Linear(cfg.mlp_dim, cfg.dim, timed)
        if timed:
            self.time_gate = nn.Linear(TIME, cfg.dim, bias=False)
        else:
            self.ada = nn.Linear(TIME, 6 * cfg.dim)
        if timed or cfg.noise:
            self.noise_scale = nn.Parameter(torch.tensor([0.1]))

    def forward(self, x: Tensor, tau: Tensor, mask: Tensor | None, around: Around | None = None) -> Tensor:
        """x [B, T, C], tau [B, 128], mask [B, T] -> [B, T, C]."""
        (shift1, scale1, gate1), (shift2, scale2, gate2) = self._modulation(tau)
        h = self._look(0, self.ln1(x) * scale1 + shift1, tau, mask, around)
        x = x + gate1 * self._mixer[0](h, tau, mask, around)
        h = self._look(1, self.ln2(x) * scale2 + shift2, tau, mask, around)
        return self._noised(x + gate2 * self._feed(h, tau))

    def _modulation(self, tau: Tensor) -> tuple[tuple[Tensor | float, ...], tuple[Tensor | float, ...]]:
        if self.cfg.conditioning == "origin":
            gate = torch.sigmoid(self.time_gate(tau))[:, None]
            return (0.0, 1.0, gate), (0.0, 1.0, gate)
        parts = self.ada(F.silu(tau))[:, None].chunk(6, -1)
        return (parts[0], 1 + parts[1], 1 + parts[2]), (parts[3], 1 + parts[4], 1 + parts[5])

    def _look(self, part: int, h: Tensor, tau: Tensor, mask: Tensor | None, around: Around | None) -> Tensor:
        shift = self.shift2 if part else self.shift1
        if around is None:
            return shift(h, tau, mask, None)
        around.saw(self.layer, part, h)
        return shift(h, tau, mask, around.border(self.layer), part)

    def _feed(self, h: Tensor, tau: Tensor) -> Tensor:
        gate, hidden = torch.sigmoid(self.ff_r_proj(h, tau)), F.relu(self.ff_k_proj(h, tau)).square()
        if self.cfg.ff_gate == "hidden":
            return self.ff_v_proj(gate * hidden, tau)
        return gate * self.ff_v_proj(hidden, tau)

    def _noised(self, x: Tensor) -> Tensor:
        return x + self.noise_scale * torch.randn_like(x) if self.cfg.noise and self.training else x


class Norm(nn.Module):
    """RMSNorm with a weight."""

    def __init__(self, cfg: BiRWKVConfig) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(cfg.dim)), cfg.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class BiRWKV(nn.Module):
    """The backbone with its token table and heads."""

    def __init__(self, cfg: BiRWKVConfig) -> None:
        super().__init__()
        self.cfg = cfg
        origin = cfg.conditioning == "origin"
        self.time_mlp = nn.Sequential(nn.Linear(TIME, 4 * TIME), nn.SiLU(), nn.Linear(4 * TIME, TIME))
        parts: dict[str, nn.Module] = {"wte": nn.Embedding(cfg.vocab_size, cfg.embed_dim)}
        if cfg.positions:
            parts["wpe"] = nn.Embedding(cfg.max_len, cfg.dim)
        parts |= {"ln_f": Norm(cfg), "blocks": nn.ModuleList(Block(cfg, i) for i in range(cfg.layers))}
        if not cfg.tied:
            parts["ff_out"] = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        if not origin:
            parts |= {
                "embed_in": nn.Linear(cfg.embed_dim, cfg.dim, bias=False),
                "self_cond": nn.Linear(cfg.embed_dim, cfg.dim, bias=False),
                "kind": nn.Embedding(KINDS, cfg.dim),
            }
            if cfg.tied:
                parts["to_embed"] = nn.Linear(cfg.dim, cfg.embed_dim, bias=False)
            self.masked_level = nn.Parameter(torch.zeros(TIME))
        self.transformer = nn.ModuleDict(parts)
        if origin or cfg.prediction == "epsilon":
            self.noise_head = nn.Linear(cfg.dim, cfg.embed_dim, bias=False)
            self.noise_conditioning = nn.Linear(TIME, cfg.dim, bias=False)
        if cfg.prediction == "v_prediction":
            self.v_head = nn.Linear(cfg.dim, cfg.embed_dim, bias=False)

    # ---- what others read --------------------------------------------------------------------------------------------

    @property
    def table(self) -> Tensor:
        """[V, E]: the tokens' vectors, of norm sqrt(E) unless the checkpoint uses them as they are."""
        weight = self.head_weight
        if not self.cfg.normed:
            return weight
        return F.normalize(weight.float(), dim=-1) * math.sqrt(self.cfg.embed_dim)

    @property
    def head_weight(self) -> Tensor:
        """The token table as it is stored."""
        return _weight(self.transformer["wte"])

    @property
    def blocks(self) -> nn.ModuleList:
        found = self.transformer["blocks"]
        assert isinstance(found, nn.ModuleList)
        return found

    # ---- the walk ----------------------------------------------------------------------------------------------------

    def levels(self, level: Tensor) -> Tensor:
        """Log signal-to-noise ratios [B] -> the condition [B, 128] of every layer."""
        if self.cfg.betas is not None:
            return self.steps(vp.step_of(level, _published(*self.cfg.betas, self.cfg.steps).to(level.device)))
        low, high = self.cfg.levels
        return self.steps((high - level) / (high - low) * self.cfg.steps)

    def steps(self, step: Tensor) -> Tensor:
        """The same for an index of the noise level, 0 (clean) to `cfg.steps`, as the origin's interface has it."""
        half = TIME // 2
        rates = torch.exp(-math.log(1e4) * torch.arange(half, device=step.device, dtype=torch.float32) / half)
        angles = step.float()[:, None] * rates
        table = torch.cat([torch.cos(angles), torch.sin(angles)], -1)
        return self.time_mlp(table.to(self.head_weight.dtype))

    def condition(self, level: Tensor, noised: Tensor) -> Tensor:
        """[B, 128]. level [B]; noised [B]: False for sequences without a noised position, which have one of their
        own."""
        tau = self.levels(torch.where(noised, level, torch.zeros_like(level)))
        if self.cfg.conditioning == "origin":
            return torch.where(noised[:, None], tau, self.steps(torch.zeros_like(level)))
        return torch.where(noised[:, None], tau, self.masked_level.to(tau.dtype))

    def enter(self, vectors: Tensor, hint: Tensor | None, kinds: Tensor, positions: Tensor | None = None) -> Tensor:
        """vectors [B, T, E] (tokens' or noised ones), hint [B, T, E] (the last estimate of the clean vectors), kinds
        [B, T] -> [B, T, C]. Vectors of masked and null positions are ignored; a hint counts at noised ones only."""
        cfg, parts = self.cfg, self.transformer
        known = (kinds < MASKED)[..., None]
        vectors = torch.where(known, vectors, torch.zeros((), dtype=vectors.dtype, device=vectors.device))
        dtype = self.head_weight.dtype
        if cfg.conditioning == "origin":
            x = vectors.to(dtype) * cfg.embed_scale
        else:
            x = parts["embed_in"](vectors.to(dtype)) * cfg.embed_scale + parts["kind"](kinds)
            if hint is not None:
                own = (kinds == NOISY)[..., None]
                x = x + parts["self_cond"](torch.where(own, hint, torch.zeros_like(hint)).to(dtype))
        if cfg.positions:
            at = torch.arange(x.shape[1], device=x.device) if positions is None else positions
            x = x + parts["wpe"](at)
        return F.dropout(x, cfg.dropout, self.training) if cfg.dropout else x

    def run(self, x: Tensor, tau: Tensor, mask: Tensor | None = None, around: Around | None = None) -> Tensor:
        """All layers and the final norm: [B, T, C]. mask [B, T]: True where a row exists."""
        if mask is not None and bool(mask.all()):
            mask = None
        for block in self.blocks:
            x = block(x, tau, mask, around)
        return self.transformer["ln_f"](x)

    def speak(self, hidden: Tensor, vectors: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """Rows [n, C] -> logits [n, V] in float32.

        Args:
            vectors, level: the noised vectors [n, E] of the rows and their log signal-to-noise ratio [n] (+inf means
                that there is none): their evidence is added.
        """
        out, weight = self.voice(hidden, vectors, level)
        return F.linear(out, weight) * self.cfg.logit_scale

    def voice(
        self, hidden: Tensor, vectors: Tensor | None = None, level: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The two factors of the logits: rows [n, K] and a matrix [V, K], float32."""
        seen = self._evidence(vectors, level) if vectors is not None and level is not None else None
        return self._rows(hidden, seen), self.matrix(seen is not None)

    def _evidence(self, vectors: Tensor, level: Tensor) -> Tensor | None:
        if not self.cfg.evidence:
            return None
        noised = level.isfinite()
        factor = torch.where(noised, vp.evidence(torch.where(noised, level, torch.zeros_like(level)).float()), 0.0)
        return (factor / self.cfg.logit_scale)[:, None] * vectors.float()  # the scale is for the voice alone

    def _rows(self, hidden: Tensor, seen: Tensor | None) -> Tensor:
        if not self.cfg.tied:
            return hidden.float() if seen is None else torch.cat([hidden.float(), seen], -1)
        own = hidden if self.cfg.conditioning == "origin" else self.transformer["to_embed"](hidden)
        return own.float() if seen is None else own.float() + seen

    def matrix(self, evidence: bool) -> Tensor:
        """[V, K] of `voice`."""
        if self.cfg.tied:
            return self.table.float()
        own = _weight(self.transformer["ff_out"]).float()
        return torch.cat([own, self.table.float()], -1) if evidence else own

    def vector(self, hidden: Tensor, tau: Tensor) -> Tensor:
        """What the diffusion head says of rows [n, C] with conditions [n, 128]: noise or velocity [n, E], float32."""
        if self.cfg.prediction == "v_prediction":
            return self.v_head(hidden).float()
        return self.noise_head(hidden + self.noise_conditioning(tau)).float()

    @property
    def by_tokens(self) -> bool:
        """Whether the clean vectors follow from the token distribution; else a head of their own says them."""
        return self.cfg.prediction == "sample" and self.cfg.conditioning == "adaln"

    def expected(self, logits: Tensor) -> Tensor:
        """The mean of the tokens' vectors [n, E] under logits [n, V], float32 also under autocast."""
        with torch.autocast(logits.device.type, enabled=False):
            return torch.softmax(logits.float(), -1) @ self.table.float()

    def denoised(self, hidden: Tensor, tau: Tensor, logits: Tensor, vectors: Tensor, level: Tensor) -> Tensor:
        """The clean vectors [n, E] that the model expects at noised rows: the mean under the token distribution, or
        what follows from the noise or the velocity it predicts."""
        if self.by_tokens:
            return self.expected(logits)
        return vp.to_clean(self.vector(hidden, tau), vectors.float(), level.float()[:, None], self.cfg.prediction)

    # ---- a beginning -------------------------------------------------------------------------------------------------

    def init_weights(self, seed: int, std: float = 0.02) -> None:
        """Matrices Normal(0, std * sqrt(1024 / inputs)), residual outputs divided by sqrt(2 * layers); what conditions
        on the level and what speaks starts at zero; memory lengths are spread from 1 token to 8 contexts."""
        gen = torch.Generator().manual_seed(seed)
        depth = (2 * self.cfg.layers) ** -0.5
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(self._beginning(name, p, gen, std, depth))

    def _beginning(self, name: str, p: Tensor, gen: torch.Generator, std: float, depth: float) -> Tensor:
        cfg, end = self.cfg, name.rsplit(".", 1)[0]
        if name.endswith("attention.w"):
            if cfg.conditioning == "origin":
                return torch.zeros_like(p)
            ends = max(DECAY_LIMITS[0], -math.log(8 * cfg.max_len)), math.log(1.5)
            spread = torch.rand(p.shape, generator=gen) * (ends[1] - ends[0]) + ends[0]
            return spread.sort(-1).values[..., torch.randperm(p.shape[-1], generator=gen)]
        if name.endswith("layer_time_scale"):
            return torch.full_like(p, 1.0 / (int(name.split(".")[2]) + 1))
        if name.endswith("noise_scale"):
            return torch.full_like(p, 0.1)
        if name.endswith(("ln1.weight", "ln2.weight", "ln_f.weight")):
            return torch.ones_like(p)
        if end.endswith(("ada", "to_embed", "ff_out", "self_cond", "noise_head", "v_head", "noise_conditioning")):
            return torch.zeros_like(p)
        if "time_" in end and "time_mlp" not in end and cfg.conditioning == "adaln":
            return torch.zeros_like(p)
        if p.dim() < 2 or ("shift" in name and p.dim() != 2) or name.endswith((".mu", ".u", "shift_patterns")):
            return torch.zeros_like(p)
        if end.endswith(("wte", "kind", "wpe")):
            scale = 1.0 if cfg.normed and end.endswith("wte") else 0.5 if end.endswith("kind") else std
        else:
            scale = std * math.sqrt(1024 / p.shape[1])
            scale *= depth if end.endswith(("attn_out.linear", "ff_v_proj.linear")) else 1.0
        return torch.randn(p.shape, generator=gen) * scale


@cache
def _published(name: vp.Betas, start: float, end: float, steps: int) -> Tensor:
    return vp.levels_of(vp.betas_of(name, start, end, steps))


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def kinds_of(ids: Tensor, mask_id: int | None, noisy: Tensor | None, dropped: Tensor | None) -> Tensor:
    """Kinds of rows: noised where `noisy`, null where `dropped` (a guidance lane's hidden prompt), masked where the
    mask id stands, else clean."""
    kinds = torch.zeros_like(ids)
    if mask_id is not None:
        kinds[ids == mask_id] = MASKED
    if noisy is not None:
        kinds[noisy] = NOISY
    if dropped is not None:
        kinds[dropped] = NULL
    return kinds


def summary(seen: Sequence[Tensor], keys: tuple[Tensor, Tensor, Tensor], rows: tuple[int, int], length: int) -> Border:
    """What a layer of one sequence knows of the rows outside of `rows`, from a forward over all `length` of them.

    Args:
        seen: the rows [1, T, C] of both shifts. keys: k, v [1, T, C] and lam [1, C].
    """
    start, stop = rows
    left, right = states(*keys, at=[start, stop])
    ends = tuple(torch.tensor([there], device=keys[0].device) for there in (start > 0, stop < length))
    # copies: a view of one row would keep the rows of all
    beside = tuple((s[:, max(start - 1, 0)].clone(), s[:, min(stop, length - 1)].clone()) for s in seen)
    before, after = (State(*(t[:, i].clone() for t in side)) for i, side in enumerate((left, right)))
    return Border(before, after, beside, (ends[0], ends[1]))
