"""Training data as endless, resumable batches.

Enters: a data section of a recipe and a tokenizer. Leaves: `Batch`es. Every stream can say where it stands in plain JSON
values and be put back there; that, not luck, makes a resumed run bit-equal.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from tokenizers import Tokenizer

from unmask.core.errors import ConfigError
from unmask.train.batch import Batch, Row, collate
from unmask.train.tokenizer import ASSISTANT, EOS, SYSTEM, USER

State = dict[str, Any]


class Item(Protocol):
    """What a generator of problems yields: a prompt and its answer."""

    @property
    def prompt(self) -> str: ...
    @property
    def answer(self) -> str: ...


Source = Callable[[random.Random, Mapping[str, float]], Iterator[Item]]


class Stream(Protocol):
    """Endless batches with a position that can be saved."""

    def next(self) -> Batch: ...
    def state(self) -> State: ...
    def restore(self, state: State) -> None: ...


@dataclass(frozen=True)
class Stage:
    """From step `start` on, items are drawn by the weights of `mix`."""

    start: int
    mix: Mapping[str, float]


@dataclass(frozen=True)
class GeneratorData:
    """Problems from a generator function, framed as one turn of a chat: batch i depends on (seed, i) alone.

    Args:
        source: "package.module:function", called with (rng, mix).
        stages: the mixture over time, first `start` 0.
        batch_tokens: a batch is full once it holds so many tokens.
        gen_lengths, gen_share, short_tail: the answer is followed by EOS up to one of `gen_lengths` in `gen_share` of the
            rows, and by 0 to `short_tail` EOS in the others: so every generation length is in distribution.
        whole_share: rows whose prompt may be masked too (infilling).
        history_share, system_share: rows with one earlier turn, rows with a system prompt.
    """

    kind: ClassVar[str] = "generator"
    source: str
    stages: tuple[Stage, ...]
    batch_tokens: int = 3072
    gen_lengths: tuple[int, ...] = (16, 32, 48, 64, 96, 128)
    gen_share: float = 0.3
    short_tail: int = 7
    whole_share: float = 0.0
    history_share: float = 0.0
    system_share: float = 0.0
    systems: tuple[str, ...] = field(default=("You are a helpful assistant.",))

    def __post_init__(self) -> None:
        starts = [s.start for s in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ConfigError("data.stages must begin at step 0 and rise", got=str(starts))
        for stage in self.stages:
            if not stage.mix or min(stage.mix.values()) < 0 or sum(stage.mix.values()) <= 0:
                raise ConfigError(f"data.stages: mix of start {stage.start} is unusable", expected="weights above 0")
        if self.batch_tokens < 1:
            raise ConfigError("data.batch_tokens is out of range", expected="1 or more", got=str(self.batch_tokens))

    def mix_at(self, step: int) -> Mapping[str, float]:
        return [s for s in self.stages if s.start <= step][-1].mix


class GeneratorStream:
    """`per_step` batches a step; batch i is drawn by Random("seed/i"), so the position is one number."""

    def __init__(self, cfg: GeneratorData, tokenizer: Tokenizer, seed: int, per_step: int = 1) -> None:
        self.cfg, self.tokenizer, self.seed, self.per_step, self.at = cfg, tokenizer, seed, per_step, 0
        self.source: Source = load_function(cfg.source)
        self.ids = {t: _special(tokenizer, t) for t in (EOS, USER, ASSISTANT, SYSTEM)}

    def next(self) -> Batch:
        rng = random.Random(f"{self.seed}/{self.at}")
        mix = self.cfg.mix_at(self.at // self.per_step)
        self.at += 1
        items, rows, tokens = self.source(rng, mix), [], 0
        while tokens < self.cfg.batch_tokens:
            rows.append(self.row(items, rng))
            tokens += len(rows[-1].ids)
        return collate(rows, self.ids[EOS])

    def row(self, items: Iterator[Item], rng: random.Random) -> Row:
        cfg, prompt = self.cfg, []
        if rng.random() < cfg.system_share:
            prompt += [self.ids[SYSTEM], *self._encode(rng.choice(cfg.systems))]
        if rng.random() < cfg.history_share:
            prompt += [*self._turn(next(items)), self.ids[EOS]]
        item = next(items)
        prompt += [self.ids[USER], *self._encode(item.prompt), self.ids[ASSISTANT]]
        answer = [*self._encode(item.answer), self.ids[EOS]]
        tail = self._tail(len(answer), rng)
        ids = (*prompt, *answer, *([self.ids[EOS]] * tail))
        return Row(ids, len(prompt), tail, rng.random() < cfg.whole_share)

    def _turn(self, item: Item) -> list[int]:
        return [self.ids[USER], *self._encode(item.prompt), self.ids[ASSISTANT], *self._encode(item.answer)]

    def _tail(self, length: int, rng: random.Random) -> int:
        if rng.random() < self.cfg.gen_share:
            return max(0, rng.choice(self.cfg.gen_lengths) - length)
        return rng.randint(0, self.cfg.short_tail)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def state(self) -> State:
        return {"at": self.at}

    def restore(self, state: State) -> None:
        self.at = int(state["at"])


def load_function(name: str) -> Any:
    """The function behind "package.module:function"."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        raise ConfigError(
            f"cannot find {name!r}", expected="package.module:function", remedy="check the spelling; is the package installed?"
        ) from None


def _special(tokenizer: Tokenizer, token: str) -> int:
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ConfigError(f"the tokenizer has no {token} token", remedy="train one with `unmask train` or add the token")
    return found
