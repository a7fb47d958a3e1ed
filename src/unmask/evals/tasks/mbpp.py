"""MBPP: a short Python task with its tests in the prompt, judged by running them.

Enters: records {"text" or "prompt" or "question", "test_list"}, with "code", "task_id" and set-up where the file has
them. Leaves: lm-eval's layout ([BEGIN] ... [DONE], worked examples before it or none), and a program for the sandbox.
The three published worked examples are tasks 2 to 4 of MBPP itself; they are not part of this package (`worked.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Kind, Question, Verdict
from unmask.evals.tasks.data import Benchmark, Record
from unmask.evals.tasks.layout import Turns, Written, asked
from unmask.evals.tasks.worked import add, with_file, with_lm_eval

_TESTS_IN_TEXT = re.compile(r"\s*Your code should pass (?:the test|these tests):.*", re.DOTALL)
_FENCE = re.compile(r"```(?:\w+\n|\n)?(.*?)(?:```|\Z)", re.DOTALL)
_PUBLISHED = (2, 3, 4)
"""Ids of the tasks that the published prompt works out."""


def _parse(record: Record) -> dict[str, Any]:
    tests = record.texts("test_list")
    if not all(t.lstrip().startswith("assert") for t in tests):
        raise record.refuse("assert statements in 'test_list'", repr(tests))
    text = _TESTS_IN_TEXT.sub("", record.text("text", "prompt", "question"))
    imports = record.texts("test_imports") if record.fields.get("test_imports") else []
    setup = record.fields.get("test_setup_code") or "\n".join(imports)
    named = {"id": f"mbpp/{record.fields['task_id']}"} if "task_id" in record.fields else {}
    return {"text": text, "test_list": tests, "test_setup_code": setup, **named}


DATA = Benchmark(
    "mbpp",
    'records {"text", "prompt" or "question": text, "test_list": list of assert statements}',
    _parse,
    hub="google-research-datasets/mbpp",
    subset="full",
)


def fenced(text: str) -> str:
    """The first fenced block of an answer, closed or not; the whole answer if it has none."""
    found = _FENCE.search(text)
    return found[1] if found else text


@component("mbpp")
class Mbpp(Written):
    """MBPP (Austin et al. 2021, arXiv 2108.07732), lm-eval layout."""

    kind: ClassVar[Kind] = "code"
    metric: ClassVar[str] = "pass@1"
    max_tokens: ClassVar[int] = 512
    default_shots: ClassVar[int] = 3
    shots: int = option(3, low=0, high=64, help="worked examples; the published prompt has 3")
    turns: Turns = option("multi", help="worked examples in a chat: one turn each, or all in one user message")
    post: Literal["plain", "fenced"] = option(
        "plain", help="the answer as it is (lm-eval mbpp), or its first fenced block (chat models)"
    )
    shots_file: str | None = option(
        None, help="a file of worked examples; None: tasks 2 to 4 of the data or its prompt split, or lm-eval's"
    )

    def load(self, data: str | None, split: str) -> Data:
        found = DATA.load(data, split)
        if not self.shots:
            return found
        if self.shots_file is not None:
            return with_file(found, DATA, self.shots_file, self.shots, "code")
        own = _published(found.items)
        if own:
            rest = tuple(i for i in found.items if i.fields.get("task_id") not in _PUBLISHED)
            return add(replace(found, items=rest), own, self.shots, "tasks 2 to 4", found.sha256)
        if DATA.has(data, "prompt"):
            prompt = DATA.load(data, "prompt")
            own = _published(prompt.items)
            if own:
                return add(found, own, self.shots, prompt.source, prompt.sha256)
        return with_lm_eval(found, DATA, "mbpp", self.shots, "the worked examples of the published prompt (tasks 2-4)")

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        worked = [
            (_asked(str(s.fields["text"]), s.fields["test_list"]), f"{s.fields['code']}\n[DONE]")
            for s in shots[: self.shots]
        ]
        body = _asked(str(item.fields["text"]), item.fields["test_list"])
        return replace(asked(body, worked, between="", turns=self.turns), until=("[DONE]",))

    def judge(self, item: Item, answer: str) -> Verdict:
        code = fenced(answer) if self.post == "fenced" else answer
        parts = (code, str(item.fields["test_setup_code"]), *item.fields["test_list"])
        return Verdict(extracted=code, program="\n".join(p for p in parts if p))


def _published(items: Sequence[Item]) -> list[Item]:
    """Tasks 2 to 4 with their solutions, if all are there."""
    found = {i.fields.get("task_id"): i for i in items if isinstance(i.fields.get("code"), str)}
    return [found[n] for n in _PUBLISHED] if all(n in found for n in _PUBLISHED) else []


def _asked(text: str, tests: Sequence[str]) -> str:
    """The published prompt shows three tests, never more."""
    shown = "\n".join(tests[:3])
    return (
        f"You are an expert Python programmer, and here is your task: {text} "
        f"Your code should pass these tests:\n\n{shown}\n[BEGIN]\n"
    )
