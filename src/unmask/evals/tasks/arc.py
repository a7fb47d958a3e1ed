"""ARC: science questions for schools, easy or challenge, answered by the likelihood of the candidates' texts.

Enters: records of the hub ("choices": {"text", "label"}) or of the original files ("question": {"stem", "choices"}).
Leaves: lm-eval's layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Question
from unmask.evals.tasks.choices import Chosen, named
from unmask.evals.tasks.data import Benchmark, Record


def _parse(record: Record) -> dict[str, Any]:
    stem, texts, labels = _parts(record)
    key = record.value("answerKey")
    if len(labels) != len(texts) or key not in labels:
        raise record.refuse(f"an answerKey among {', '.join(labels)}", repr(key))
    query = f"Question: {stem}\nAnswer:"
    return {"query": query, "candidates": texts, "gold": labels.index(key), **named(record.fields, "id")}


def _parts(record: Record) -> tuple[str, list[str], list[str]]:
    original = record.fields.get("question")
    if isinstance(original, dict):
        inner = Record(record.where, record.number, original)
        listed = [Record(record.where, record.number, c) for c in inner.value("choices") if isinstance(c, dict)]
        return inner.text("stem"), [c.text("text") for c in listed], [c.text("label") for c in listed]
    choices = record.value("choices")
    if not isinstance(choices, dict):
        raise record.refuse("'choices' with 'text' and 'label'", repr(choices))
    inner = Record(record.where, record.number, choices)
    return record.text("question"), inner.texts("text"), inner.texts("label")


DATA = Benchmark(
    "arc_easy",
    'records {"id", "question": text, "choices": {"text": list, "label": list}, "answerKey": label}',
    _parse,
    hub="allenai/ai2_arc",
)
SUBSETS = {"easy": ("arc_easy", "ARC-Easy"), "challenge": ("arc_challenge", "ARC-Challenge")}


@component("arc")
class Arc(Chosen):
    """ARC (Clark et al. 2018, arXiv 1803.05457), lm-eval layout."""

    default_shots: ClassVar[int] = 0
    level: Literal["easy", "challenge"] = option("challenge", help="which half of the benchmark")
    shots: int = option(0, low=0, high=64, help="worked examples: the first ones of the train split")

    @property
    def metric(self) -> str:
        """As LLaDA and Dream report them: acc on easy, acc_norm on challenge."""
        return "acc" if self.level == "easy" else "acc_norm"

    def load(self, data: str | None, split: str) -> Data:
        name, subset = SUBSETS[self.level]
        return replace(DATA, name=name, subset=subset).load(data, split, self.shots)

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        return super().question(item, shots[: self.shots])
