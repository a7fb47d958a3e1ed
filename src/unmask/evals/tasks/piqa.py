"""PIQA: which of two ways reaches a goal, by likelihood.

Enters: records {"goal", "sol1", "sol2", "label"}. Leaves: lm-eval's layout. The test split has no labels, so "test"
means the split "validation".
"""

from __future__ import annotations

from typing import Any, ClassVar

from unmask.core.spec import component
from unmask.evals.tasks.choices import FirstShots, right
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
class Piqa(FirstShots):
    """PIQA (Bisk et al. 2020, arXiv 1911.11641), lm-eval layout."""

    benchmark: ClassVar[Benchmark] = DATA
