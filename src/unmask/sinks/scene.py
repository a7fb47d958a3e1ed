"""What a picture of a run shows and where: shapes without a file format.

Enters: the events of one request and the text of a token id. Leaves: a `Scene`, a list of cells, words and bars, which
`picture` writes as SVG and `raster` as pixels. Every token keeps its place in every picture of a run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from unmask.core.errors import RecordingError
from unmask.core.events import Accepted, Canvas, Event, Stepped, start_canvas
from unmask.sinks.cells import Level, Piece, fit, label, level, message, width
from unmask.sinks.palettes import COLOURS, Colours, Palette, Theme, Tint

Style = Literal["moments", "steps"]

SIGN, LINE, HIGH, GAP, PAD, MARGIN, SIDE = 8.4, 26.0, 22.0, 4.0, 13.0, 16.0, 92.0
"""Pixels: a sign's width at 14 px, a row of cells, a cell, between cells, around a token in its cell (LEAD of it on the
left, where the bar stands), around the picture, and for the words on the left."""
LEAD, BASE, BAR_LEFT, BAR_WIDE, BAR_EDGE = 8.0, 15.5, 2.5, 2.5, 3.0
"""Pixels inside a cell: to the token, to its baseline, to the bar, the bar itself, and above and below the bar."""
SMALL, ROW = 12.0, 20.0
"""Size of the words below the cells, and their line height."""
NARROWEST = 300.0
"""Pixels that words and legend take at least, however narrow the cells are."""
WIDEST = 12
"""Signs that a token seen only during the run may add to a cell; the final token is never cut for it."""
BARS: dict[Level, float] = {"low": 0.34, "middle": 0.67, "high": 1.0}
"""The shape of a level: how much of the cell's height the bar at its left takes."""
WORDS: dict[Level, str] = {"low": "new, below 0.3", "middle": "new, below 0.7", "high": "new, sure"}


@dataclass(frozen=True)
class Cell:
    """One token's box. bar: height of the bar at the left, 0 to 1; hole: a dash in the middle, or dashes around a box
    with an edge; tip: what a pointer over it reads."""

    x: float
    y: float
    wide: float
    high: float
    text: str
    tint: Tint
    bar: float = 0.0
    hole: bool = False
    bold: bool = False
    tip: str = ""

    @property
    def lead(self) -> float:
        """From the left edge to the token: past the bar, or centred where none stands."""
        return LEAD if self.bar else (self.wide - width(self.text) * SIGN) / 2

    def marks(self) -> list[Bar]:
        """The bar of the level, or the dash of a hole."""
        fill = self.tint.sign or self.tint.ink
        if self.hole and not self.tint.edge and not self.text:
            return [Bar(self.x + self.wide / 2 - 4, self.y + self.high / 2 - 1, 8, 2, fill)]
        if not self.bar:
            return []
        long = (self.high - 2 * BAR_EDGE) * self.bar
        return [Bar(self.x + BAR_LEFT, self.y + self.high - BAR_EDGE - long, BAR_WIDE, long, fill)]


@dataclass(frozen=True)
class Words:
    """A line of text; y is its baseline."""

    x: float
    y: float
    text: str
    ink: str
    size: float = 14.0
    bold: bool = False

    @property
    def wide(self) -> float:
        return width(self.text) * SIGN * self.size / 14


@dataclass(frozen=True)
class Bar:
    """A plain rectangle."""

    x: float
    y: float
    wide: float
    high: float
    fill: str


Shape = Cell | Words | Bar


@dataclass(frozen=True)
class Scene:
    """A whole picture. title and words: what it is, for those who cannot see it."""

    wide: float
    high: float
    card: str
    shapes: tuple[Shape, ...]
    title: str
    words: str


@dataclass(frozen=True)
class Look:
    """How pictures are drawn. columns: signs per line of cells; title: a line above, None for the prompt."""

    theme: Theme = "light"
    palette: Palette = "published"
    columns: int = 78
    title: str | None = None

    @property
    def colours(self) -> Colours:
        return COLOURS[self.theme, self.palette]


@dataclass(frozen=True)
class Box:
    """The place of one token: left edge, row, width in signs."""

    x: float
    row: int
    signs: int

    @property
    def wide(self) -> float:
        return self.signs * SIGN + PAD


class Run:
    """One request of a recording, moment by moment, and the place of each of its tokens.

    Args:
        events: a run, or the events of a recording.
        piece: the text of one token id.
        request: which request; None takes the first.
        look: columns and title are read here.
        whole: show what was written after the end of the answer too.

    Raises:
        RecordingError: the events hold no step of that request.
    """

    def __init__(
        self,
        events: Iterable[Event],
        piece: Piece,
        request: str | None = None,
        look: Look | None = None,
        whole: bool = False,
    ) -> None:
        self.piece, self.look, self.whole = piece, look or Look(), whole
        self.moments = _moments(events, request)
        self.last = self.moments[-1]
        self.settled = _settled(self.moments)
        self.boxes = _layout(self, self.look.columns)
        self.lines = max(b.row for b in self.boxes.values()) + 1 if self.boxes else 1
        self.extent = max((b.x + b.wide for b in self.boxes.values()), default=0.0)
        wide = self.last.blocks and max(b - a for a, b in self.last.blocks) > 1
        self.borders = {a for a, _ in self.last.blocks if a > min(self.boxes, default=0)} if wide else set[int]()

    @cached_property
    def title(self) -> str:
        return (
            message(self.last.ids[: self.last.prompt_len], self.piece) if self.look.title is None else self.look.title
        )

    def name(self, canvas: Canvas, position: int) -> str:
        """The visible form of the token there."""
        return label(self.piece(canvas.ids[position]))

    @cached_property
    def answer(self) -> list[int]:
        """The places of the answer itself."""
        end = self.last.end if self.last.end not in (None, self.last.prompt_len) else len(self.last.ids)
        return [p for p in self.boxes if p < (end or 0)]

    def done(self, canvas: Canvas) -> int:
        """How many places of the answer are settled."""
        return sum(canvas.ids[p] >= 0 for p in self.answer)


def _moments(events: Iterable[Event], request: str | None) -> tuple[Canvas, ...]:
    """The canvas before the first step and after each one."""
    moments: list[Canvas] = []
    canvas: Canvas | None = None
    for event in events:
        if isinstance(event, Accepted) and request in (None, event.id):
            canvas, request = start_canvas(event), event.id
            moments = [_copy(canvas)]
        elif canvas is not None and event.id == request:
            canvas.apply(event)
            if isinstance(event, Stepped):
                moments.append(_copy(canvas))
    if canvas is None or len(moments) < 2:
        remedy = "Choose another request with --request, or record a run that was not refused at once."
        raise RecordingError("a picture", expected="a run with at least one step", got="none", remedy=remedy)
    for moment in moments:
        moment.end = canvas.end
    return tuple(moments)


def _copy(canvas: Canvas) -> Canvas:
    lists = {"ids": list(canvas.ids), "step": list(canvas.step), "confidence": list(canvas.confidence)}
    return dataclasses.replace(canvas, **lists, fresh=set(canvas.fresh))  # type: ignore[arg-type]


def _settled(moments: tuple[Canvas, ...]) -> list[list[int]]:
    """Per moment and position, the step whose write gave it the token it has; an edit to the same token is none."""
    steps = [[0] * len(moments[0].ids)]
    for before, now in pairwise(moments):
        row = list(steps[-1])
        for position in now.fresh:
            if now.ids[position] != before.ids[position]:
                row[position] = now.nfe
        steps.append(row)
    return steps


def _layout(run: Run, columns: int) -> dict[int, Box]:
    """Places for the whole run: cells as wide as their tokens; a line ends when full or at a final newline."""
    last, boxes, x, row = run.last, dict[int, Box](), 0.0, 0
    limit, most = columns * SIGN, max(columns - 2, 1)
    for position in range(last.prompt_len, _stop(run)):
        box = Box(x, row, min(_signs(run, position), most))
        if x and x + box.wide > limit:
            x, row = 0.0, row + 1
            box = Box(x, row, box.signs)
        boxes[position] = box
        x += box.wide + GAP
        if last.ids[position] >= 0 and "\n" in run.piece(last.ids[position]):
            x, row = 0.0, row + 1
    return boxes


def _stop(run: Run) -> int:
    """Where the picture ends: with the answer (the canvas, if that is empty), or with the last place ever written."""
    last = run.last
    end = len(last.ids) if last.end is None or last.end == last.prompt_len else last.end
    if not run.whole:
        return end
    return max([end, *(p + 1 for p in range(end, len(last.ids)) if any(c.ids[p] >= 0 for c in run.moments))])


def _signs(run: Run, position: int) -> int:
    """The width of a cell: its final token, or up to WIDEST an earlier one."""
    seen = {c.ids[position] for c in run.moments} - {-1}
    final = width(run.name(run.last, position)) if run.last.ids[position] >= 0 else 1
    widest = max((width(label(run.piece(i))) for i in seen), default=1)
    return max(final, min(widest, WIDEST))


# ---- drawings --------------------------------------------------------------------------------------------------------


def settling(run: Run, rows: int = 6) -> Scene:
    """`rows` moments of one run, one above the other, from the first step to the last."""
    look, left = run.look.colours, MARGIN + SIDE
    wide = max(run.extent, NARROWEST)
    shapes: list[Shape] = list(_title(run, SIDE + wide))
    top = MARGIN + _height(shapes)
    for canvas in _choose(run, max(rows, 2)):
        word = "start" if not canvas.nfe else f"step {canvas.nfe}"
        shapes.append(Words(MARGIN, top + 15, word, look.ink, bold=True))
        if run.lines > 1:
            shapes.append(Words(MARGIN, top + 31, f"{run.done(canvas)}/{len(run.answer)}", look.quiet, 11))
        shapes += _cells(run, canvas, left, top)
        top += run.lines * LINE + 12
    legend, high = _legend(run, left, top, wide)
    steps = len(run.moments) - 1
    words = f"{min(rows, steps + 1)} moments of a text settling out of masks, {steps} steps in all"
    return _scene(run, (*shapes, *legend), SIDE + wide, top + high, words)


def frame(run: Run, step: int, style: Style = "moments") -> Scene:
    """The canvas after so many steps (0: before the first): title, cells, counts and legend, all at fixed places.

    style: "moments" colours new tokens by confidence; "steps" tints every token by the step at which it settled.
    """
    canvas, look = run.moments[step], run.look.colours
    wide = max(run.extent, NARROWEST)
    shapes: list[Shape] = list(_title(run, wide))
    top = MARGIN + _height(shapes)
    shapes += _cells(run, canvas, MARGIN, top) if style == "moments" else _tinted(run, step, MARGIN, top)
    top += run.lines * LINE + 4
    shapes += [
        Bar(MARGIN, top, wide, 3, look.line),
        Bar(MARGIN, top, wide * step / (len(run.moments) - 1), 3, look.quiet),
    ]
    counts, high = _flow(_counts(run, step), MARGIN, top + 6, wide, look.ink)
    legend, more = (_legend if style == "moments" else _scale)(run, MARGIN, top + 6 + high, wide)
    return _scene(run, (*shapes, *counts, *legend), wide, top + 6 + high + more, _sentence(run, step, style))


def _sentence(run: Run, step: int, style: Style) -> str:
    total = len(run.moments) - 1
    if style == "steps":
        return f"a text, each token tinted by the step at which it settled, after step {step} of {total}"
    return f"a text settling out of masks, after step {step} of {total}"


def _scene(run: Run, shapes: tuple[Shape, ...], wide: float, bottom: float, words: str) -> Scene:
    card = run.look.colours.card
    return Scene(wide + 2 * MARGIN, bottom + MARGIN - 4, card, shapes, run.title or "A canvas settling", words)


def _title(run: Run, wide: float) -> Iterator[Words]:
    """The title in at most two lines."""
    columns = int(wide / SIGN)
    for number, line in enumerate(_halves(" ".join(run.title.split()), columns)):
        yield Words(MARGIN, MARGIN + 8 + number * ROW, fit(line, columns).rstrip(), run.look.colours.ink, bold=True)


def _halves(text: str, columns: int) -> list[str]:
    """The words that fit into one line, and the rest."""
    head = fit(text, columns, more="").rstrip()
    if len(head) == len(text):
        return [text] if text else []
    at = len(head) if text[len(head)] == " " else head.rfind(" ")
    at = at if at > 0 else len(head)  # one long word, or writing without spaces
    return [text[:at], text[at:].lstrip()]


def _height(title: list[Shape]) -> float:
    return len(title) * ROW + 4 if title else 0.0


def _choose(run: Run, rows: int) -> list[Canvas]:
    """So many moments, evenly spread over the tokens settled rather than over the steps; first and last always."""
    moments = run.moments
    if len(moments) <= rows:
        return list(moments)
    done = [run.done(c) for c in moments]
    if done[1] == done[-1]:  # tokens are edited, not filled in: spread over the steps
        done = list(range(len(moments)))
    first, last = done[0], done[-1]
    picked = [0]
    for k in range(1, rows - 1):
        goal = first + (last - first) * k / (rows - 1)
        nearest = min(range(len(moments)), key=lambda i: abs(done[i] - goal))
        if nearest > picked[-1]:
            picked.append(nearest)
    if picked[-1] != len(moments) - 1:
        picked.append(len(moments) - 1)
    return [moments[i] for i in picked]


def _cells(run: Run, canvas: Canvas, left: float, top: float) -> Iterator[Shape]:
    """Every cell in the colours of the demo, and the borders between blocks."""
    for position, box in run.boxes.items():
        tint, bar, tip = _meaning(run, canvas, position)
        yield _cell(run, canvas, position, box, left, top, tint, bar, tip)
    yield from _borders(run, left, top)


def _meaning(run: Run, canvas: Canvas, position: int) -> tuple[Tint, float, str]:
    """Tint, height of the bar and words of one cell."""
    look = run.look.colours
    if canvas.ids[position] < 0:
        return look.masked, 0.0, "masked again" if position in canvas.fresh else "masked"
    if canvas is run.last and run.answer and position > run.answer[-1]:
        return look.after, 0.0, "after the end"
    if canvas.fixed[position] or not canvas.step[position]:
        return look.given, 0.0, "given"
    sure = canvas.confidence[position]
    tip = f"step {canvas.step[position]}" + (f", confidence {sure:.2f}" if math.isfinite(sure) else "")
    grade = level(sure)
    return look.tints()[grade] if position in canvas.fresh else look.earlier, BARS[grade], tip


def _tinted(run: Run, step: int, left: float, top: float) -> Iterator[Shape]:
    """Every cell tinted by the step at which it settled; what is still masked is an empty tile."""
    look, canvas, total = run.look.colours, run.moments[step], run.last.nfe
    for position, box in run.boxes.items():
        when = run.settled[step][position]
        if canvas.ids[position] < 0:
            tint, tip = Tint(look.card, look.quiet, look.quiet), "masked"
        elif not when:
            tint, tip = look.given, "given"
        else:
            tint, tip = look.step((when - 1) / max(total - 1, 1)), f"step {when} of {total}"
        yield _cell(run, canvas, position, box, left, top, tint, 0.0, tip)
    yield from _borders(run, left, top)


def _cell(
    run: Run, canvas: Canvas, position: int, box: Box, left: float, top: float, tint: Tint, bar: float, tip: str
) -> Cell:
    hole = canvas.ids[position] < 0
    again = "×" if hole and position in canvas.fresh else ""
    text = again if hole else fit(run.name(canvas, position), box.signs).rstrip(" ")
    bold = bool(bar) and position in canvas.fresh
    return Cell(left + box.x, top + box.row * LINE, box.wide, HIGH, text, tint, bar, hole, bold, tip)


def _borders(run: Run, left: float, top: float) -> Iterator[Bar]:
    for position in sorted(run.borders & run.boxes.keys()):
        box = run.boxes[position]
        yield Bar(left + box.x - GAP / 2 - 1, top + box.row * LINE - 1, 2, HIGH + 2, run.look.colours.line)


# ---- words below the cells -------------------------------------------------------------------------------------------


def _counts(run: Run, step: int) -> list[tuple[Cell | None, str]]:
    """Step, forwards, settled tokens and tokens per forward. As wide at every step, so that nothing moves."""
    canvas, total, places = run.moments[step], len(run.moments) - 1, len(run.answer)
    done = run.done(canvas)
    tokens = sum(canvas.ids[p] >= 0 and canvas.step[p] > 0 for p in run.answer)
    speed = f"{tokens / canvas.nfe:.2f}" if canvas.nfe else "-"
    words = (
        f"step {step:>{len(str(total))}}/{total}",
        f"NFE {canvas.nfe:>{len(str(run.last.nfe))}}",
        f"{done:>{len(str(places))}}/{places} settled",
        f"{speed} tokens/forward",
    )
    return [(None, word) for word in words]


def _legend(run: Run, x: float, y: float, wide: float) -> tuple[list[Shape], float]:
    """What the colours of the demo mean; kinds that never occur in this run are left out."""
    look = run.look.colours
    samples = [(_sample(look.masked, hole=True), "masked")]
    samples += [(_sample(look.tints()[k], bar=BARS[k]), WORDS[k]) for k in WORDS]
    samples.append((_sample(look.earlier), "earlier"))
    return _flow(samples + _given(run), x, y, wide, look.quiet)


def _given(run: Run) -> list[tuple[Cell, str]]:
    given = any(run.moments[0].ids[p] >= 0 for p in run.boxes)
    return [(_sample(run.look.colours.given), "given")] if given else []


def _sample(tint: Tint, bar: float = 0.0, hole: bool = False) -> Cell:
    return Cell(0, 0, 18, 16, "", tint, bar, hole)


def _flow(
    samples: Iterable[tuple[Cell | None, str]], x: float, y: float, wide: float, ink: str
) -> tuple[list[Shape], float]:
    """Samples and their words in lines that are no wider than the picture; the shapes and their height."""
    shapes: list[Shape] = []
    at, row = 0.0, 0
    for cell, text in samples:
        words = Words(0, 0, text, ink, SMALL)
        lead = 0.0 if cell is None else cell.wide + 6
        if at and at + lead + words.wide > wide:
            at, row = 0.0, row + 1
        top = y + row * ROW
        if cell is not None:
            shapes.append(dataclasses.replace(cell, x=x + at, y=top + 2))
        shapes.append(dataclasses.replace(words, x=x + at + lead, y=top + 14))
        at += lead + words.wide + 18
    return shapes, (row + 1) * ROW


def _scale(run: Run, x: float, y: float, wide: float) -> tuple[list[Shape], float]:
    """The scale of steps with its quarter points, and what is not on it."""
    look, total = run.look.colours, run.last.nfe
    head = Words(x, y + 14, "settled at step", look.quiet, SMALL)
    count = min(total, 48)
    left, long = x + head.wide + 10, min(wide - head.wide - 20, 360.0)
    one = long / count
    shapes: list[Shape] = [head, Bar(left - 1, y + 2, long + 2, 15, look.line)]
    for k in range(count):
        fill = look.step(k / max(count - 1, 1)).fill
        shapes.append(Bar(left + k * one, y + 3, one if k == count - 1 else one + 0.5, 13, fill))  # no seams
    for step in dict.fromkeys(1 + round(k * (total - 1) / 4) for k in range(5)):
        middle = left + (0.5 + (step - 1) / max(total - 1, 1) * (count - 1)) * one
        words = Words(0, y + 30, str(step), look.quiet, SMALL)
        shapes.append(dataclasses.replace(words, x=middle - words.wide / 2))
    holes = run.whole or any(run.last.ids[p] < 0 for p in run.boxes)  # one picture of a finished text has none
    masked = [(_sample(Tint(look.card, look.quiet, look.quiet), hole=True), "masked")] if holes else []
    used = head.wide + 10 + long + 24
    beside = wide - used > 90
    at, down = (used, 0.0) if beside else (0.0, 36.0)
    samples = masked + _given(run)
    more, high = _flow(samples, x + at, y + down, wide - at, look.quiet) if samples else ([], 0.0)
    return shapes + more, max(36.0, down + high)
