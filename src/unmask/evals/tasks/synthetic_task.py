"""The project's own checkable problems (`synthetic.py`) as a benchmark of the catalog: `synthetic(task="sort")`.

Enters: nothing; the items are generated. Leaves: each problem as one user message, and `correct` from its own checker.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar

from unmask.core.errors import ConfigError
from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Question, Verdict
from unmask.evals.tasks import synthetic
from unmask.evals.tasks.data import of_generator
from unmask.evals.tasks.generated import side
from unmask.evals.tasks.layout import Written, asked


@component("synthetic")
class Synthetic(Written):
    """The problems that the embedded models were trained on, held-out side."""

    metric: ClassVar[str] = "correct"
    max_tokens: ClassVar[int] = 48
    default_shots: ClassVar[int] = 0
    task: str = option("sort", help="one of: " + ", ".join(synthetic.TASKS))
    count: int = option(500, low=1, high=100_000, help="items")
    seed: int = option(0, low=0, help="of the generator")

    def __post_init__(self) -> None:
        synthetic.task_named(self.task)

    def load(self, data: str | None, split: str) -> Data:
        if data is not None:
            raise ConfigError("synthetic items are generated", expected="no --data", got=data)
        items = [Item(f"{self.task}/{split}/{n}", _fields(i)) for n, i in enumerate(self._drawn(split))]
        return of_generator(repr(self), items)

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        return asked(str(item.fields["prompt"]))

    def judge(self, item: Item, answer: str) -> Verdict:
        f = item.fields
        asked_for = synthetic.Item(str(f["task"]), str(f["prompt"]), str(f["answer"]), str(f["key"]))
        right = synthetic.task_named(self.task).check(asked_for, answer)
        return Verdict({"correct": float(right)}, extracted=answer.strip() or None)

    def _drawn(self, split: str) -> list[synthetic.Item]:
        if side(split) == "test":
            return synthetic.held_out(self.task, self.count, self.seed)
        rng = random.Random(f"train/{self.task}/{self.seed}")
        return [synthetic.draw(self.task, rng, "train") for _ in range(self.count)]


def _fields(item: synthetic.Item) -> dict[str, Any]:
    return {"task": item.task, "prompt": item.prompt, "answer": item.answer, "key": item.key}
