"""HumanEval: a function to complete, judged by running its tests.

Enters: records {"task_id", "prompt", "entry_point", "test"}. Leaves: the prompt alone as question (0-shot), and a
program for the sandbox: the completion, cleaned as LLaDA's, Dream's and Fast-dLLM's evaluations clean it or as lm-eval
takes it, then the tests. `prompt='instruct'` asks as lm-eval's `humaneval_instruct` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Kind, Question, Verdict
from unmask.evals.tasks.code_post import CLOSING, candidate_of, sanitize
from unmask.evals.tasks.data import Benchmark, Record
from unmask.evals.tasks.layout import Written, asked

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""lm-eval's stop strings of the task `humaneval`."""
WISH = "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{}\n```\n"
BEGUN = "Here is the completed function:\n```python\n{}\n"
"""lm-eval's prompt of the task `humaneval_instruct` (version 4.0), and how the answer begins."""


def _parse(record: Record) -> dict[str, Any]:
    fields = {name: record.text(name) for name in ("prompt", "test", "entry_point")}
    if f"def {fields['entry_point']}" not in fields["prompt"]:
        raise record.refuse(f"a prompt that defines {fields['entry_point']!r}", repr(fields["prompt"]))
    return {**fields, "id": record.text("task_id")}


DATA = Benchmark(
    "humaneval",
    'records {"task_id": text, "prompt": text, "entry_point": text, "test": text}',
    _parse,
    hub="openai/openai_humaneval",
)


@component("humaneval")
class HumanEval(Written):
    """HumanEval (Chen et al. 2021, arXiv 2107.03374), 0-shot."""

    kind: ClassVar[Kind] = "code"
    metric: ClassVar[str] = "pass@1"
    max_tokens: ClassVar[int] = 512
    default_shots: ClassVar[int] = 0
    post: Literal["clean", "published", "plain"] = option(
        "clean",
        help="clean: code of fenced answers, with what it and the tests need; published: the same by the published "
        "rules, which lose HumanEval/50; plain: the completion as it is (lm-eval)",
    )
    stops: bool | None = option(
        None, help="cut the answer at lm-eval's stop strings; None: only with post='plain', as Fast-dLLM's adapter does"
    )

    prompt: Literal["plain", "instruct"] = option(
        "plain",
        help="plain: the function's beginning alone; instruct: lm-eval's wish, the answer begun with a fence and it",
    )

    def load(self, data: str | None, split: str) -> Data:
        return DATA.load(data, split)

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        cut = self.post == "plain" if self.stops is None else self.stops
        text = str(item.fields["prompt"])
        if self.prompt == "instruct":
            return replace(asked(WISH.format(text)), until=STOPS if cut else (), begun=BEGUN.format(text))
        return replace(asked(text), until=STOPS if cut else ())

    def judge(self, item: Item, answer: str) -> Verdict:
        code = self._completed(item, answer)
        return Verdict(extracted=code, program=f"{code}\n{item.fields['test']}\ncheck({item.fields['entry_point']})")

    def _completed(self, item: Item, answer: str) -> str:
        prompt = str(item.fields["prompt"])
        if self.post == "plain":
            return prompt + (answer.split(CLOSING, 1)[0] if self.prompt == "instruct" else answer)
        candidate = candidate_of({"doc": {"prompt": prompt}, "resps": [[answer]]})
        tests = str(item.fields["test"]) if self.post == "clean" else None
        return sanitize(candidate, str(item.fields["entry_point"]), tests)
