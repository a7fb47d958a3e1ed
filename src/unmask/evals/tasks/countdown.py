"""Countdown: reach a number from three to five others with + - * /, one equation a step.

Enters: nothing (a seeded generator; a hash of the content decides the side of the split) or records {"input":
"3,4,2,14", "output": "3+4=7,7*2=14"} (the last number of the input is the target). Leaves: Dream's 8-shot prompt and a
check of every step.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Question, Verdict
from unmask.evals.tasks.data import Benchmark, Record
from unmask.evals.tasks.generated import generated, with_first_as_shots
from unmask.evals.tasks.layout import Written, asked

_HEADS = {
    3: "Given 4 numbers, use +-*/ to operate over the first three numbers to achieve the last number.",
    4: "Given 5 numbers, use +-*/ to operate over the first four numbers to achieve the fifth number.",
    5: "Given 6 numbers, use +-*/ to operate over the first five numbers to achieve the last number.",
}
_STEP = re.compile(r"(\d{1,9})([+\-*/])(\d{1,9})=(\d{1,9})")
_LARGEST = 100
"""Numbers and targets lie in 1 to this."""
_TOKENS_PER_NUMBER = 8
"""Published: 32 tokens for four numbers."""


def value(a: int, sign: str, b: int) -> int | None:
    """a sign b where that is a whole number >= 0."""
    if sign == "/":
        return a // b if b and a % b == 0 else None
    found = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return found if found >= 0 else None


def solves(puzzle: str, answer: str) -> bool:
    """Every step is true and uses numbers that are left; at the end only the target is left. Spaces do not matter."""
    *numbers, target = (int(n) for n in puzzle.split(","))
    left = Counter(numbers)
    for step in re.sub(r"\s", "", answer).split(","):
        match = _STEP.fullmatch(step)
        if match is None:
            return False
        a, b, c = int(match[1]), int(match[3]), int(match[4])
        if value(a, match[2], b) != c:
            return False
        left.subtract((a, b))
        if min(left.values()) < 0:
            return False
        left[c] += 1
    return +left == Counter((target,))


def draw(rng: random.Random, count: int) -> dict[str, Any] | None:
    """A puzzle of `count` numbers with one solution of it, None if this draw does not end in the allowed range."""
    numbers = [rng.randint(1, _LARGEST) for _ in range(count)]
    left, steps = list(numbers), []
    while len(left) > 1:
        a, b = (left.pop(rng.randrange(len(left))) for _ in range(2))
        sign = rng.choice("+-*/")
        c = value(a, sign, b)
        if c is None or not 1 <= c <= _LARGEST**2:
            return None
        steps.append(f"{a}{sign}{b}={c}")
        left.append(c)
    if left[0] > _LARGEST:
        return None
    key = f"countdown {sorted(numbers)} {left[0]}"
    return {"input": ",".join(map(str, (*numbers, left[0]))), "output": ",".join(steps), "key": key}


def _parse(record: Record) -> dict[str, Any]:
    puzzle, solution = record.text("input"), record.text("output")
    if not re.fullmatch(r"\d+(,\d+){2,}", puzzle) or not solves(puzzle, solution):
        raise record.refuse("numbers and their target, with steps that reach it", repr(f"{puzzle}: {solution}"))
    return {"input": puzzle, "output": solution}


@component("countdown")
class Countdown(Written):
    """Countdown (Gandhi et al. 2024, arXiv 2404.03683), asked as Dream's planning evaluation asks it."""

    metric: ClassVar[str] = "solved"
    default_shots: ClassVar[int] = 8
    numbers: Literal[3, 4, 5] = option(4, help="cd3, cd4 or cd5")
    shots: int = option(8, low=0, high=64, help="worked examples")
    count: int = option(500, low=1, high=100_000, help="generated items")
    seed: int = option(0, low=0, help="of the generator")

    @property
    def max_tokens(self) -> int:
        return _TOKENS_PER_NUMBER * self.numbers

    def load(self, data: str | None, split: str) -> Data:
        if data is None:
            name = f"countdown/{self.numbers}/seed {self.seed}"
            return generated(name, split, self.count, self.shots, lambda rng: draw(rng, self.numbers))
        return with_first_as_shots(Benchmark(f"cd{self.numbers}", _FIELDS, self._parse).load(data, split), self.shots)

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        parts = [_HEADS[self.numbers]]
        parts += [f"Input: {s.fields['input']}\nOutput: {s.fields['output']}" for s in shots[: self.shots]]
        parts.append(f"Input: {item.fields['input']}\nOutput: ")
        return replace(asked("\n\n".join(parts)), until=("\n",))

    def judge(self, item: Item, answer: str) -> Verdict:
        return Verdict({"solved": float(solves(str(item.fields["input"]), answer))}, extracted=answer.strip() or None)

    def _parse(self, record: Record) -> dict[str, Any]:
        found = _parse(record)
        if found["input"].count(",") != self.numbers:
            raise record.refuse(f"{self.numbers} numbers and a target", repr(found["input"]))
        return found


_FIELDS = 'records {"input": "3,4,2,14", "output": "3+4=7,7*2=14"}'
