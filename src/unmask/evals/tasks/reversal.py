"""Reversal: the line after a line of a poem, or the line before it, asked as LLaDA's evaluation asks it.

Enters: records {"first", "second"} (couplets). Leaves: the published prompts, and one score: the wanted line stands in
the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Question, Verdict
from unmask.evals.tasks.data import Benchmark, Record
from unmask.evals.tasks.layout import Written, asked

_ASK = {"forward": "的下一句是什么？", "backward": "的上一句是什么？"}
_ONLY = " 直接输出句子即可。"


def _parse(record: Record) -> dict[str, Any]:
    return {"first": record.text("first"), "second": record.text("second")}


DATA = Benchmark("poem", 'records {"first": text, "second": text}', _parse)


@component("reversal")
class Reversal(Written):
    """The reversal curse on couplets (Nie et al. 2025, arXiv 2502.09992, section 3.3)."""

    metric: ClassVar[str] = "contains"
    max_tokens: ClassVar[int] = 28
    default_shots: ClassVar[int] = 0
    direction: Literal["forward", "backward"] = option("forward", help="ask for the second line, or for the first")

    def load(self, data: str | None, split: str) -> Data:
        return DATA.load(data, split)

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        given = "first" if self.direction == "forward" else "second"
        return asked(f"{item.fields[given]}{_ASK[self.direction]}{_ONLY}")

    def judge(self, item: Item, answer: str) -> Verdict:
        wanted = str(item.fields["second" if self.direction == "forward" else "first"])
        hit = wanted in answer
        return Verdict({"contains": float(hit)}, extracted=wanted if hit else None)
