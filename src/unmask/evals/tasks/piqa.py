"""PIQA: which of two ways reaches a goal, by likelihood.

Enters: records {"goal", "sol1", "sol2", "label"}. Leaves: lm-eval's layout. The test split has no labels, so "test"
means the split "validation".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Question
from unmask.evals.tasks.choices import Chosen, right
from unmask.evals.tasks.data import Benchmark, Record


def _parse(record: Record) -> dict[str, Any]:
    candidates = [str(record.value("sol1")), str(record.value("sol2"))]
    query = f"Question: {record.text('goal')}\nAnswer:"
    return {"query": query, "candidates": candidates, "gold": right(record, record.value("label"), 2)}


DATA = Benchmark(
    "piqa",
    'records {"goal", "sol1", "sol2": text, "label": 0 or 1}',
    _parse,
    hub="baber/piqa",
    splits={"test": "validation"},
)


@component("piqa")
class Piqa(Chosen):
    """PIQA (Bisk et al. 2020, arXiv 1911.11641), lm-eval layout."""

    metric: ClassVar[str] = "acc_norm"
    default_shots: ClassVar[int] = 0
    shots: int = option(0, low=0, high=64, help="worked examples: the first ones of the train split")

    def load(self, data: str | None, split: str) -> Data:
        return DATA.load(data, split, self.shots)

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        return super().question(item, shots[: self.shots])
