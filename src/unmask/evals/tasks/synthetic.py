"""The project's own checkable tasks: copy, reverse, sort, sudoku 4x4, word problems of one to three steps, small
stories.

Enters: an explicit `random.Random`. Leaves: `Item`s (prompt and answer as text) and, for any decoded text, a verdict.
Every problem belongs to exactly one side of the split: a hash of its content (not of its wording) puts one problem in
sixteen into "test", so a training run can never have seen a held-out problem, however long it runs. Needs no torch.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from unmask.core.errors import ConfigError

Split = Literal["train", "test"]

NAMES = "Tom Mia Ben Lily Sam Anna Max Lucy Jack Emma Leo Zoe Tim Sara Dan Nina Paul Rosa Bob Kate".split()
OBJECTS = "apples pears books pens cups cards coins shells eggs stamps toys cakes balls stickers nuts roses".split()
THINGS = "ball book cup hat key shell coin stone feather lamp drum kite".split()
ANIMALS = "cat dog fox bird mouse bear frog duck rabbit horse".split()
PLACES = "garden forest river house hill park farm beach".split()
MOODS = "happy sad proud tired brave kind".split()
COLOURS = "red blue green yellow small big round shiny".split()
BOXES = "bags boxes baskets packs jars".split()
WORDS = NAMES + OBJECTS + THINGS + ANIMALS + PLACES + COLOURS


@dataclass(frozen=True)
class Item:
    """One problem. `key` is its content without the wording: the split and the duplicates are decided on it."""

    task: str
    prompt: str
    answer: str
    key: str


@dataclass(frozen=True)
class Task:
    """A generator and its checker."""

    name: str
    make: Callable[[random.Random], Item]
    check: Callable[[Item, str], bool]
    about: str


def split_of(key: str) -> Split:
    """The side a problem belongs to: "test" for one content hash in sixteen."""
    return "test" if hashlib.blake2b(key.encode(), digest_size=2).digest()[0] % 16 == 0 else "train"


def draw(task: str, rng: random.Random, split: Split) -> Item:
    """One item of `task` from the wanted side of the split (other draws are thrown away)."""
    make = task_named(task).make
    while True:
        item = make(rng)
        if split_of(item.key) == split:
            return item


def held_out(task: str, count: int, seed: int = 0) -> list[Item]:
    """`count` different held-out items of `task`, the same for every caller with the same seed."""
    rng = random.Random(f"held-out/{task}/{seed}")
    items: dict[str, Item] = {}
    while len(items) < count:
        item = draw(task, rng, "test")
        items.setdefault(item.prompt, item)
    return list(items.values())


def stream(rng: random.Random, mix: Mapping[str, float], split: Split = "train") -> Iterator[Item]:
    """Endless items, each of a task drawn by the weights of `mix`."""
    names, weights = list(mix), list(mix.values())
    for name in names:
        task_named(name)
    while True:
        yield draw(rng.choices(names, weights)[0], rng, split)


def held_out_stream(rng: random.Random, mix: Mapping[str, float]) -> Iterator[Item]:
    """The test side of `stream`, for validation during training."""
    return stream(rng, mix, "test")


def task_named(name: str) -> Task:
    if name not in TASKS:
        raise ConfigError(
            f"unknown task {name!r}", expected="one of " + ", ".join(TASKS), remedy="see `mix` in the recipe"
        )
    return TASKS[name]


# --- words in order ---------------------------------------------------------------------------------------------------

_COPY = ("Copy: {}", "Copy these words: {}", "Repeat: {}", "Say this again: {}", "Repeat after me: {}")
_REVERSE = ("Reverse: {}", "Reverse these words: {}", "Say this backwards: {}", "Turn around: {}")


def _word_list(rng: random.Random) -> list[str]:
    return [rng.choice(WORDS) for _ in range(rng.randint(3, 8))]


def make_copy(rng: random.Random) -> Item:
    words = " ".join(_word_list(rng))
    return Item("copy", rng.choice(_COPY).format(words), words, f"copy {words}")


def make_reverse(rng: random.Random) -> Item:
    words = _word_list(rng)
    text = " ".join(words)
    return Item("reverse", rng.choice(_REVERSE).format(text), " ".join(reversed(words)), f"reverse {text}")


# --- numbers in order -------------------------------------------------------------------------------------------------

_SORT = ("Sort: {}", "Sort these numbers: {}", "Put in order: {}", "Sort {} from small to large.")


def make_sort(rng: random.Random) -> Item:
    numbers = [rng.randint(0, 99) for _ in range(rng.randint(3, 6))]
    between = ", " if rng.random() < 0.3 else " "
    ordered = sorted(numbers)
    key = f"sort {ordered}"
    prompt = rng.choice(_SORT).format(between.join(map(str, numbers)))
    return Item("sort", prompt, between.join(map(str, ordered)), key)


# --- sudoku 4x4 -------------------------------------------------------------------------------------------------------

_SUDOKU = ("Sudoku: {}", "Solve this sudoku: {}", "Fill in the grid: {}")
Grid = tuple[int, ...]


def _all_grids() -> list[Grid]:
    """The 288 complete 4x4 grids: rows, columns and 2x2 boxes each hold 1 to 4."""
    grids: list[Grid] = []

    def fill(cells: list[int]) -> None:
        at = len(cells)
        if at == 16:
            grids.append(tuple(cells))
            return
        y, x = divmod(at, 4)
        for value in range(1, 5):
            clash = any(
                cells[i] == value and (i // 4 == y or i % 4 == x or (i // 8 == y // 2 and i % 4 // 2 == x // 2))
                for i in range(at)
            )
            if not clash:
                fill([*cells, value])

    fill([])
    return grids


GRIDS = _all_grids()
# bit g of _HAS[cell][value] says that grid g has that value there: a puzzle is unique if the AND of its clues is one
# bit
_HAS = [[sum(1 << g for g, grid in enumerate(GRIDS) if grid[c] == v) for v in range(5)] for c in range(16)]


def solutions(clues: Grid) -> int:
    """How many complete grids agree with the clues (0 = empty cell)."""
    left = (1 << len(GRIDS)) - 1
    for cell, value in enumerate(clues):
        if value:
            left &= _HAS[cell][value]
    return left.bit_count()


def make_sudoku(rng: random.Random) -> Item:
    """A grid with 6 to 10 cells removed, as long as the solution stays unique."""
    grid = rng.choice(GRIDS)
    clues, want = list(grid), rng.randint(6, 10)
    for cell in rng.sample(range(16), 16):
        if clues.count(0) >= want:
            break
        clues[cell] = 0
        if solutions(tuple(clues)) != 1:
            clues[cell] = grid[cell]
    between, blank = (" / " if rng.random() < 0.6 else "\n"), rng.choice("__.0")
    prompt = rng.choice(_SUDOKU).format(_rows(clues, between, blank))
    return Item("sudoku", prompt, _rows(grid, between, blank), f"sudoku {clues}")


def _rows(cells: list[int] | Grid, between: str, blank: str) -> str:
    return between.join(" ".join(str(v) if v else blank for v in cells[r : r + 4]) for r in range(0, 16, 4))


# --- word problems ----------------------------------------------------------------------------------------------------

_START = ("{a} has {v} {o}.", "{a} starts with {v} {o}.", "{a} owns {v} {o}.", "At first {a} has {v} {o}.")
_GROUPS = ("{a} has {g} {box} with {x} {o} in each.", "{a} fills {g} {box} with {x} {o} each.")
_GAIN = (
    "{b} gives {a} {x} more {o}.",
    "{a} buys {x} more {o}.",
    "{a} finds {x} {o}.",
    "{a} gets {x} more from {b}.",
    "Then {a} picks up {x} {o}.",
)
_LOSS = (
    "{a} gives {x} {o} to {b}.",
    "{a} loses {x} {o}.",
    "{a} sells {x} of them.",
    "{b} takes {x} {o}.",
    "Then {a} gives away {x}.",
)
_MORE_GROUPS = ("{a} buys {g} {box} with {x} {o} in each.", "{b} brings {g} {box} of {x} {o} each.")
_DOUBLE = ("Then {a} has {w} as many.", "The number of {o} becomes {w} as large.")
_HALF = ("{a} gives half of them to {b}.", "Half of the {o} are lost.")
_ASK = ("How many {o} does {a} have now?", "How many {o} are there now?", "How many {o} does {a} have?")
_LEAD = ("", "", "", "Question: ", "Solve: ")
_TAIL = ("", "", "", "", " Show the steps.", " Explain.")
_MAX = 200


@dataclass(frozen=True)
class _Step:
    """One thing that happens: its sentence, the equations it needs, the number afterwards."""

    text: str
    equations: tuple[str, ...]
    value: int


def _sum(v: int, x: int) -> str:
    return f"{v} + {x} = {v + x}"


def _gain(rng: random.Random, v: int) -> _Step | None:
    x = rng.randint(2, 40)
    return _Step(rng.choice(_GAIN).replace("{x}", str(x)), (_sum(v, x),), v + x)


def _loss(rng: random.Random, v: int) -> _Step | None:
    if v < 4:
        return None
    x = rng.randint(1, min(v - 1, 60))
    return _Step(rng.choice(_LOSS).replace("{x}", str(x)), (f"{v} - {x} = {v - x}",), v - x)


def _more_groups(rng: random.Random, v: int) -> _Step | None:
    g, x = rng.randint(2, 9), rng.randint(2, 9)
    text = rng.choice(_MORE_GROUPS).replace("{g}", str(g)).replace("{x}", str(x))
    return _Step(text, (f"{g} * {x} = {g * x}", _sum(v, g * x)), v + g * x)


def _double(rng: random.Random, v: int) -> _Step | None:
    if v > 60:
        return None
    m, w = rng.choice(((2, "twice"), (3, "three times")))
    return _Step(rng.choice(_DOUBLE).replace("{w}", w), (f"{v} * {m} = {v * m}",), v * m)


def _half(rng: random.Random, v: int) -> _Step | None:
    return None if v % 2 else _Step(rng.choice(_HALF), (f"{v} / 2 = {v // 2}",), v // 2)


_HAPPENINGS: tuple[tuple[Callable[[random.Random, int], _Step | None], int], ...] = (
    (_gain, 6),
    (_loss, 6),
    (_more_groups, 2),
    (_double, 2),
    (_half, 2),
)


def _story_of_steps(rng: random.Random, steps: int) -> tuple[list[str], list[str], int]:
    """Sentences, equations and the final number of a problem with exactly `steps` equations."""
    sentences: list[str] = []
    equations: list[str] = []
    if rng.random() < 0.2:
        g, v = rng.randint(2, 9), rng.randint(2, 9)
        sentences.append(rng.choice(_GROUPS).replace("{g}", str(g)).replace("{x}", str(v)))
        equations.append(f"{g} * {v} = {g * v}")
        v = g * v
    else:
        v = rng.randint(2, 60)
        sentences.append(rng.choice(_START).replace("{v}", str(v)))
    makers, weights = zip(*_HAPPENINGS, strict=True)
    while len(equations) < steps:
        step = rng.choices(makers, weights)[0](rng, v)
        if step is None or len(equations) + len(step.equations) > steps or not 1 <= step.value <= _MAX:
            continue
        sentences.append(step.text)
        equations.extend(step.equations)
        v = step.value
    return sentences, equations, v


def _explained(equations: list[str], value: int) -> str:
    words = ("First", "then", "then")
    return ", ".join(f"{w} {e}" for w, e in zip(words, equations, strict=False)) + f".\n#### {value}"


def make_problem(rng: random.Random, steps: int) -> Item:
    """A word problem of `steps` equations; the answer is one equation a line, then `#### n` (GSM8K's convention)."""
    sentences, equations, value = _story_of_steps(rng, steps)
    a, b = rng.sample(NAMES, 2)
    o, box, tail = rng.choice(OBJECTS), rng.choice(BOXES), rng.choice(_TAIL)
    text = " ".join([*sentences, rng.choice(_ASK)])
    for slot, word in (("{a}", a), ("{b}", b), ("{o}", o), ("{box}", box)):
        text = text.replace(slot, word)
    chain = "; ".join(equations)
    # products and quotients alone are a table of 64 facts: there the object belongs to the problem, else only the
    # numbers
    key = f"{steps} {chain}" if re.search(r"[+-]", chain) else f"{steps} {chain} {o}"
    lines = _explained(equations, value) if tail == " Explain." else "\n".join([*equations, f"#### {value}"])
    return Item(f"{('one', 'two', 'three')[steps - 1]}_step", rng.choice(_LEAD) + text + tail, lines, key)


# --- stories ----------------------------------------------------------------------------------------------------------

_TELL = (
    "Tell a story about {name} the {animal}, a {thing} and a {place}.",
    "Write a short story with {name} the {animal}, a {thing} and a {place}.",
)
_STORY = (
    "{name} the {animal} lived near a {place}.",
    "One day {name} found a {colour} {thing}.",
    "{name} was very {mood}.",
    "The {animal} took the {thing} home.",
    "{friend} came to play.",
    "They played with the {thing} all day.",
    "{name} gave the {thing} to {friend}.",
    "The {animal} went to sleep.",
)
_SHAPES = ((0, 1, 2, 3), (0, 1, 4, 5), (0, 1, 4, 6), (0, 1, 2, 7), (0, 1, 3, 2))
_ASKED = ("name", "animal", "thing", "place")
_SLOTS: Mapping[str, list[str]] = {
    "name": NAMES, "friend": NAMES, "animal": ANIMALS, "thing": THINGS, "place": PLACES, "colour": COLOURS, "mood":
    MOODS,
}  # fmt: skip


def make_story(rng: random.Random) -> Item:
    slots = {slot: rng.choice(words) for slot, words in _SLOTS.items()}
    slots["friend"] = rng.choice([n for n in NAMES if n != slots["name"]])
    shape = rng.choice(_SHAPES)
    answer = " ".join(_STORY[i] for i in shape).format(**slots)
    key = " ".join(["story", *(slots[s] for s in _ASKED)])
    return Item("story", rng.choice(_TELL).format(**slots), answer, key)


def _story_pattern(shape: tuple[int, ...]) -> re.Pattern[str]:
    """One sentence order of the grammar as a pattern; a slot that returns must hold the same word."""
    seen: set[str] = set()

    def slot(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{'|'.join(_SLOTS[name])})"

    return re.compile(re.sub(r"\{(\w+)\}", slot, " ".join(_STORY[i] for i in shape).replace(".", r"\.")))


_PATTERNS = [_story_pattern(shape) for shape in _SHAPES]


def check_story(item: Item, text: str) -> bool:
    """The text parses under the grammar, its slots agree with each other, and with the asked ones."""
    match = next((m for p in _PATTERNS if (m := p.fullmatch(_clean(text)))), None)
    if match is None:
        return False
    words = match.groupdict()
    return [words[s] for s in _ASKED] == item.key.split()[1:] and words.get("friend") != words["name"]


# --- checks -----------------------------------------------------------------------------------------------------------

_FINAL = re.compile(r"####\s*(-?\d+)")


def _clean(text: str) -> str:
    return " ".join(text.split())


def final_number(text: str) -> int | None:
    """The number behind the last `####`, None when there is none."""
    found = _FINAL.findall(text)
    return int(found[-1]) if found else None


def check_same(item: Item, text: str) -> bool:
    """The text is the answer, up to white space at the ends and its amount in between."""
    return _clean(text) == _clean(item.answer)


def check_problem(item: Item, text: str) -> bool:
    """The final number is right (the usual GSM8K rule)."""
    return final_number(text) == final_number(item.answer)


def check_sudoku(item: Item, text: str) -> bool:
    """Sixteen digits in four rows that form a complete grid and keep every clue (the solution is unique)."""
    return _clean(text) == _clean(item.answer)


_CALCULATE = ("What is {}?", "{} = ?", "Compute {}.", "Calculate {}.", "How much is {}?")


def make_equation(rng: random.Random) -> Item:
    """One bare equation out of the range that the word problems use."""
    v = rng.randint(2, 60) if rng.random() < 0.5 else rng.randint(2, 160)
    op = rng.choices("+-*/", (8, 8, 3, 1))[0]
    if op == "+":
        x = rng.randint(2, 40) if rng.random() < 0.8 else rng.randint(4, 81)
        left, value = f"{v} + {x}", v + x
    elif op == "-":
        x = rng.randint(1, min(v - 1, 60))
        left, value = f"{v} - {x}", v - x
    elif op == "*":
        v, x = (rng.randint(2, 9), rng.randint(2, 9)) if rng.random() < 0.5 else (rng.randint(2, 60), rng.randint(2, 3))
        left, value = f"{v} * {x}", v * x
    else:
        left, value = f"{v * 2} / 2", v
    equation = f"{left} = {value}"
    # the key of the same one-step problem: what is held out there is held out here
    key = f"1 {equation}" if op in "+-" else f"equation {equation} {rng.choice(OBJECTS)}"
    return Item("equation", rng.choice(_CALCULATE).format(left), f"{equation}\n#### {value}", key)


def _steps(n: int) -> Callable[[random.Random], Item]:
    return lambda rng: make_problem(rng, n)


TASKS: dict[str, Task] = {
    t.name: t
    for t in (
        Task("copy", make_copy, check_same, "say 3 to 8 words again"),
        Task("reverse", make_reverse, check_same, "say 3 to 8 words in the other order"),
        Task("sort", make_sort, check_same, "put 3 to 6 numbers below 100 in order"),
        Task("sudoku", make_sudoku, check_sudoku, "complete a 4x4 sudoku with 6 to 10 empty cells"),
        Task("equation", make_equation, check_problem, "one equation without a story"),
        Task("one_step", _steps(1), check_problem, "a word problem of one equation"),
        Task("two_step", _steps(2), check_problem, "a word problem of two equations"),
        Task("three_step", _steps(3), check_problem, "a word problem of three equations"),
        Task("story", make_story, check_story, "a story of four sentences with an asked animal and thing"),
    )
}
