"""WinoGrande: whom a sentence means, by the likelihood of its rest after each of two names.

Enters: records {"sentence" with "_", "option1", "option2", "answer": 1 or 2}. Leaves: one continuation under two
contexts, as lm-eval scores it. The test split has no labels, so "test" means the split "validation".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Question
from unmask.evals.tasks.choices import Chosen, chosen, named
from unmask.evals.tasks.data import Benchmark, Record
from unmask.evals.tasks.layout import PICK_HELP, Pick, needed, worked


def _parse(record: Record) -> dict[str, Any]:
    before, blank, after = record.text("sentence").partition("_")
    answer = str(record.value("answer"))
    if not blank or answer not in ("1", "2"):
        raise record.refuse("a sentence with '_', and the answer 1 or 2", repr(answer))
    contexts = [before + record.text("option1"), before + record.text("option2")]
    gold = int(answer) - 1
    return {
        "contexts": contexts,
        "query": contexts[gold],
        "candidates": [after.strip()] * 2,
        "gold": gold,
        "row": record.number,
        **named(record.fields, "qID"),
    }


DATA = Benchmark(
    "winogrande",
    'records {"sentence": text with "_", "option1", "option2": text, "answer": 1 or 2}',
    _parse,
    hub="allenai/winogrande",
    subset="winogrande_xl",
    splits={"test": "validation"},
)


@component("winogrande")
class WinoGrande(Chosen):
    """WinoGrande (Sakaguchi et al. 2019, arXiv 1907.10641), lm-eval layout."""

    metric: ClassVar[str] = "acc"
    default_shots: ClassVar[int] = 5
    shots: int = option(5, low=0, high=64, help="worked examples from the train split")
    pick: Pick = option("first", help=PICK_HELP)

    def load(self, data: str | None, split: str) -> Data:
        return DATA.load(data, split, needed(self.shots, self.pick))

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        examples = worked(shots, self.shots, self.pick, item)
        shown = [(str(s.fields["query"]), str(s.fields["candidates"][0])) for s in examples]
        return chosen("", item.fields["candidates"], shown, contexts=item.fields["contexts"])
