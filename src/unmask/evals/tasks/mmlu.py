"""MMLU: four candidates to a question of a school or university subject, answered by the likelihood of their letters.

Enters: records {"question", "choices", "answer", "subject"}. Leaves: lm-eval's layout, with worked examples of the same
subject from the split "dev".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from unmask.core.errors import ConfigError
from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Question
from unmask.evals.tasks.choices import Chosen, chosen, right
from unmask.evals.tasks.data import Benchmark, Record

LETTERS = ("A", "B", "C", "D")


def _parse(record: Record) -> dict[str, Any]:
    question, choices, answer = record.text("question"), record.texts("choices"), record.value("answer")
    if len(choices) != len(LETTERS):
        raise record.refuse("four choices", str(len(choices)))
    gold = LETTERS.index(answer) if answer in LETTERS else right(record, answer, len(LETTERS))
    lines = [question.strip(), *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices)), "Answer:"]
    subject = str(record.fields.get("subject") or "")
    return {"query": "\n".join(lines), "candidates": LETTERS, "gold": gold, "subject": subject}


DATA = Benchmark(
    "mmlu",
    'records {"question": text, "choices": four texts, "answer": 0 to 3 or A to D, "subject": text}',
    _parse,
    hub="cais/mmlu",
    subset="all",
    shots="dev",
)


@component("mmlu")
class Mmlu(Chosen):
    """MMLU (Hendrycks et al. 2021, arXiv 2009.03300), lm-eval layout."""

    metric: ClassVar[str] = "acc"
    default_shots: ClassVar[int] = 5
    shots: int = option(5, low=0, high=5, help="worked examples of the same subject, from the split dev")

    def load(self, data: str | None, split: str) -> Data:
        found = DATA.load(data, split, None if self.shots else 0)
        for subject in {str(i.fields["subject"]) for i in found.items} if self.shots else set():
            self._worked(subject, found.shots)
        return found

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        subject = str(item.fields["subject"])
        worked = [
            (str(s.fields["query"]), LETTERS[int(s.fields["gold"])])
            for s in (self._worked(subject, shots) if self.shots else ())
        ]
        about = f" about {subject.replace('_', ' ')}" if subject else ""
        head = f"The following are multiple choice questions (with answers){about}.\n\n"
        return chosen(str(item.fields["query"]), LETTERS, worked, head)

    def _worked(self, subject: str, pool: Sequence[Item]) -> Sequence[Item]:
        found = [s for s in pool if s.fields["subject"] == subject][: self.shots]
        if len(found) < self.shots:
            raise ConfigError(
                f"mmlu: worked examples of the subject {subject!r}", expected=str(self.shots), got=str(len(found))
            )
        return found
