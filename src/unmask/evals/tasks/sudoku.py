"""Sudoku 4x4: fill a grid so that rows, columns and boxes hold 1 to 4.

Enters: nothing (a seeded generator of puzzles with one solution) or records {"input": four lines of digits, 0 for an
empty cell, "output": the filled grid}. Leaves: Dream's 8-shot prompt; every grid that keeps clues and rules is right.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from unmask.core.spec import component, option
from unmask.evals.task import Data, Item, Question, Verdict
from unmask.evals.tasks.data import Benchmark, Record
from unmask.evals.tasks.generated import generated, with_first_as_shots
from unmask.evals.tasks.layout import Written, asked
from unmask.evals.tasks.synthetic import GRIDS, solutions

_HEAD = (
    "Fill the positions where the values are 0 in a 4x4 grid with digits 1-4 so that each column, each row, and each "
    "of the four 2x2 subgrids that compose the grid contains all of the digits from 1 to 4."
)
_COMPLETE = frozenset(GRIDS)
_CELLS = 16


def rows(cells: Sequence[int]) -> str:
    """Four lines of four digits."""
    return "\n".join("".join(map(str, cells[r : r + 4])) for r in range(0, _CELLS, 4))


def grid(text: str) -> tuple[int, ...] | None:
    """Sixteen digits in four lines, nothing else; spaces inside a line do not matter."""
    lines = [re.sub(r"[ \t]", "", line) for line in text.strip().split("\n")]
    if len(lines) != 4 or not all(re.fullmatch("[0-4]{4}", line) for line in lines):
        return None
    return tuple(int(c) for line in lines for c in line)


def solves(puzzle: str, answer: str) -> bool:
    """The answer's first four lines are a complete grid that keeps every clue."""
    clues, found = grid(puzzle), grid("\n".join(answer.strip().split("\n")[:4]))
    return found in _COMPLETE and clues is not None and all(c in (0, f) for c, f in zip(clues, found or ()))


def draw(rng: random.Random, empty: int) -> dict[str, Any] | None:
    """A puzzle with exactly `empty` empty cells and one solution, None if this draw has none."""
    full = rng.choice(GRIDS)
    clues = list(full)
    for cell in rng.sample(range(_CELLS), _CELLS):
        if clues.count(0) == empty:
            break
        clues[cell] = 0
        if solutions(tuple(clues)) != 1:
            clues[cell] = full[cell]
    if clues.count(0) != empty:
        return None
    return {"input": rows(clues), "output": rows(full), "key": f"sudoku {clues}"}


def _parse(record: Record) -> dict[str, Any]:
    puzzle, filled = record.text("input"), record.text("output")
    if not solves(puzzle, filled):
        raise record.refuse("a puzzle and its filled grid", repr(f"{puzzle} -> {filled}"))
    return {"input": puzzle, "output": filled}


DATA = Benchmark("sudoku", 'records {"input": four lines of digits 0 to 4, "output": the filled grid}', _parse)


@component("sudoku")
class Sudoku(Written):
    """4x4 sudoku, asked as Dream's planning evaluation asks it (Ye et al. 2025, arXiv 2508.15487)."""

    metric: ClassVar[str] = "solved"
    max_tokens: ClassVar[int] = 24
    default_shots: ClassVar[int] = 8
    empty: int = option(6, low=1, high=12, help="empty cells of a generated puzzle (of 16)")
    shots: int = option(8, low=0, high=64, help="worked examples")
    count: int = option(500, low=1, high=100_000, help="generated items")
    seed: int = option(0, low=0, help="of the generator")

    def load(self, data: str | None, split: str) -> Data:
        if data is None:
            name = f"sudoku/{self.empty}/seed {self.seed}"
            return generated(name, split, self.count, self.shots, lambda rng: draw(rng, self.empty))
        return with_first_as_shots(DATA.load(data, split), self.shots)

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        parts = [_HEAD]
        parts += [f"Input:\n{s.fields['input']}\nOutput:\n{s.fields['output']}" for s in shots[: self.shots]]
        parts.append(f"Input:\n{item.fields['input']}\nOutput:\n ")
        return replace(asked("\n\n".join(parts)), until=("\n\n",))

    def judge(self, item: Item, answer: str) -> Verdict:
        right = solves(str(item.fields["input"]), answer)
        return Verdict({"solved": float(right)}, extracted=answer.strip() or None)
