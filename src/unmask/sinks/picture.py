"""Pictures of a settling canvas as SVG, made by hand: one file, no fonts or scripts from outside.

Enters: the events of one request and the text of a token id. Leaves: SVG text. `settling` stacks a few moments of the
run, tokens tinted by confidence as in the terminal; `by_step` draws the finished canvas once, tinted by the forward
that wrote each token.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from unmask.core.errors import RecordingError
from unmask.core.events import Accepted, Canvas, Event, Stepped, start_canvas
from unmask.sinks.cells import Piece, label, level, width

FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SIGN, LINE, GAP, MARGIN, SIDE = 8.4, 24.0, 4.0, 16.0, 92.0
"""Pixels: a sign's width at 14 px, a row's height, between cells, around the picture, for the words on the left."""

LEGEND = 580.0
"""Pixels a legend takes."""

INK, QUIET, CARD, HOLE, HOLE_EDGE = "#1f2328", "#656d76", "#ffffff", "#e7e9ec", "#c9ced4"
FILL = {"low": "#ffd6d6", "middle": "#ffe6bd", "high": "#d3f0d3"}
EDGE = {"low": "#d1242f", "middle": "#b35900", "high": "#1a7f37"}
WORDS = {"low": "new, below 0.3", "middle": "new, below 0.7", "high": "new, sure"}
EARLIER_FILL, EARLIER_INK = "#e3ecf6", "#2b567f"
GIVEN_FILL = "#f3f0e6"
FIRST_STEP, LAST_STEP = (240, 248, 255), (12, 55, 112)
"""Ends of the scale of `by_step`: light is early, dark is late, as in the LLaDA paper's figure."""


@dataclass(frozen=True)
class Box:
    """The place of one token: left edge, row, width."""

    x: float
    row: int
    wide: float


def settling(
    events: Iterable[Event],
    piece: Piece,
    *,
    request: str | None = None,
    rows: int = 6,
    columns: int = 78,
    title: str = "",
) -> str:
    """An SVG of `rows` moments of one run, from the first step to the last, every token always in the same place.

    Args:
        events: a run, or the events of a recording.
        piece: the text of one token id.
        request: which request; None takes the first.
        rows: how many moments, at least 2. columns: signs per line of a moment.
        title: a line above; "" for none.

    Raises:
        RecordingError: the events hold no step of that request.
    """
    moments = _moments(events, request)
    last = moments[-1]
    boxes, lines = _layout(last, piece, columns)
    shown = _choose(moments, boxes.keys(), max(rows, 2))
    top = MARGIN + (LINE if title else 0)
    height = lines * LINE + 12
    parts: list[str] = []
    for number, canvas in enumerate(shown):
        parts.append(_moment(canvas, last, boxes, piece, top + number * height, number == len(shown) - 1))
    bottom = top + len(shown) * height
    parts.append(_legend(bottom))
    wide = max(SIDE + max(_extent(boxes, ""), LEGEND), width(title) * SIGN) + 2 * MARGIN
    words = f"{len(shown)} moments of a text settling out of masks, {last.nfe} forwards in all"
    return _page(wide, bottom + LINE + MARGIN, parts, title, words)


def by_step(
    events: Iterable[Event], piece: Piece, *, request: str | None = None, columns: int = 78, title: str = ""
) -> str:
    """An SVG of the finished canvas, each token tinted by the forward that wrote it; otherwise as `settling`."""
    last = _moments(events, request)[-1]
    boxes, lines = _layout(last, piece, columns)
    top = MARGIN + (LINE if title else 0)
    total = max(last.nfe, 1)
    parts = []
    for position, box in boxes.items():
        given = last.fixed[position]
        share = (last.step[position] - 1) / max(total - 1, 1)
        fill, dark = (GIVEN_FILL, False) if given else (_scale(share), share > 0.5)
        text = _name(last, position, piece)
        tip = "given" if given else f"step {last.step[position]} of {total}"
        parts.append(_token(box, top, text, fill, "#ffffff" if dark else INK, tip=tip, left=MARGIN))
    bottom = top + lines * LINE + 8
    parts.append(_steps_legend(bottom, total))
    words = f"a text, each token tinted by the step that wrote it, {total} forwards in all"
    return _page(max(_extent(boxes, title), LEGEND) + 2 * MARGIN, bottom + LINE + MARGIN, parts, title, words)


def _moments(events: Iterable[Event], request: str | None) -> list[Canvas]:
    """The canvas before the first step and after each one."""
    moments: list[Canvas] = []
    canvas: Canvas | None = None
    for event in events:
        if canvas is None and isinstance(event, Accepted) and request in (None, event.id):
            canvas, request = start_canvas(event), event.id
            moments.append(copy.deepcopy(canvas))
        elif canvas is not None and event.id == request and not isinstance(event, Accepted):
            canvas.apply(event)
            if isinstance(event, Stepped):
                moments.append(copy.deepcopy(canvas))
    if canvas is None or len(moments) < 2:
        raise RecordingError("a picture", expected="a run with at least one step", got="none")
    moments[-1].end = canvas.end
    return moments


def _choose(moments: list[Canvas], places: Iterable[int], rows: int) -> list[Canvas]:
    """So many moments, evenly spread over the tokens settled rather than over the steps; first and last always."""
    if len(moments) <= rows:
        return moments
    done = [sum(c.ids[p] >= 0 for p in places) for c in moments]
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


def _layout(last: Canvas, piece: Piece, columns: int) -> tuple[dict[int, Box], int]:
    """Places from the finished text: cells as wide as their final token; a line ends when full or at a newline."""
    boxes: dict[int, Box] = {}
    x, row, limit = 0.0, 0, columns * SIGN
    for position in range(last.prompt_len, len(last.ids) if last.end is None else last.end):
        wide = min((width(_name(last, position, piece)) + 1) * SIGN, limit)
        if x and x + wide > limit:
            x, row = 0.0, row + 1
        boxes[position] = Box(x, row, wide)
        x += wide + GAP
        if last.ids[position] >= 0 and "\n" in piece(last.ids[position]):
            x, row = 0.0, row + 1
    rows = max((b.row for b in boxes.values()), default=0) + 1
    return boxes, rows


def _extent(boxes: dict[int, Box], title: str) -> float:
    """How far cells and title reach to the right."""
    return max([b.x + b.wide for b in boxes.values()] + [width(title) * SIGN])


def _name(canvas: Canvas, position: int, piece: Piece) -> str:
    token = canvas.ids[position]
    return " " if token < 0 else label(piece(token))


def _moment(canvas: Canvas, last: Canvas, boxes: dict[int, Box], piece: Piece, top: float, final: bool) -> str:
    """One row of the picture: the words on the left and every cell."""
    done = sum(canvas.ids[p] >= 0 for p in boxes)
    word = "start" if not canvas.nfe else f"step {canvas.nfe}"
    parts = [
        f'<text x="{MARGIN:g}" y="{top + 16:g}" fill="{INK}" font-weight="600">{word}</text>',
        f'<text x="{MARGIN:g}" y="{top + 31:g}" fill="{QUIET}" font-size="11">{done}/{len(boxes)}</text>'
        if boxes and max(b.row for b in boxes.values()) > 0
        else "",
    ]
    for position, box in boxes.items():
        parts.append(_settling_cell(canvas, position, box, piece, top, final))
    return "".join(parts)


def _settling_cell(canvas: Canvas, position: int, box: Box, piece: Piece, top: float, final: bool) -> str:
    left = MARGIN + SIDE
    if canvas.ids[position] < 0:
        return _token(box, top, "", HOLE, QUIET, edge=HOLE_EDGE, dashed=True, left=left, tip="masked")
    text = _name(canvas, position, piece)
    if canvas.fixed[position]:
        return _token(box, top, text, GIVEN_FILL, INK, left=left, tip="given")
    tip = f"step {canvas.step[position]}, confidence {canvas.confidence[position]:.2f}"
    if position in canvas.fresh or (final and canvas.step[position] == canvas.nfe):
        grade = level(canvas.confidence[position])
        return _token(box, top, text, FILL[grade], INK, edge=EDGE[grade], left=left, tip=tip, bold=True)
    return _token(box, top, text, EARLIER_FILL, EARLIER_INK, left=left, tip=tip)


def _token(
    box: Box,
    top: float,
    text: str,
    fill: str,
    ink: str,
    *,
    left: float,
    edge: str = "",
    dashed: bool = False,
    bold: bool = False,
    tip: str = "",
) -> str:
    """One cell. `textLength` makes the word fit its cell whatever monospace font the viewer has."""
    x, y = left + box.x, top + box.row * LINE
    stroke = (
        f' stroke="{edge}" stroke-width="{1.5 if bold else 1:g}"' + (' stroke-dasharray="2 2"' if dashed else "")
        if edge
        else ""
    )
    cell = f'<rect x="{x:.1f}" y="{y:.1f}" width="{box.wide:.1f}" height="{LINE - 4:g}" rx="3" fill="{fill}"{stroke}/>'
    if text.strip():
        long = min(width(text) * SIGN, box.wide - SIGN)
        weight = ' font-weight="700"' if bold else ""
        cell += (
            f'<text x="{x + SIGN / 2:.1f}" y="{y + 15:.1f}" fill="{ink}"{weight} textLength="{max(long, 1):.1f}" '
            f'lengthAdjust="spacingAndGlyphs">{_safe(text)}</text>'
        )
    return f"<g><title>{_safe(tip)}</title>{cell}</g>" if tip else cell


def _legend(y: float) -> str:
    parts, x = [], 0.0
    samples = [
        ("masked", HOLE, HOLE_EDGE, True, False),
        *((WORDS[k], FILL[k], EDGE[k], False, True) for k in FILL),
        ("earlier", EARLIER_FILL, "", False, False),
    ]
    for word, fill, edge, dashed, bold in samples:
        parts.append(_token(Box(x, 0, 18), y, "", fill, INK, left=MARGIN + SIDE, edge=edge, dashed=dashed, bold=bold))
        parts.append(f'<text x="{MARGIN + SIDE + x + 24:g}" y="{y + 14:g}" fill="{QUIET}" font-size="12">{word}</text>')
        x += 24 + len(word) * 7.4 + 20
    return "".join(parts)


def _steps_legend(y: float, total: int) -> str:
    parts = [f'<text x="{MARGIN:g}" y="{y + 14:g}" fill="{QUIET}" font-size="12">written at step</text>']
    x = 120.0
    for k in range(5):
        step = 1 + round(k * (total - 1) / 4)
        parts.append(_token(Box(x, 0, 18), y, "", _scale(k / 4), INK, left=MARGIN, edge=HOLE_EDGE))
        parts.append(f'<text x="{MARGIN + x + 24:g}" y="{y + 14:g}" fill="{QUIET}" font-size="12">{step}</text>')
        x += 70
    return "".join(parts)


def _scale(share: float) -> str:
    share = min(max(share, 0.0), 1.0)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(FIRST_STEP, LAST_STEP))


def _safe(text: str) -> str:
    """Escaped, without signs that XML 1.0 forbids."""
    allowed = (
        c for c in text if c in "\t\n" or 0x20 <= ord(c) <= 0xD7FF or 0xE000 <= ord(c) <= 0xFFFD or ord(c) > 0xFFFF
    )
    return escape("".join(allowed))


def _page(wide: float, high: float, parts: list[str], title: str, words: str) -> str:
    head = (
        f'<text x="{MARGIN:g}" y="{MARGIN + 8:g}" fill="{INK}" font-weight="600">{_safe(title)}</text>' if title else ""
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:.0f}" height="{high:.0f}" '
        f'viewBox="0 0 {wide:.0f} {high:.0f}" '
        f'role="img" font-family="{escape(FONT, quote=True)}" font-size="14" xml:space="preserve">'
        f"<title>{_safe(title or 'A canvas settling')}</title><desc>{_safe(words)}</desc>"
        f'<rect width="100%" height="100%" rx="8" fill="{CARD}"/>{head}{"".join(parts)}</svg>\n'
    )
