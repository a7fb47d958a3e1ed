"""SVAMP: word problems of one step, asked without worked examples and judged by the last number of the answer.

Enters: records of SVAMP.json ("Body", "Question", "Answer") or with both texts joined ("question", "answer"). Leaves:
questions in GSM8K's layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from unmask.core.spec import component
from unmask.evals.task import Data, Item, Question, Verdict
from unmask.evals.tasks.data import Benchmark, Record
from unmask.evals.tasks.gsm8k import flexible, normal
from unmask.evals.tasks.layout import Written, asked


def _parse(record: Record) -> dict[str, Any]:
    answer = record.value("Answer", "answer")
    try:
        number = float(answer)
    except (TypeError, ValueError):
        raise record.refuse("a number in 'Answer' or 'answer'", repr(answer)) from None
    question = record.text("question_concat", "question", "Question")
    if "Body" in record.fields and "question_concat" not in record.fields:
        question = f"{record.text('Body').strip()} {question.strip()}"
    return {"question": question, "answer": number, **({"id": record.fields["ID"]} if "ID" in record.fields else {})}


DATA = Benchmark(
    "svamp",
    'records {"question": text, "answer": number} or {"Body", "Question", "Answer"}',
    _parse,
    hub="ChilleD/SVAMP",
)


@component("svamp")
class Svamp(Written):
    """SVAMP (Patel et al. 2021, arXiv 2103.07191), 0-shot."""

    metric: ClassVar[str] = "flexible"
    max_tokens: ClassVar[int] = 128
    default_shots: ClassVar[int] = 0

    def load(self, data: str | None, split: str) -> Data:
        return DATA.load(data, split)

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        return replace(asked(f"Question: {item.fields['question']}\nAnswer:"), until=("Question:",))

    def judge(self, item: Item, answer: str) -> Verdict:
        found = flexible(answer)
        return Verdict({"flexible": float(_number(found) == item.fields["answer"])}, extracted=found)


def _number(text: str | None) -> float:
    """nan, which equals nothing, where there is no number."""
    try:
        return float(normal(text or ""))
    except ValueError:
        return math.nan
