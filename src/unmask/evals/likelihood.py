"""Conditional log-likelihood of an answer under a masked diffusion LM: LLaDA's Monte-Carlo bound.

Enters: prompt and answer ids. Leaves: an estimate of log p(answer | prompt), in nats. Each round masks a stratified
number of answer tokens per row and sums cross-entropy / mask ratio over the masked ones. Source: LLaDA, arXiv
2502.09992, eq. 14 and Algorithm 3; get_log_likelihood.py of the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unmask.core.errors import RequestError
from unmask.models.denoiser import TransformerDenoiser


def strata(first: int, rows: int, length: int) -> Tensor:
    """Masked tokens per row, [rows]: evenly spread over 1..length from a random first count, wrapped.

    Rounds half to even, as the reference does.
    """
    counts = torch.round(torch.linspace(first, first + (rows - 1) * (length / rows), steps=rows)).long()
    return (counts - 1) % length + 1


def noisy_rows(prompt: Tensor, answer: Tensor, rows: int, mask_id: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """One round of the forward process: ids [rows, P + A] with answer tokens masked, and the mask ratio per row
    [rows].
    """
    length = answer.shape[0]
    first = int(torch.randint(1, length + 1, (), generator=rng))
    counts = strata(first, rows, length)
    order = torch.stack([torch.randperm(length, generator=rng) for _ in range(rows)])
    masked = order < counts[:, None]
    noisy = torch.where(masked, mask_id, answer[None].expand(rows, -1))
    return torch.cat((prompt[None].expand(rows, -1), noisy), 1), counts / length


@torch.inference_mode()
def round_value(
    denoiser: TransformerDenoiser, noisy: Tensor, target: Tensor, ratio: Tensor, prompt_len: int, cfg_scale: float = 0.0
) -> float:
    """The estimate of one round.

    Args:
        noisy: ids [b, L] with masked answer tokens; target: clean ids [L]; ratio: mask ratio per row [b].
        cfg_scale: LLaDA's scale; the unconditional half has the prompt masked.
    """
    mask_id = denoiser.traits.mask_id
    assert mask_id is not None
    rows, columns = (noisy == mask_id).nonzero(as_tuple=True)
    hidden = [_states(denoiser, noisy, rows, columns)]
    if cfg_scale > 0:
        blind = noisy.clone()
        blind[:, :prompt_len] = mask_id
        hidden.append(_states(denoiser, blind, rows, columns))
    total = 0.0
    for a in range(0, rows.numel(), 64):
        logits = [denoiser.model.logits(h[a : a + 64]) for h in hidden]
        mixed = logits[0] if cfg_scale <= 0 else logits[1] + (cfg_scale + 1) * (logits[0] - logits[1])
        losses = F.cross_entropy(mixed, target[columns[a : a + 64]].to(mixed.device), reduction="none")
        total += float((losses.float().cpu() / ratio[rows[a : a + 64]]).sum())
    return -total / noisy.shape[0]


def _states(denoiser: TransformerDenoiser, ids: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    hidden = denoiser.model(ids.to(denoiser.device))
    return hidden[rows, denoiser.support(columns)]


def log_likelihood(
    denoiser: TransformerDenoiser,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    mc_num: int = 128,
    batch: int = 16,
    cfg_scale: float = 0.0,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean over mc_num / batch rounds and its standard error, in nats.

    Raises:
        RequestError: empty answer, an autoregressive model, or mc_num not a multiple of batch.
    """
    if denoiser.traits.mask_id is None:
        raise RequestError("likelihood bound", expected="a masked diffusion model", got="an autoregressive one")
    if not answer:
        raise RequestError("answer", expected="at least one token", got="nothing")
    if batch < 1 or mc_num < 1 or mc_num % batch:
        raise RequestError("mc_num", expected=f"a multiple of batch ({batch})", got=str(mc_num))
    rng = torch.Generator().manual_seed(seed)
    p, a = torch.tensor(list(prompt), dtype=torch.long), torch.tensor(list(answer))
    values = []
    for _ in range(1 if len(answer) == 1 else mc_num // batch):
        noisy, ratio = noisy_rows(p, a, 1 if len(answer) == 1 else batch, denoiser.traits.mask_id, rng)
        values.append(round_value(denoiser, noisy, torch.cat((p, a)), ratio, len(p), cfg_scale))
    found = torch.tensor(values, dtype=torch.float64)
    error = float(found.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
    return float(found.mean()), error
