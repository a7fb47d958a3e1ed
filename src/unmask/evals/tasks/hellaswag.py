"""HellaSwag: which of four endings follows, by likelihood per character.

Enters: records {"activity_label", "ctx_a", "ctx_b", "endings", "label"}. Leaves: lm-eval's layout and cleaning. The
test split has no labels, so "test" means the split "validation", as everywhere in the literature.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from unmask.core.spec import component
from unmask.evals.tasks.choices import FirstShots, right
from unmask.evals.tasks.data import Benchmark, Record


def clean(text: str) -> str:
    """Without the bracketed marks that WikiHow's pages left behind, as lm-eval removes them."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _parse(record: Record) -> dict[str, Any]:
    endings = record.texts("endings")
    gold = right(record, record.value("label"), len(endings))
    # ctx_b is the empty text where the ending begins a sentence of its own
    context = f"{record.text('ctx_a')} {str(record.value('ctx_b')).capitalize()}"
    query = clean(f"{record.text('activity_label')}: {context}")
    return {"query": query, "candidates": [clean(e) for e in endings], "gold": gold}


DATA = Benchmark(
    "hellaswag",
    'records {"activity_label", "ctx_a", "ctx_b": text, "endings": list of texts, "label": 0 to 3}',
    _parse,
    hub="Rowan/hellaswag",
    splits={"test": "validation"},
)


@component("hellaswag")
class HellaSwag(FirstShots):
    """HellaSwag (Zellers et al. 2019, arXiv 1905.07830), lm-eval layout."""

    benchmark: ClassVar[Benchmark] = DATA
