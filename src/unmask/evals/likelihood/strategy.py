"""What a decoding strategy gives an answer: the engine decodes as always, but writes the answer's tokens.

Enters: a pair and a strategy. Leaves: the sum of log p of every token at the forward that committed it. Order, schedule
and cache are the strategy's own; tokens committed together count as independent, as the strategy takes them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unmask.core.errors import ConfigError, RunError
from unmask.core.events import Failed
from unmask.core.protocols import DecodePolicy, Denoiser, Noise
from unmask.core.types import FILL, Batch, Block, Candidates, Commit, Forwarded, Request, Sequence, Strategy
from unmask.engine.engine import Engine
from unmask.evals.likelihood.canvas import Pair
from unmask.evals.likelihood.forwards import wide
from unmask.ops.score import logits_of


def check(strategy: Strategy) -> None:
    """Refuses what has no likelihood.

    Raises:
        ConfigError: a cache whose scoring is undefined, guidance, or sampled tokens.
    """
    name = getattr(strategy.cache, "spec_name", type(strategy.cache).__name__)
    if strategy.cache.scoring == "undefined":
        raise ConfigError(
            f"a likelihood under cache {name}",
            expected="a cache whose scoring is exact or approximate",
            got="undefined: what it gives depends on more than the ids",
            remedy="Score without it, or with cache none.",
        )
    if strategy.guidance is not None:
        raise ConfigError("a likelihood under a strategy", expected="no guidance", got=repr(strategy.guidance))
    if strategy.sampling.temperature:
        raise ConfigError(
            "a likelihood under a strategy", expected="temperature 0", got=f"{strategy.sampling.temperature:g}"
        )


def is_approximate(strategy: Strategy, denoiser: Denoiser) -> bool:
    """Whether the strategy's cache may read stale rows on this model."""
    return strategy.cache.scoring == "approximate" and not strategy.cache.exact_for(denoiser.traits)


def forced(denoiser: Denoiser, pair: Pair, strategy: Strategy) -> tuple[float, bool, int]:
    """Decodes the answer that is given.

    Returns:
        log p in nats, whether every token was the model's best when it was written, and the forwards.

    Raises:
        RunError: a strategy that edits, or leaves holes.
    """
    listening = _Listening(denoiser)
    policy = _Forced(strategy.policy, listening, pair.ids)
    engine = Engine(listening, 1)
    canvas = pair.ids[: pair.length].clone()
    fixed = torch.arange(pair.length) < pair.prompt_len
    canvas[~fixed] = 0 if pair.mask_id is None else pair.mask_id
    strategy = replace(strategy, policy=policy, early_stop=False)
    engine.submit(Request("0", canvas, fixed, pair.prompt_len, strategy))
    for event in engine.run():
        if isinstance(event, Failed):
            raise RunError(f"a likelihood under this strategy: {event.error}")
    if policy.written != len(pair.answer):
        raise RunError(f"the strategy wrote {policy.written} of {len(pair.answer)} answer tokens")
    return policy.total, policy.greedy, engine.stats.model_calls


class _Listening:
    """The denoiser, and the last states it gave."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.hidden = inner, torch.empty(0)
        self.traits, self.head, self.layers, self.device = inner.traits, inner.head, inner.layers, inner.device
        self.support, self.new_store, self.grow_store = inner.support, inner.new_store, inner.grow_store
        self.table = inner.table

    def __call__(self, batch: Batch, store: Any) -> Forwarded:
        out = self.inner(batch, store)
        self.hidden = out.hidden
        return out


class _Forced:
    """A policy whose choice of places stands, while the tokens are the answer's. Holds the sum of a single request."""

    def __init__(self, inner: DecodePolicy, heard: _Listening, ids: Tensor) -> None:
        self.inner, self.heard, self.ids = inner, heard, ids
        self.scores = inner.scores
        self.total, self.written, self.greedy = 0.0, 0, True

    def init(self, seq: Sequence) -> Any:
        return self.inner.init(seq)

    def wants(self, seq: Sequence, open: Seq[Block], state: Any) -> Tensor:
        return self.inner.wants(seq, open, state)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Any, noise: Noise
    ) -> tuple[Commit, Any]:
        commit, state = self.inner.decide(seq, want, candidates, state, noise)
        if commit.kind != FILL or bool(seq.decided[want[commit.slots]].any()):
            raise RunError("it changes tokens it has written, which has no likelihood")
        slots = commit.slots
        target = self.ids[want[slots]]
        if slots.numel():
            rows = self.heard.hidden[slots.to(self.heard.hidden.device)]
            log_p = wide(logits_of(rows, self.heard.head)).log_softmax(-1).cpu()
            self.total += float(log_p.gather(1, target[:, None]).double().sum())
            self.greedy &= bool((candidates.token[slots] == target).all())
            self.written += slots.numel()
        return replace(commit, tokens=target, end=False), state
