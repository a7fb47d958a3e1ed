"""From hidden rows to candidates: token, confidence and, when asked, margin and entropy.

No tensor of [batch, length, vocabulary] ever exists: at most `CHUNK` rows of logits, and where only the best token and
its probability are asked for (greedy decoding), at most `TILE_ROWS` x `TILE` logits, which stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.core.types import Candidates, Head, Sampling
from unmask.ops.score import cpu, reference

CHUNK = 64
TILE, TILE_ROWS = 16_384, 128
"""A tile of logits is at most as large as 16 rows of the largest published vocabulary."""
Uniforms = Callable[[int, int], Tensor]
"""(first row, last row) -> the random numbers of these rows: float64 [n] or, for gumbel, [n, V]."""


def score(
    hidden: Sequence[Tensor],
    head: Head,
    sampling: Sampling,
    *,
    mask_id: int | None = None,
    combine: Callable[[Sequence[Tensor]], Tensor] | None = None,
    wanted: tuple[str, ...] = (),
    uniforms: Uniforms | None = None,
    table: Tensor | None = None,
    clean: Sequence[Tensor] | None = None,
) -> Candidates:
    """Candidates for W rows.

    Args:
        hidden: one [W, C] tensor per guidance lane, the conditional first.
        head: output matrix and scale.
        sampling: how tokens and confidences are taken.
        mask_id: excluded before the softmax when `sampling.exclude_mask`.
        combine: guidance over the lanes' logits.
        wanted: any of "margin", "entropy", "mean" (with it: "nearest").
        uniforms: random numbers; needed when the temperature is above 0.
        table: the tokens' vectors [V, E], for "mean": their expectation under the tempered, filtered distribution.
        clean: one [W, E] tensor per lane if the model says the clean vectors itself; "mean" is their combination then.

    Returns:
        Candidates with tensors [W] on the CPU.
    """
    if combine is None and not wanted and _is_greedy(sampling):
        closed = _closed(sampling, mask_id)
        pairs = [greedy(rows, head, closed) for rows in hidden[0].split(TILE_ROWS)]
        return Candidates(_joined([t for t, _ in pairs]), _joined([p for _, p in pairs]))
    parts, means = [], []
    for a in range(0, hidden[0].shape[0], CHUNK):
        b = min(a + CHUNK, hidden[0].shape[0])
        lanes = [logits_of(h[a:b], head) for h in hidden]
        logits = lanes[0] if combine is None else combine(lanes)
        parts.append(score_logits(logits, sampling, mask_id, wanted, uniforms(a, b) if uniforms else None))
        if clean is None and table is not None:
            means.append(torch.softmax(shape(logits, sampling).float(), -1) @ table.float())
    if not parts:
        none = torch.zeros(0)
        return Candidates(none.long(), none, none, none, None if table is None else none.new_zeros(0, table.shape[1]))
    if clean is not None and "mean" in wanted:
        means = [clean[0] if combine is None else combine(clean)]
    token, prob, margin, entropy = zip(*parts, strict=True)
    mean = _joined(means) if means else None
    best = _joined(token)
    nearest = table.float().cpu()[best] if table is not None and "nearest" in wanted else None
    return Candidates(best, _joined(prob), _maybe(margin), _maybe(entropy), mean, nearest)


def _is_greedy(sampling: Sampling) -> bool:
    """Whether the best token and its float32 probability say everything."""
    plain = sampling.temperature <= 0 and sampling.top_p is None and sampling.top_k is None
    return plain and sampling.precision == "float32" and not sampling.demote


def _closed(sampling: Sampling, mask_id: int | None) -> list[int]:
    """Ids that can never be chosen."""
    return [*sampling.suppress, *((mask_id,) if sampling.exclude_mask and mask_id is not None else ())]


def greedy(hidden: Tensor, head: Head, closed: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Best token (ties: lowest id) and its float32 probability for rows [n, C], over tiles of the vocabulary."""
    found = []
    width = TILE * max(1, TILE_ROWS // max(1, hidden.shape[0]))  # few rows: fewer, wider products, as many logits
    for start in range(0, head.weight.shape[0], width):
        logits = logits_of(hidden, Head(head.weight[start : start + width], head.scale))
        inside = [i - start for i in closed if start <= i < start + logits.shape[1]]
        if inside:
            logits[:, inside] = -torch.inf
        index, largest, mass = best(logits)
        found.append((index + start, largest, mass))
    index, largest, mass = (torch.stack(parts) for parts in zip(*found, strict=True))
    tile = largest.argmax(0, keepdim=True)
    top = largest.gather(0, tile)
    # a tile that is closed altogether has no mass, and -inf minus -inf must not make it NaN
    total = (mass * torch.where(largest == top, 1.0, (largest - top).exp())).sum(0)
    return index.gather(0, tile)[0], total.reciprocal()


def best(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logits [n, V] -> index of the largest (ties: lowest), its value, and sum exp(x - largest), in float32."""
    if cpu.takes(logits):
        return cpu.best(logits)
    index, largest, mass = reference.best(logits)
    return index, largest.float(), mass.float()


def describe() -> str:
    """Which kernel runs for bfloat16 on the CPU; plain torch everywhere else."""
    return cpu.kernel().why


def _joined(chunks: Sequence[Tensor]) -> Tensor:
    return (chunks[0] if len(chunks) == 1 else torch.cat(list(chunks))).cpu()


def _maybe(chunks: Sequence[Tensor | None]) -> Tensor | None:
    return None if chunks[0] is None else _joined([c for c in chunks if c is not None])


def logits_of(hidden: Tensor, head: Head) -> Tensor:
    """hidden [n, C] -> [n, V] in the model's dtype."""
    out = F.linear(hidden, head.weight)
    return out if head.scale == 1.0 else out * head.scale


def score_logits(
    logits: Tensor, sampling: Sampling, mask_id: int | None, wanted: tuple[str, ...], uniform: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Token, confidence, margin, entropy for logits [n, V]; the logits tensor may be overwritten."""
    closed = _closed(sampling, mask_id)
    if closed:
        logits[:, closed] = -torch.inf
    shaped = shape(logits, sampling)
    token = draw(logits, shaped, sampling, uniform)
    base = shaped if sampling.filtered_confidence else logits
    if sampling.demote:
        base = base.clone() if base is logits or base is shaped else base
        base[:, list(sampling.demote)] = -torch.inf
    return token, *confidence(base, token, sampling.precision, wanted)


def confidence(
    logits: Tensor, token: Tensor, precision: str, wanted: tuple[str, ...]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Probability of `token`, top-1 minus top-2 probability, and negative entropy (sum p ln(p + 1e-10), Dream)."""
    wide = logits if precision == "model" else logits.to(getattr(torch, precision))
    if not wanted and precision != "model":
        picked = wide.gather(-1, token[:, None])[:, 0]
        return (picked - torch.logsumexp(wide, -1)).exp(), None, None
    probs = torch.softmax(wide, -1)
    prob = probs.gather(-1, token[:, None])[:, 0]
    margin = entropy = None
    if "margin" in wanted:
        best = probs.topk(2, dim=-1).values
        margin = best[:, 0] - best[:, 1]
    if "entropy" in wanted:
        entropy = (probs * torch.log(probs + 1e-10)).sum(-1)
    return prob, margin, entropy


def shape(logits: Tensor, sampling: Sampling) -> Tensor:
    """Temperature, then nucleus, then top-k, as Dream applies them; the same tensor when nothing applies."""
    out = logits
    if sampling.temperature > 0 and not sampling.gumbel:
        if sampling.precision == "model":
            out = out / sampling.temperature
        else:  # the best logit becomes 0, so that a tiny temperature cannot overflow
            wide = out.float()
            out = (wide - wide.amax(-1, keepdim=True)) / sampling.temperature
    low = torch.finfo(out.dtype).min
    if sampling.top_p is not None and sampling.top_p < 1:
        ranked, order = out.sort(dim=-1, descending=True, stable=True)
        before = ranked.softmax(-1).cumsum(-1).roll(1, dims=-1)
        before[:, 0] = 0.0
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before > sampling.top_p)
        out = out.masked_fill(drop, low)
    if sampling.top_k is not None:
        least = out.topk(min(sampling.top_k, out.shape[-1]), dim=-1).values[:, -1:]
        out = out.masked_fill(out < least, low)
    return out


def draw(logits: Tensor, shaped: Tensor, sampling: Sampling, uniform: Tensor | None) -> Tensor:
    """Token ids [n]: the best (ties: lowest id), or one drawn by its uniform number."""
    if sampling.temperature <= 0:
        return shaped.argmax(-1)
    if uniform is None:
        raise ValueError("sampling with a temperature needs random numbers")
    uniform = uniform.to(logits.device)
    if sampling.gumbel:
        return (logits.double().exp() / (-uniform.log()) ** sampling.temperature).argmax(-1)
    mass = shaped.float().softmax(-1).cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True).clamp_(max=mass.shape[-1] - 1)[:, 0]
