"""The whole decoding idea on one page (torch only): the oracle the engine is tested against.

A diffusion LM maps a canvas with holes to a distribution for every hole. Decoding asks it again and again, each time
keeping the answers it is surest of, block by block from left to right, until no hole is left. Everything else in
`unmask` (caches, batches, events, profiles) makes this loop fast, visible or exactly like somebody's reference; none
of it changes the idea.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def generate(
    logits_fn: Callable[[Tensor], Tensor],
    prompt: list[int],
    gen_length: int,
    mask_id: int,
    *,
    block_length: int = 32,
    threshold: float | None = 0.9,
    steps: int | None = None,
    eos_ids: tuple[int, ...] = (),
    shift: int = 0,
    cfg_scale: float = 0.0,
) -> tuple[list[int], int]:
    """Greedy decoding of one prompt.

    Args:
        logits_fn: ids [B, T] -> logits [B, T, V]; the whole model.
        threshold: commit every hole of the block at or above this confidence, the best always; or
        steps: commit the most confident ones in a fixed number of passes, shared by the blocks (then threshold is
        unused). eos_ids: stop when one of them is settled with no hole before it. shift: row p - shift speaks for
        position p (Dream: 1). cfg_scale: LLaDA's classifier-free guidance, 0 = off.

    Returns:
        The answer's ids, cut before EOS, and the number of forwards.
    """
    start, stop = len(prompt), len(prompt) + gen_length
    canvas = torch.tensor(prompt + [mask_id] * gen_length)
    decided = torch.arange(stop) < start
    blocks = [(a, min(a + block_length, stop)) for a in range(start, stop, block_length)]
    nfe = 0
    for a, b in blocks:
        passes = max(1, steps // len(blocks)) if steps else 0
        base, extra = divmod(b - a, passes) if passes else (0, 0)
        done = 0
        while not bool(decided[a:b].all()):
            holes = (~decided[a:b]).nonzero().flatten() + a
            token, confidence = propose(logits_fn, canvas, decided, start, holes, mask_id, shift, cfg_scale)
            nfe += 1
            order = torch.sort(confidence, descending=True, stable=True).indices
            if passes:
                take = order[: base + (done < extra) if done < passes else len(order)]
            else:
                take = order[: max(1, int((confidence >= (threshold or 0.0)).sum()))]
            canvas[holes[take]], decided[holes[take]] = token[take], True
            done += 1
            end = settled_eos(canvas, decided, start, eos_ids)
            if end is not None:
                return canvas[start:end].tolist(), nfe
    return canvas[start:].tolist(), nfe


def propose(
    logits_fn: Callable[[Tensor], Tensor],
    canvas: Tensor,
    decided: Tensor,
    start: int,
    holes: Tensor,
    mask_id: int,
    shift: int,
    cfg_scale: float,
) -> tuple[Tensor, Tensor]:
    """The best token and its probability at each hole; the mask id itself is never proposed."""
    lanes = [canvas]
    if cfg_scale > 0:
        lanes.append(torch.where(torch.arange(len(canvas)) < start, mask_id, canvas))
    rows = (holes - shift).clamp(min=0)
    logits = logits_fn(torch.stack(lanes))[:, rows].float()
    mixed = logits[0] if cfg_scale <= 0 else logits[1] + (cfg_scale + 1) * (logits[0] - logits[1])
    mixed[:, mask_id] = -torch.inf
    confidence, token = mixed.softmax(-1).max(-1)
    return token, confidence


def settled_eos(canvas: Tensor, decided: Tensor, start: int, eos_ids: tuple[int, ...]) -> int | None:
    """The first EOS of the answer that has no hole before it."""
    for position in range(start, len(canvas)):
        if not bool(decided[position]):
            return None
        if int(canvas[position]) in eos_ids:
            return position
    return None
