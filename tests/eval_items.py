"""Items of our own in the formats of the public benchmarks, with a right and a wrong answer for each: an oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.evals.task import Item

Answer = Callable[[Item], str]


@dataclass(frozen=True)
class Sample:
    """A task's spec, its files, and what a right and a wrong model would answer (an index for choices)."""

    spec: str
    files: dict[str, list[dict[str, Any]]]
    right: Callable[[Item], Any]
    wrong: Callable[[Item], Any]


def write(folder: Path, sample: Sample) -> str | None:
    """The sample's files in a folder; None for a task that makes its own items."""
    for name, records in sample.files.items():
        (folder / name).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return str(folder) if sample.files else None


def _story(who: str, what: str, a: int, b: int) -> dict[str, Any]:
    return {
        "question": f"{who} keeps {a} {what} and is given {b} more. How many {what} are there?",
        "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b} {what}.\n#### {a + b:,}",
    }


STORIES = [_story(*s) for s in (("Ilse", "maps", 3, 4), ("Otto", "nails", 990, 260), ("Wim", "kites", 11, 2))]
WORKED = [_story(*s) for s in (("Jo", "tins", 1, 1), ("Al", "bells", 5, 6), ("Bo", "ropes", 20, 22))]

FUNCTIONS = [
    {
        "task_id": f"Own/{n}",
        "prompt": f'def {name}(x):\n    """{about}"""\n',
        "entry_point": name,
        "canonical_solution": f"    return {body}\n",
        "test": f"def check(candidate):\n    assert candidate(3) == {three}\n    assert candidate(10) == {ten}\n",
    }
    for n, (name, about, body, three, ten) in enumerate(
        (("triple", "Three times x.", "3 * x", 9, 30), ("squared", "x times itself.", "x * x", 9, 100))
    )
]

PROGRAMS = [
    {
        "task_id": 900 + n,
        "text": about,
        "code": f"def {name}(a, b):\n    return {body}",
        "test_list": [f"assert {name}(2, 5) == {p}", f"assert {name}(4, 1) == {q}", f"assert {name}(0, 0) == 0"],
        "test_setup_code": "",
    }
    for n, (name, about, body, p, q) in enumerate(
        (
            ("gap", "Write a function to find the distance of two numbers.", "abs(a - b)", 3, 3),
            ("both", "Write a function to add two numbers.", "a + b", 7, 5),
        )
    )
]

WORKED_PROGRAMS = [
    {
        "task_id": n,
        "text": about,
        "code": f"def {name}(a):\r\n    return {body}",
        "test_list": [f"assert {name}(1) == {p}", f"assert {name}(2) == {q}", f"assert {name}(5) == {r}"],
    }
    for n, (name, about, body, p, q, r) in enumerate(
        (
            ("next_one", "Write a function to add one to a number.", "a + 1", 2, 3, 6),
            ("mirror", "Write a function to change the sign of a number.", "-a", -1, -2, -5),
            ("tenfold", "Write a function to multiply a number by ten.", "10 * a", 10, 20, 50),
        ),
        start=2,
    )
]
"""Numbered as the published prompt's own examples are in MBPP."""

PROBLEMS = [
    {"problem": "What is half of $7$?", "solution": r"It is $\boxed{\frac{7}{2}}$.", "answer": r"\frac{7}{2}"},
    {"problem": "Name the interval $0<x\\le 2$.", "solution": r"So $\boxed{(0,2]}$.", "answer": "(0,2]"},
    {
        "problem": "How far is it in total, 600 and 634?",
        "solution": r"That is $\boxed{1,\!234}$.",
        "answer": r"1,\!234",
    },
]

WORKED_PROBLEMS = [
    {
        "problem": f"What is ${a}$ taken from ${b}$?",
        "solution": f"We take ${a}$ away, which leaves $\\boxed{{{b - a}}}$.\nFinal Answer: The final answer is "
        f"${b - a}$.",
    }
    for a, b in ((2, 9), (1, 4), (5, 50), (3, 30))
]

QUIZ = [
    {"question": "Which of these is a colour?", "choices": ["seven", "green", "north", "late"], "answer": 1},
    {"question": "Which of these is a number?", "choices": ["seven", "green", "north", "late"], "answer": "A"},
]

SCIENCE = [
    {
        "id": "own_1",
        "question": "What do plants take in by their roots?",
        "choices": {"text": ["water", "light", "sound"], "label": ["A", "B", "C"]},
        "answerKey": "A",
    },
    {
        "id": "own_2",
        "question": {
            "stem": "Which one is heavier than a car?",
            "choices": [{"text": "a leaf", "label": "1"}, {"text": "a ship", "label": "2"}],
        },
        "answerKey": "2",
    },
]

ENDINGS = [
    {
        "activity_label": "Baking",
        "ctx_a": "A man puts dough into the oven.",
        "ctx_b": "he",
        "endings": ["waits [step] until it is brown.", "swims away.", "paints it  blue.", "sells the sea."],
        "label": label,
    }
    for label in ("0", 2)
]

GOALS = [{"goal": "Keep soup warm", "sol1": "Put a lid on it.", "sol2": "Blow on it.", "label": 0}]

NAMES = [
    {"sentence": "The cup fell on the stone and _ broke.", "option1": "the cup", "option2": "the stone", "answer": "1"},
    {"sentence": "Ann thanked Eva because _ had helped.", "option1": "Ann", "option2": "Eva", "answer": 2, "qID": "q2"},
]

LINES = [{"first": "雨停了", "second": "鸟又唱"}, {"first": "灯灭了", "second": "月还亮"}]
SPANS = [{"prefix": "The old bridge", "middle": " was never crossed", "suffix": " after dark."}]


def of_gsm8k(item: Item) -> str:
    return f" {item.fields['answer']}"


def gold(item: Item) -> int:
    return int(item.fields["gold"])


def not_gold(item: Item) -> int:
    return (gold(item) + 1) % len(item.fields["candidates"])


SAMPLES = (
    Sample("gsm8k(shots=2)", {"test.jsonl": STORIES, "train.jsonl": WORKED}, of_gsm8k, lambda i: "#### 12.5"),
    Sample(
        "gsm8k(shots=2, pick='lm_eval', turns='single')",
        {"test.jsonl": STORIES, "train.jsonl": WORKED},
        of_gsm8k,
        lambda i: "none",
    ),
    Sample(
        "svamp",
        {"svamp.jsonl": [{"Body": "Uli has 4 pens.", "Question": "How many pens in 2 such sets?", "Answer": 8.0}]},
        lambda i: "That makes 8 pens.",
        lambda i: "That makes 6 pens.",
    ),
    Sample("math(shots=0)", {"math.jsonl": PROBLEMS}, lambda i: str(i.fields["solution"]), lambda i: r"\boxed{77777}"),
    Sample(
        "humaneval",
        {"humaneval.jsonl": FUNCTIONS},
        lambda i: f"Sure:\n```python\n{i.fields['prompt']}{i.fields['canonical_solution']}```\nIt works.",
        lambda i: f"```python\n{i.fields['prompt']}    return None\n```",
    ),
    Sample(
        "humaneval(post='published')",
        {"humaneval.jsonl": FUNCTIONS},
        lambda i: f"```python\n{i.fields['prompt']}{i.fields['canonical_solution']}```",
        lambda i: "I do not know.",
    ),
    Sample(
        "humaneval(post='plain')",
        {"humaneval.jsonl": FUNCTIONS},
        lambda i: str(i.fields["canonical_solution"]),
        lambda i: "    return None\n",
    ),
    Sample(
        "mbpp",
        {"mbpp.jsonl": [*WORKED_PROGRAMS, *PROGRAMS]},
        lambda i: f"{i.fields['code']}\n",
        lambda i: "def gap(a, b): pass\n",
    ),
    Sample(
        "mbpp(shots=0, post='fenced')",
        {"mbpp.jsonl": PROGRAMS},
        lambda i: f"Here it is:\n```python\n{i.fields['code']}\n```\nDone.",
        lambda i: "I cannot.",
    ),
    Sample("mmlu(shots=1)", {"test.jsonl": QUIZ, "dev.jsonl": QUIZ}, gold, not_gold),
    Sample("arc", {"ARC-Challenge-Test.jsonl": SCIENCE}, gold, not_gold),
    Sample("arc(level='easy', shots=1)", {"test.jsonl": SCIENCE, "train.jsonl": SCIENCE}, gold, not_gold),
    Sample("hellaswag", {"validation.jsonl": ENDINGS}, gold, not_gold),
    Sample("piqa", {"piqa_valid.jsonl": GOALS}, gold, not_gold),
    Sample("winogrande(shots=1)", {"dev.jsonl": NAMES, "train.jsonl": NAMES}, gold, not_gold),
    Sample("winogrande(shots=2, pick='lm_eval')", {"dev.jsonl": NAMES, "train.jsonl": NAMES}, gold, not_gold),
    Sample("reversal", {"poem.jsonl": LINES}, lambda i: f"「{i.fields['second']}」", lambda i: str(i.fields["first"])),
    Sample(
        "reversal(direction='backward')",
        {"poem.jsonl": LINES},
        lambda i: str(i.fields["first"]),
        lambda i: str(i.fields["second"]),
    ),
    Sample(
        "infilling",
        {"infilling.jsonl": SPANS},
        lambda i: i.fields["middle"] + i.fields["suffix"],
        lambda i: "",
    ),
    Sample("countdown(numbers=3, count=5)", {}, lambda i: str(i.fields["output"]), lambda i: "1+1=2"),
    Sample("countdown(numbers=5, count=5)", {}, lambda i: str(i.fields["output"]), lambda i: "1+1=2"),
    Sample("sudoku(count=5)", {}, lambda i: str(i.fields["output"]), lambda i: "1234\n1234\n1234\n1234"),
    Sample("synthetic(task='sort', count=5)", {}, lambda i: str(i.fields["answer"]), lambda i: "0"),
    Sample("synthetic(task='one_step', count=5)", {}, lambda i: str(i.fields["answer"]), lambda i: "#### 100000"),
)
"""A right answer scores 1 everywhere, a wrong one 0; programs are judged by running them."""
