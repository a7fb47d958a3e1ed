"""A task of our own and two models for the runner: one with random weights, one that knows every answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_checkpoints
import torch

import unmask
from unmask.core.errors import ConfigError
from unmask.core.types import Batch, Forwarded, Head, Traits
from unmask.evals.task import Data, Item, Question, Verdict
from unmask.pipeline import Model


@dataclass(frozen=True)
class Sums:
    """Small sums; `wanted` is what a right answer holds."""

    count: int = 20
    kind: str = "generate"
    metric: str = "exact"
    max_tokens: int = 16
    default_shots: int = 0

    def load(self, data: str | None, split: str) -> Data:
        items = tuple(
            Item(f"sum/{i}", {"a": i, "b": 7 * i % 13, "answer": str(i + 7 * i % 13)}) for i in range(self.count)
        )
        if data is not None and not Path(data).is_file():
            raise ConfigError(f"no file {data}")
        return Data(items, "toys", hashlib.sha256(f"sums {self.count}".encode()).hexdigest())

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        text = f"{item.fields['a']} + {item.fields['b']} ="
        choices = (item.fields["answer"], "x") if self.kind == "choice" else ()
        return Question(text, ({"role": "user", "content": text},), until=("\n",), choices=choices)

    def judge(self, item: Item, answer: str) -> Verdict:
        program = f"assert {answer.strip() or None!r} == {item.fields['answer']!r}"
        right = float(answer.strip() == item.fields["answer"])
        if self.kind == "code":
            return Verdict(extracted=answer, program=program)
        return Verdict({"exact": right, "long": float(len(answer) > 3)}, answer.strip() or None)

    def judge_choice(self, item: Item, values: Sequence[float]) -> Verdict:
        best = max(range(len(values)), key=values.__getitem__)
        return Verdict({"exact": float(best == 0)}, str(best))


class Oracle:
    """A denoiser that writes `answers[prompt]`: the first id that is in no prompt ends it.

    It reads the prompt from the rows it is given, so it must be decoded without a cache.
    """

    layers = 1
    device = torch.device("cpu")

    def __init__(self, traits: Traits, vocab: int, answers: Mapping[tuple[int, ...], Sequence[int]]) -> None:
        self.traits, self.answers = traits, dict(answers)
        self.by_length = sorted({len(p) for p in self.answers}, reverse=True)
        self.head = Head(torch.eye(vocab) * 30)

    def support(self, want: torch.Tensor) -> torch.Tensor:
        return want - self.traits.shift

    def new_store(self, slots: int, rows: int) -> Any:
        return _Store(rows)

    def grow_store(self, store: Any, slots: int, rows: int) -> Any:
        return _Store(rows)

    def __call__(self, batch: Batch, store: Any) -> Forwarded:
        tokens, row, need = [], 0, 0
        for lane in batch.lanes:
            rows = sum(b - a for a, b in lane.plan.query)
            ids = batch.ids[row : row + rows].tolist()
            prompt = next(p for n in self.by_length if (p := tuple(ids[:n])) in self.answers)
            answer = [*self.answers[prompt], *[self.traits.eos_ids[0]] * rows]
            for at in lane.plan.need.tolist():
                tokens.append(answer[at + self.traits.shift - len(prompt)])
            row, need = row + rows, need + len(lane.plan.need)
        return Forwarded(self.head.weight[tokens] / 30)


@dataclass
class _Store:
    rows: int

    def free(self, slot: int, start: int = 0) -> None: ...


def oracle(directory: Path, task: Any, data: Any, answer: Callable[[Item], str], chat: bool | None = None) -> Model:
    """A model over the tiny LLaDA tokenizer that answers every item of `data` with `answer(item)`."""
    base = unmask.load(
        tiny_checkpoints.llada_checkpoint(directory, max_sequence_length=16384), device="cpu", dtype="fp32"
    )
    assert base.codec is not None
    known = {}
    for item in data.items:
        asked = task.question(item, data.shots)
        raw = chat is False
        text = asked.text if raw else base.codec.render_chat(list(asked.messages))
        prompt = base.codec.encode(text + asked.begun)
        known[tuple(prompt)] = base.codec.encode(answer(item))
    denoiser = Oracle(base.traits, base.vocab_size, known)
    return Model(denoiser, base.codec, base.kind, base.config, "oracle", directory)  # type: ignore[arg-type]
