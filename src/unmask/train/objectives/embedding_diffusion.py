"""The objective of BiRWKV-LLaDA: continuous diffusion over token vectors, LLaDA masking, or both in one model.

Enters: a net over the recurrent backbone, a batch of clean ids, an explicit generator. Leaves: a `Loss` with both
parts named. Mode T masks each target with probability t ~ U(1e-3, 1) and divides its cross-entropy by t: a bound on
the NLL per token. Mode D noises the vectors of all targets to a level g of the schedule: cross-entropy of the tokens
at every level (CDCD) and, weighted, the squared error of the clean vector, the noise or the velocity. What is not a
target is clean, and in the loss nowhere. Sources: LLaDA (arXiv 2502.09992), CDCD (2211.15089), Plaid (2305.18619), SED
(2211.04236), min-SNR (2303.09556), classifier-free guidance (2207.12598).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unmask.core import catalog
from unmask.core.errors import ConfigError
from unmask.models.birwkv_net import MASKED, NOISY, NULL, BiRWKV
from unmask.noise.gaussian import Schedule, bounds, elbo_weight, min_snr_weight, prior_kl, shifted_to, slope, stratified
from unmask.ops import vp
from unmask.train.batch import Batch
from unmask.train.forward import Net
from unmask.train.objectives.loss import Loss

SMALLEST = 1e-3
"""The smallest masking probability."""
BANDS = (-2.0, 1.0)
"""Where the logged cross-entropy is split, in nats around the level at which tokens can be told apart."""


@dataclass(frozen=True)
class EmbeddingDiffusion:
    """Mode T for a share of the rows, mode D for the others.

    Args:
        mode: "mixed"; "token" and "diffusion" are one of the two alone. token_share: of mode T in "mixed" (published:
            0.3).
        schedule: noise levels, a spec of `unmask ls noises`.
        centre: shift the schedule so that its median level lies one nat below the level at which tokens can be told
            apart (2 ln V / E), whatever the vocabulary and the vectors' size are.
        token_loss_weight: of mode D's cross-entropy; None is 1 for prediction "sample" and 0.1 (published) for the
            others, and for "sample" where a head of its own says it (conditioning "origin").
        vector_loss_weight: of mode D's squared error; None is 0 for "sample" (cross-entropy alone suffices there),
            else 1.
        weighting: of that error by level: "min_snr" counts it as min(SNR, 5) of the clean vector's, "elbo" as the bound
            does, "none" as it is.
        self_conditioning: share of the rows of mode D that first see their own estimate (a forward more, without
            gradient).
        prompt_dropout: share of the rows whose prompt is hidden, for guidance.
        prefix: share of the rows without a prompt (plain text) whose beginning, up to half of the row, is kept clean as
            one: without it such data teaches no continuation under diffusion, and prompt_dropout has nothing to hide.
        hybrid: share of the rows of mode D in which some targets are masked instead of noised, as decoding by blocks
            needs.
        rounding_weight: of a further cross-entropy at the cleanest level (Diffusion-LM's rounding).
    """

    kind: ClassVar[str] = "embedding-diffusion"
    shift: ClassVar[int] = 0
    mode: Literal["mixed", "diffusion", "token"] = "mixed"
    token_share: float = 0.3
    schedule: str = "logsnr_linear"
    centre: bool = True
    token_loss_weight: float | None = None
    vector_loss_weight: float | None = None
    weighting: Literal["min_snr", "elbo", "none"] = "min_snr"
    self_conditioning: float = 0.5
    prompt_dropout: float = 0.1
    prefix: float = 0.0
    hybrid: float = 0.0
    rounding_weight: float = 0.0
    mask_id: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for name in ("token_share", "self_conditioning", "prompt_dropout", "prefix", "hybrid"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"objective.{name} is out of range", expected="0 to 1", got=str(getattr(self, name)))
        for name in ("token_loss_weight", "vector_loss_weight", "rounding_weight"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"objective.{name} is out of range", expected="0 or more", got=str(value))
        if self.token_loss_weight == 0 and self.vector_loss_weight == 0 and self.mode != "token":
            raise ConfigError("objective has no loss", expected="token_loss_weight or vector_loss_weight above 0")
        catalog.parse("noise", self.schedule)

    def bound(self, mask_id: int | None, eos_id: int) -> EmbeddingDiffusion:
        """A copy that knows its mask id."""
        out = replace(self)
        object.__setattr__(out, "mask_id", mask_id)
        return out

    # ---- levels ------------------------------------------------------------------------------------------------------

    def levels(self, vocab: int, dim: int) -> Schedule:
        """The schedule for a vocabulary and vectors of that size."""
        found: Schedule = catalog.parse("noise", self.schedule)
        return shifted_to(found, vocab, dim) if self.centre else found

    def range(self, vocab: int, dim: int) -> tuple[float, float]:
        """Lowest and highest level, as a model's config keeps them."""
        high, low = bounds(self.levels(vocab, dim))
        return low, high

    # ---- the loss ----------------------------------------------------------------------------------------------------

    def __call__(self, net: Net, batch: Batch, rng: torch.Generator) -> Loss:
        model = recurrent(net)
        view = self._view(model, self._prompted(batch.without_pads(), rng), rng)
        hint, extra = self._hint(net, view, rng)
        return self._loss(net, view, hint, extra, rng)

    def held_out(self, net: Net, batch: Batch, rng: torch.Generator) -> tuple[float, int]:
        """A bound on the NLL in nats: LLaDA's for models that know masks, else that of the diffusion (cross-entropy at
        the cleanest level, prior, and the integral of the squared error over the levels)."""
        batch = batch.without_tail().without_pads()
        batch = replace(batch, hidden=torch.zeros_like(batch.hidden))
        masked = replace(
            self, mode="token" if self.mode != "diffusion" else "diffusion", prompt_dropout=0.0, hybrid=0.0
        )
        bound = masked.bound(self.mask_id, 0)
        model, count = recurrent(net), int(batch.scored.sum())
        view = bound._view(model, batch, rng)
        rows = Rows.of(net, view, None)
        if self.mode != "diffusion":
            weight = 1.0 / view.t[:, None].expand_as(view.masked)[view.spoken]
            return float((rows.ce * weight).sum()), count
        return bound._diffusion_bound(net, view, rows, count, rng)

    def shown(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One draw of masks (mode D noises every target, which no picture of tokens shows)."""
        cut, own = targets(batch)
        share = SMALLEST + (1 - SMALLEST) * stratified(own.shape[0], rng)
        hidden = ((torch.rand(own.shape, generator=rng) < share[:, None]) | cut[:, None]) & own
        return (own if self.mode == "diffusion" else hidden), batch.scored

    def _loss(self, net: Net, view: View, hint: Tensor | None, extra: float, rng: torch.Generator) -> Loss:
        model = recurrent(net)
        rows = Rows.of(net, view, hint)
        per_row = view.scored.sum(1).clamp(min=1)
        share = (1.0 / per_row / view.ids.shape[0])[:, None].expand_as(view.scored)[view.spoken]
        of_token = (view.token[:, None] & view.masked)[view.spoken]
        weight = torch.where(of_token, 1.0 / view.t[:, None].expand_as(view.masked)[view.spoken], self._ce(model))
        total = (rows.ce * weight * share).sum()
        metrics = {}
        noisy, vector = view.noisy[view.spoken], self._vector(model)
        if vector and bool(noisy.any()):
            error = self._error(model, rows, view)
            total = total + vector * (error * share[noisy]).sum()
            metrics["vector_loss"] = float(error.detach().mean())
        positions = float(view.real.sum()) + extra
        if self.rounding_weight and bool(noisy.any()):
            near = view.at_level(bounds(view.schedule)[0], rng)
            total = total + self.rounding_weight * _noised_ce(net, near)
            positions += float(near.real.sum())
        metrics = {"loss": float(total.detach()), **metrics, **_parts(rows, view), "positions": positions}
        return Loss(total, metrics | {"table_cosine": _cosine(model)})

    def _error(self, model: BiRWKV, rows: Rows, view: View) -> Tensor:
        """Weighted squared error per noised target, mean over the vector's numbers."""
        kind, noisy = model.cfg.prediction, view.noisy
        level = view.level[:, None].expand_as(noisy)[noisy]
        clean, own = view.clean[noisy].detach(), noisy[view.spoken]
        if model.by_tokens:
            said, target = model.expected(rows.logits[own]), clean
        else:
            tau = rows.tau[noisy.nonzero()[:, 0]]
            said, target = model.vector(rows.hidden[own], tau), vp.target(clean, view.eps[noisy], level, kind)
        error = (said - target).square().mean(-1)
        if self.weighting == "none":
            return error
        if self.weighting == "min_snr":
            return error * min_snr_weight(level, kind)
        of_clean = {"sample": 0.0, "epsilon": level, "v_prediction": F.softplus(level)}[kind]
        weight = elbo_weight(level, slope(view.schedule, view.t)[:, None].expand_as(noisy)[noisy])
        return (
            error
            * view.clean.shape[-1]
            * (weight * torch.exp(-torch.as_tensor(of_clean)) if kind != "sample" else weight)
        )

    def _ce(self, model: BiRWKV) -> float:
        if self.token_loss_weight is not None:
            return self.token_loss_weight
        return 1.0 if model.by_tokens else 0.1

    def _vector(self, model: BiRWKV) -> float:
        if self.vector_loss_weight is not None:
            return self.vector_loss_weight
        return 0.0 if model.by_tokens else 1.0

    def _hint(self, net: Net, view: View, rng: torch.Generator) -> tuple[Tensor | None, float]:
        """The model's own estimate for some rows of mode D, zero for the others; and the positions it cost."""
        chosen = ~view.token & (torch.rand(view.token.shape, generator=rng) < self.self_conditioning).to(
            view.token.device
        )
        chosen = chosen & view.noisy.any(1)
        if not bool(chosen.any()):
            return None, 0.0
        part = view.rows(chosen)
        with torch.no_grad():
            rows = Rows.of(net, part, None)
            model, own = recurrent(net), part.noisy[part.spoken]
            at = part.noisy.nonzero()[:, 0]
            said = model.denoised(
                rows.hidden[own], rows.tau[at], rows.logits[own], part.vectors[part.noisy], part.level[at]
            )
        hint = torch.zeros_like(view.vectors)
        inside = torch.zeros_like(part.vectors)
        inside[part.noisy] = said.to(inside.dtype)
        hint[chosen] = inside
        return hint.detach(), float(part.real.sum())

    # ---- noise -------------------------------------------------------------------------------------------------------

    def _prompted(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Some rows that are scored from their first position on with a beginning that is not."""
        if not self.prefix:
            return batch
        rows, width = batch.ids.shape
        chosen = (torch.rand(rows, generator=rng) < self.prefix).to(batch.ids.device) & batch.scored[:, 0]
        share = torch.rand(rows, generator=rng).to(batch.ids.device) / 2
        cut = (batch.real.sum(1) * share).long().clamp(min=1)
        given = chosen[:, None] & (torch.arange(width, device=batch.ids.device) < cut[:, None])
        return replace(batch, scored=batch.scored & ~given)

    def _view(self, model: BiRWKV, batch: Batch, rng: torch.Generator) -> View:
        """One draw of modes, times and noise."""
        assert self.mask_id is not None
        rows, device, cfg = batch.ids.shape[0], batch.ids.device, model.cfg
        cut, scored = targets(batch)
        share = {"mixed": self.token_share, "token": 1.0, "diffusion": 0.0}[self.mode]
        token = torch.rand(rows, generator=rng) < share
        t = torch.empty(rows)
        for own in (token, ~token):
            t[own] = stratified(int(own.sum()), rng)
        t = torch.where(token, SMALLEST + (1 - SMALLEST) * t, t)
        t = torch.where(token & cut.cpu(), 1.0, t)
        draw = torch.rand(batch.ids.shape, generator=rng)
        mixed = ~token & (torch.rand(rows, generator=rng) < self.hybrid)
        thinned = torch.rand(rows, generator=rng)
        limit = torch.where(token, t, torch.where(mixed, thinned, torch.zeros(rows)))
        masked = (draw < limit[:, None]).to(device) & scored
        dropped = (torch.rand(rows, generator=rng) < self.prompt_dropout).to(device)
        eps = torch.randn((*batch.ids.shape, cfg.embed_dim), generator=rng).to(device)
        schedule = self.levels(cfg.vocab_size, cfg.embed_dim)
        return View(
            ids=batch.ids,
            real=batch.real,
            scored=scored,
            token=token.to(device),
            t=t.to(device),
            level=schedule.logsnr(t).float().to(device),
            masked=masked,
            noisy=scored & ~masked & ~token.to(device)[:, None],
            dropped=(batch.real & ~batch.scored) & dropped[:, None],
            eps=eps,
            clean=model.table[batch.ids].float(),
            schedule=schedule,
        )

    def _diffusion_bound(self, net: Net, view: View, rows: Rows, count: int, rng: torch.Generator) -> tuple[float, int]:
        model = recurrent(net)
        high, low = bounds(view.schedule)
        own = view.noisy[view.spoken]
        at = view.noisy.nonzero()[:, 0]
        said = model.denoised(
            rows.hidden[own], rows.tau[at], rows.logits[own], view.vectors[view.noisy], view.level[at]
        )
        error = (said - view.clean[view.noisy]).square().sum(-1)
        per_t = elbo_weight(view.level, slope(view.schedule, view.t))[at]
        near = Rows.of(net, view.at_level(high, rng), None)
        prior = prior_kl(model.cfg.embed_dim, low) * count
        return float((error * per_t).sum() + near.ce.sum()) + prior, count


def targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which rows have a cut, [B], and where noise falls, [B, T]: in those rows on everything behind it and on nothing
    else, as in LLaDA's objective."""
    cut = batch.hidden.any(1)
    return cut, torch.where(cut[:, None], batch.scored & batch.hidden, batch.scored)


@dataclass(frozen=True)
class View:
    """One noised batch. token [B]: rows of mode T; t [B] the time, level [B] its log SNR; masked, noisy [B, T]: what
    is hidden and what is noised; dropped [B, T]: prompts that are hidden for guidance; eps, clean [B, T, E]."""

    ids: Tensor
    real: Tensor
    scored: Tensor
    token: Tensor
    t: Tensor
    level: Tensor
    masked: Tensor
    noisy: Tensor
    dropped: Tensor
    eps: Tensor
    clean: Tensor
    schedule: Schedule

    @cached_property
    def spoken(self) -> Tensor:
        """Where the loss speaks, [B, T]."""
        return self.masked | self.noisy

    @cached_property
    def vectors(self) -> Tensor:
        """Clean vectors, noised where `noisy`."""
        noised = vp.add_noise(self.clean, self.eps, self.level)
        return torch.where(self.noisy[..., None], noised, self.clean)

    @cached_property
    def kinds(self) -> Tensor:
        kinds = torch.zeros_like(self.ids)
        kinds[self.masked], kinds[self.noisy], kinds[self.dropped] = MASKED, NOISY, NULL
        return kinds

    def rows(self, chosen: Tensor) -> View:
        """The chosen rows."""
        own: dict[str, Any] = {
            k: v[chosen] if isinstance(v, Tensor) else v for k, v in vars(self).items() if k in FIELDS
        }
        return View(**own)

    def at_level(self, level: float, rng: torch.Generator) -> View:
        """The rows of mode D with fresh noise at one level."""
        part = self.rows(~self.token)
        eps = torch.randn(part.eps.shape, generator=rng).to(part.eps.device)
        return replace(part, level=torch.full_like(part.level, level), eps=eps)


FIELDS = frozenset(View.__dataclass_fields__)


@dataclass(frozen=True)
class Rows:
    """What a forward said at the speaking positions, in row-major order: hidden [n, C], logits [n, V], ce [n]; and the
    condition of every sequence."""

    hidden: Tensor
    logits: Tensor
    ce: Tensor
    tau: Tensor

    @staticmethod
    def of(net: Net, view: View, hint: Tensor | None) -> Rows:
        model = recurrent(net)
        tau = model.condition(view.level, view.noisy.any(1))
        x = model.enter(view.vectors, hint, view.kinds)
        hidden = walk(net, x, tau, view.real)[view.spoken]
        level = torch.where(view.noisy, view.level[:, None], torch.inf)[view.spoken]
        with torch.autocast(hidden.device.type, enabled=False):
            logits = model.speak(hidden.float(), view.vectors[view.spoken], level)
            ce = F.cross_entropy(logits, view.ids[view.spoken], reduction="none")
        return Rows(hidden, logits, ce, tau)


def walk(net: Net, x: Tensor, tau: Tensor, real: Tensor) -> Tensor:
    """All layers and the final norm over [B, T, C]; with `net.checkpointing` layers are computed again in the backward
    pass."""
    model = recurrent(net)
    if not (net.checkpointing and torch.is_grad_enabled()):
        return model.run(x, tau, real)
    mask = None if bool(real.all()) else real
    for block in model.blocks:
        x = checkpoint(block, x, tau, mask, use_reentrant=False)
    out: Tensor = model.transformer["ln_f"](x)
    return out


def recurrent(net: Net) -> BiRWKV:
    """The net's backbone, which must be the recurrent one."""
    if not isinstance(net.model, BiRWKV):
        raise ConfigError(
            "objective embedding-diffusion", expected="a birwkv model (d_model, n_layers)", got="a transformer"
        )
    return net.model


def _noised_ce(net: Net, view: View) -> Tensor:
    """Mean cross-entropy of the noised targets."""
    return Rows.of(net, view, None).ce[view.noisy[view.spoken]].mean()


def _parts(rows: Rows, view: View) -> dict[str, float]:
    """Mean cross-entropy of either mode, that of mode D by level too, in nats."""
    ce, noisy = rows.ce.detach(), view.noisy[view.spoken]
    hidden = (view.token[:, None] & view.masked)[view.spoken]
    found = {"ce_masked": ce[hidden], "ce_noised": ce[noisy]}
    level = view.level[:, None].expand_as(view.noisy)[view.spoken]
    centre = math.log(2.0 * math.log(max(2, rows.logits.shape[1])) / view.clean.shape[-1])
    low, high = (centre + band for band in BANDS)
    found |= {
        "ce_deep": ce[noisy & (level < low)],
        "ce_mid": ce[noisy & (level >= low) & (level < high)],
        "ce_near": ce[noisy & (level >= high)],
    }
    return {name: float(values.mean()) for name, values in found.items() if values.numel()}


def _cosine(model: BiRWKV) -> float:
    """Largest cosine between two of up to 256 rows of the token table: 1 means that tokens have become the same."""
    with torch.no_grad():
        table = model.table
        rows = table[torch.randperm(table.shape[0], generator=torch.Generator().manual_seed(0))[:256].to(table.device)]
        unit = F.normalize(rows.float(), dim=-1)
        likeness = unit @ unit.T
        return float((likeness - 2 * torch.eye(len(unit), device=likeness.device)).max())
