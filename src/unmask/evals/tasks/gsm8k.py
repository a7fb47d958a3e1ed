"""GSM8K: word problems with one number as answer, asked and read as lm-eval's task `gsm8k` does.

Enters: records {"question", "answer"}, the answer ending in "#### number". Leaves: questions with worked examples from
the train file, and two scores: `strict` (the number after "#### ") and `flexible` (the last number of the answer).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Question, Verdict
from unmask.evals.tasks.data import Benchmark, Record
from unmask.evals.tasks.layout import PICK_HELP, Pick, Turns, Written, asked, needed, worked

BOXED = r"Please reason step by step, and put your final answer within \boxed{{}}."
"""What Fast-dLLM v2's adapter writes in place of "Answer:"; the braces are doubled there too."""
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def strict(text: str) -> str | None:
    """What stands after the first "#### ", as lm-eval's filter strict-match takes it."""
    found = _STRICT.findall(text)
    return str(found[0]).strip() if found else None


def flexible(text: str) -> str | None:
    """The last number, as lm-eval's filter flexible-extract takes it (a run of `$ . ,` counts as one)."""
    found = _FLEXIBLE.findall(text)
    return next(str(part).strip() for part in found[-1] if part) if found else None


def normal(text: str) -> str:
    """A number as lm-eval's exact_match compares it: no comma, no dollar sign, nothing up to "#### ", no final dot."""
    for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
        text = re.sub(ignored, "", text)
    return text.lower()


def same_number(found: str | None, answer: str) -> float:
    return float(found is not None and normal(found) == normal(answer))


def _parse(record: Record) -> dict[str, Any]:
    answer = record.text("answer")
    if strict(answer) is None:
        raise record.refuse("an answer with '#### number'", repr(answer))
    return {"question": record.text("question"), "answer": answer, "row": record.number}


DATA = Benchmark(
    "gsm8k",
    'records {"question": text, "answer": text with "#### number"}',
    _parse,
    hub="openai/gsm8k",
    subset="main",
)


@component("gsm8k")
class Gsm8k(Written):
    """GSM8K (Cobbe et al. 2021, arXiv 2110.14168), lm-eval layout."""

    max_tokens: ClassVar[int] = 256
    default_shots: ClassVar[int] = 5
    shots: int = option(5, low=0, high=64, help="worked examples from the train file")
    pick: Pick = option("first", help=PICK_HELP)
    turns: Turns = option("multi", help="worked examples in a chat: one turn each, or all in one user message")
    prompt: Literal["stock", "boxed"] = option("stock", help="boxed: asks for \\boxed{} as Fast-dLLM v2's adapter does")

    @property
    def metric(self) -> str:
        return "strict" if self.prompt == "stock" else "flexible"

    def load(self, data: str | None, split: str) -> Data:
        return DATA.load(data, split, needed(self.shots, self.pick))

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        examples = [(self._asked(s), str(s.fields["answer"])) for s in worked(shots, self.shots, self.pick, item)]
        question = asked(self._asked(item), examples, turns=self.turns)
        return replace(question, until=("Question:", "</s>", "<|im_end|>"))

    def judge(self, item: Item, answer: str) -> Verdict:
        found = {"strict": strict(answer), "flexible": flexible(answer)}
        scores = {name: same_number(number, str(item.fields["answer"])) for name, number in found.items()}
        return Verdict(scores, extracted=found[self.metric])

    def _asked(self, item: Item) -> str:
        text = f"Question: {item.fields['question']}\nAnswer:"
        return text if self.prompt == "stock" else text.replace("Answer:", BOXED)
