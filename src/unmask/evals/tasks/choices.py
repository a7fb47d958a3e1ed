"""What the multiple-choice tasks share: a question whose candidates are scored by their likelihood, as lm-eval does.

Enters: a context, the candidates, the index of the right one. Leaves: a `Question` with the candidates as
continuations, and a verdict: `acc` (the most likely candidate is right), `acc_norm` (the same, nats per character) and
`acc_bytes` (nats per UTF-8 byte). Of equal values the first counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from unmask.core.spec import option
from unmask.evals.task import Data, Item, Kind, Question, Verdict
from unmask.evals.tasks.data import Benchmark, Record
from unmask.evals.tasks.layout import Worked, asked


def chosen(
    context: str, candidates: Sequence[str], worked: Worked = (), head: str = "", contexts: Sequence[str] = ()
) -> Question:
    """contexts: what stands before each candidate, where that differs; `context` is then not used."""
    question = asked(context, worked, head=head)
    texts = [asked(c, worked, head=head).text for c in contexts]
    return replace(question, choices=tuple(f" {c}" for c in candidates), contexts=tuple(texts))


def judged(values: Sequence[float], candidates: Sequence[str], gold: int) -> Verdict:
    """The three accuracies of lm-eval; lengths are of the candidate without the space before it."""
    per_character = [v / max(len(c), 1) for v, c in zip(values, candidates, strict=True)]
    per_byte = [v / max(len(c.encode()), 1) for v, c in zip(values, candidates, strict=True)]
    named = {"acc": values, "acc_norm": per_character, "acc_bytes": per_byte}
    scores = {name: float(_best(v) == gold) for name, v in named.items()}
    return Verdict(scores, extracted=candidates[_best(values)])


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: (values[i], -i))


@dataclass(frozen=True)
class Chosen:
    """What all tasks share whose answers are chosen: items hold "query", "candidates" and "gold" (an index)."""

    kind: ClassVar[Kind] = "choice"
    max_tokens: ClassVar[int] = 0

    def judge(self, item: Item, answer: str) -> Verdict:
        raise TypeError(f"{self}: {item.id} is answered by likelihoods, not by a text")

    def judge_choice(self, item: Item, values: Sequence[float]) -> Verdict:
        return judged(values, item.fields["candidates"], int(item.fields["gold"]))

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        worked = [(str(s.fields["query"]), str(s.fields["candidates"][int(s.fields["gold"])])) for s in shots]
        return chosen(str(item.fields["query"]), item.fields["candidates"], worked)


@dataclass(frozen=True)
class FirstShots(Chosen):
    """Those whose worked examples are the first ones of the train split, none by default."""

    metric: ClassVar[str] = "acc_norm"
    default_shots: ClassVar[int] = 0
    benchmark: ClassVar[Benchmark]
    shots: int = option(0, low=0, high=64, help="worked examples: the first ones of the train split")

    def load(self, data: str | None, split: str) -> Data:
        return self.benchmark.load(data, split, self.shots)

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        return super().question(item, shots[: self.shots])


def right(record: Record, value: object, count: int) -> int:
    """An index 0..count-1, given as a number or as its digits."""
    text = str(value)
    if not re.fullmatch(r"\d+", text) or int(text) >= count:
        raise record.refuse(f"the right answer as 0 to {count - 1} (test files without labels cannot be scored)", text)
    return int(text)


def named(fields: Mapping[str, Any], key: str, prefix: str = "") -> dict[str, Any]:
    """{"id": ...} if the record has an id of its own."""
    return {"id": f"{prefix}{fields[key]}"} if fields.get(key) is not None else {}
