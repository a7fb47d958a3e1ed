"""Denoisers whose distribution is known in full, and sums over every mask or order, written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, permutations

import torch
from torch import Tensor

from unmask.core.types import BlockCausal, Full, Traits
from unmask.evals.likelihood import DenseDenoiser
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.transformer import Transformer, TransformerConfig

SYMBOLS, PLACES, HOLE = 3, 4, 3
VOCAB, MASK, EOS = 32, 31, 30


def joint(seed: int, sharpness: float = 1.0) -> Tensor:
    """A distribution over 3 symbols at 4 places, [3, 3, 3, 3]."""
    draw = torch.Generator().manual_seed(seed)
    table = sharpness * torch.randn(SYMBOLS**PLACES, generator=draw, dtype=torch.float64)
    return table.softmax(0).view([SYMBOLS] * PLACES)


def from_joint(p: Tensor) -> DenseDenoiser:
    """True conditionals for every set of holes; the prompt is ignored."""
    known: dict[tuple[int, ...], Tensor] = {}

    def conditionals(answer: tuple[int, ...]) -> Tensor:
        if answer not in known:
            holes = [i for i, t in enumerate(answer) if t == HOLE]
            rest = p[tuple(slice(None) if t == HOLE else t for t in answer)]
            out = torch.full((PLACES, SYMBOLS + 1), -1e9, dtype=torch.float64)
            for axis, place in enumerate(holes):
                others = [a for a in range(len(holes)) if a != axis]
                one = rest.sum(others) if others else rest
                out[place, :SYMBOLS] = (one / one.sum()).log()
            known[answer] = out
        return known[answer]

    def logits(ids: Tensor) -> Tensor:
        before = torch.zeros(ids.shape[1] - PLACES, SYMBOLS + 1, dtype=torch.float64)
        return torch.stack([torch.cat([before, conditionals(tuple(row))]) for row in ids[:, -PLACES:].tolist()])

    return DenseDenoiser(logits, Traits(HOLE), SYMBOLS + 1)


def transformer(traits: Traits, seed: int = 3, std: float = 0.3) -> TransformerDenoiser:
    """A tiny backbone with random weights."""
    backbone = Transformer(TransformerConfig(VOCAB, 16, 2, 2, 1, 8, 24)).eval()
    backbone.init_weights(seed, std)
    return TransformerDenoiser(backbone, traits)


FULL = Traits(MASK, eos_ids=(EOS,))
SHIFTED = Traits(MASK, shift=1, eos_ids=(EOS,))
BLOCK = Traits(MASK, shift=1, attention=BlockCausal(4), grid_origin="zero", eos_ids=(EOS,))
PLAIN_BLOCK = Traits(MASK, attention=BlockCausal(4), grid_origin="zero", eos_ids=(EOS,))
CAUSAL_CONTEXT = Traits(MASK, shift=1, attention=BlockCausal(4, "causal"), grid_origin="zero", eos_ids=(EOS,))
ONE = Traits(MASK, shift=1, attention=BlockCausal(1), grid_origin="zero", eos_ids=(EOS,))
AR = Traits(None, shift=1, attention=BlockCausal(1), grid_origin="zero", eos_ids=(EOS,))
KINDS = {"full": FULL, "shifted": SHIFTED, "block": BLOCK, "plain": PLAIN_BLOCK, "context": CAUSAL_CONTEXT, "one": ONE}


class Wrapped:
    """A denoiser that is not known as our transformer: it is given whole canvases."""

    def __init__(self, inner: TransformerDenoiser) -> None:
        self.inner, self.calls = inner, 0
        self.traits, self.head, self.layers, self.device = inner.traits, inner.head, inner.layers, inner.device
        self.support, self.new_store, self.grow_store = inner.support, inner.new_store, inner.grow_store

    def __call__(self, batch, store):  # type: ignore[no-untyped-def]
        self.calls += 1
        return self.inner(batch, store)


@torch.no_grad()
def dense_log_p(found: TransformerDenoiser, ids: Sequence[int], hidden: Sequence[int], final: int) -> Tensor:
    """log p [T, V] for the positions of one canvas, by a full attention mask: rows before `final` are finished."""
    row = torch.tensor(ids)
    row[list(hidden)] = MASK
    n, attention = len(ids), found.traits.attention
    seen = torch.ones(n, n, dtype=torch.bool)
    if not isinstance(attention, Full):
        at = torch.arange(n)
        seen = at[:, None] // attention.size >= at[None] // attention.size
        if attention.context == "causal":
            seen[:final] &= torch.ones(n, n, dtype=torch.bool).tril()[:final]

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(heads, 1), v.repeat_interleave(heads, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)

    model = found.model
    states = model.norm(model.run(model.embed_ids(row), torch.arange(n), attend))
    spoken = states[found.support(torch.arange(n))]
    return model.logits(spoken).log_softmax(-1).double()


Score = Callable[[Sequence[int]], dict[int, float]]
"""hidden places -> log p of the right token at each of them."""


def bound_over_masks(holes: Sequence[int], score: Score) -> float:
    """Mean over k of n/k times the mean over all sets of k."""
    n, total = len(holes), 0.0
    for k in range(1, n + 1):
        sums = [sum(score(hidden).values()) for hidden in combinations(holes, k)]
        total += n / k * sum(sums) / len(sums)
    return total / n


def mean_over_orders(holes: Sequence[int], score: Score) -> float:
    """The chain rule, averaged over every order of writing."""
    values = []
    for order in permutations(holes):
        values.append(sum(score(sorted(order[i:]))[order[i]] for i in range(len(order))))
    return math.fsum(values) / len(values)


def parts_of(traits: Traits, prompt_len: int, length: int) -> list[tuple[int, int, list[int]]]:
    """(start, stop, holes) of the answer's part of every block."""
    if isinstance(traits.attention, Full):
        return [(0, length, list(range(prompt_len, length)))]
    size = traits.attention.size
    out = []
    for start in range(prompt_len // size * size, length, size):
        out.append((start, start + size, [p for p in range(start, start + size) if prompt_len <= p < length]))
    return out


def scorer(found: TransformerDenoiser, ids: Sequence[int], start: int, stop: int) -> Score:
    """Score of one part, its canvas filled up with masks."""
    canvas = [*ids, *[MASK] * (stop - len(ids))][:stop]

    def score(hidden: Sequence[int]) -> dict[int, float]:
        log_p = dense_log_p(found, canvas, hidden, start)
        return {p: float(log_p[p, ids[p]]) for p in hidden}

    return score
