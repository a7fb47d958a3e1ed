r"""MATH: competition problems with an answer in LaTeX.

Enters: records {"problem", "solution"} (Hendrycks MATH, its 500-item subset), or with the answer alone. Leaves: the
problem after worked examples or none, and up to two scores: `string_match`, and `math_verify` where that package is
installed. The four worked examples of Minerva's prompt are not part of this package (`worked.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Question, Verdict
from unmask.evals.tasks.data import Benchmark, Record
from unmask.evals.tasks.gsm8k import BOXED
from unmask.evals.tasks.layout import Turns, Written, asked
from unmask.evals.tasks.math_answer import boxed, final_answer, has_math_verify, string_match, verified
from unmask.evals.tasks.worked import with_file, with_lm_eval


def _parse(record: Record) -> dict[str, Any]:
    problem = record.text("problem", "question")
    solution = str(record.fields.get("solution") or "")
    answer = record.fields.get("answer", record.fields.get("ground_truth_answer", boxed(solution)))
    if not isinstance(answer, str) or not answer.strip():
        raise record.refuse(r"'answer', 'ground_truth_answer' or a \boxed{} in 'solution'", repr(answer))
    if "#### " in answer:
        raise record.refuse("an answer in LaTeX, not GSM8K's", repr(answer))
    gold = solution if boxed(solution) else rf"\boxed{{{answer}}}"
    named = {"id": record.fields["unique_id"]} if "unique_id" in record.fields else {}
    return {"problem": problem, "answer": answer, "gold": gold, **named}


DATA = Benchmark(
    "math",
    r'records {"problem": text, "solution": text with \boxed{}} or {"problem" or "question", "answer" or '
    '"ground_truth_answer"}',
    _parse,
    hub="HuggingFaceH4/MATH-500",
)


@component("math")
class Math(Written):
    """MATH (Hendrycks et al. 2021, arXiv 2103.03874), lm-eval's minerva_math layout; the hub's copy is MATH-500."""

    max_tokens: ClassVar[int] = 512
    default_shots: ClassVar[int] = 4
    shots: int = option(4, low=0, high=64, help="worked examples; Minerva's prompt has 4")
    turns: Turns = option("multi", help="worked examples in a chat: one turn each, or all in one user message")
    prompt: Literal["stock", "boxed"] = option("stock", help="boxed: asks for \\boxed{} as Fast-dLLM v2's adapter does")
    shots_file: str | None = option(None, help="a file of worked examples; None: Minerva's, from the installed lm-eval")

    @property
    def metric(self) -> str:
        """math_verify if that package is here, else string_match: another score under another name."""
        return "math_verify" if has_math_verify() else "string_match"

    def load(self, data: str | None, split: str) -> Data:
        found = DATA.load(data, split)
        if not self.shots:
            return found
        if self.shots_file is not None:
            return with_file(found, DATA, self.shots_file, self.shots, "solution")
        what = "the worked examples of Minerva's prompt (arXiv 2206.14858)"
        return with_lm_eval(found, DATA, "minerva_math", self.shots, what)

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        worked = [(self._asked(str(s.fields["problem"])), str(s.fields["solution"])) for s in shots[: self.shots]]
        question = asked(self._asked(str(item.fields["problem"])), worked, turns=self.turns)
        return replace(question, until=("Problem:",))

    def judge(self, item: Item, answer: str) -> Verdict:
        found = final_answer(answer)
        scores = {"string_match": float(string_match(found, str(item.fields["answer"])))}
        if has_math_verify():
            scores["math_verify"] = float(verified(answer, str(item.fields["gold"])))
        return Verdict(scores, extracted=found)

    def _asked(self, problem: str) -> str:
        return f"Problem:\n{problem}\n\n" + ("Solution:" if self.prompt == "stock" else BOXED)
