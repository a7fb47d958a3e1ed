"""What needs no model: one trivial rule per synthetic task, to be shown beside a model's scores.

Enters: an item. Leaves: the rule's answer. Words and numbers are repeated as they stand, an empty sudoku cell takes the
first digit that its row, column and box allow, a word problem adds up every number in it, a story repeats the prompt.
"""

from __future__ import annotations

import re

from unmask.evals.tasks.synthetic import Item


def answer(item: Item) -> str:
    """The trivial rule's answer to an item."""
    if item.task in ("copy", "reverse", "sort"):
        return _payload(item)
    if item.task == "sudoku":
        return _first_fit(item)
    if item.task == "story":
        return item.prompt
    return f"#### {sum(map(int, re.findall(r'[0-9]+', item.prompt)))}"


def _payload(item: Item) -> str:
    """What stands behind the colon, or the numbers of a prompt without one."""
    if ":" in item.prompt:
        return item.prompt.split(":", 1)[1].strip()
    return (
        ", ".join(n)
        if "," in item.prompt and (n := re.findall(r"\d+", item.prompt))
        else " ".join(re.findall(r"\d+", item.prompt))
    )


def _first_fit(item: Item) -> str:
    text = item.prompt.split(":", 1)[1].strip()
    rows = re.split(r"\s*/\s*|\n", text)
    grid = [[int(c) if c in "1234" else 0 for c in row.split()] for row in rows]
    for y in range(4):
        for x in range(4):
            if not grid[y][x]:
                grid[y][x] = next((v for v in (1, 2, 3, 4) if v not in _seen(grid, y, x)), 1)
    between = " / " if "/" in text else "\n"
    return between.join(" ".join(map(str, row)) for row in grid)


def _seen(grid: list[list[int]], y: int, x: int) -> set[int]:
    box = {grid[y // 2 * 2 + i][x // 2 * 2 + j] for i in (0, 1) for j in (0, 1)}
    return box | set(grid[y]) | {row[x] for row in grid}
