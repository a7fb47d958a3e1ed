"""Pictures of a settling canvas as SVG, made by hand: one file, no fonts or scripts from outside.

Enters: the events of one request and the text of a token id, or a finished `Scene`. Leaves: SVG text. `settling`
stacks a few moments of the run, tokens coloured by confidence as in the terminal; `by_step` draws the finished canvas
once, each token tinted by the step at which it settled, as in the LLaDA paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from unmask.core.events import Event
from unmask.sinks import scene
from unmask.sinks.cells import Piece, width
from unmask.sinks.scene import BASE, SIGN, Bar, Cell, Look, Run, Scene, Shape, Words

FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def settling(
    events: Iterable[Event], piece: Piece, *, request: str | None = None, rows: int = 6, look: Look | None = None
) -> str:
    """An SVG of `rows` moments of one run, from the first step to the last, every token always in the same place.

    Args:
        events: a run, or the events of a recording.
        piece: the text of one token id.
        request: which request; None takes the first.
        rows: how many moments, at least 2.
        look: theme, palette, columns and title.

    Raises:
        RecordingError: the events hold no step of that request.
    """
    return svg(scene.settling(Run(events, piece, request, look), rows))


def by_step(events: Iterable[Event], piece: Piece, *, request: str | None = None, look: Look | None = None) -> str:
    """An SVG of the finished canvas, each token tinted by the step at which it settled; otherwise as `settling`."""
    run = Run(events, piece, request, look)
    return svg(scene.frame(run, len(run.moments) - 1, "steps"))


def svg(picture: Scene, wide: float | None = None) -> str:
    """The SVG text of a scene, drawn `wide` pixels wide (its own size if None)."""
    size = 1.0 if wide is None else wide / picture.wide
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{picture.wide * size:.0f}" height="{picture.high * size:.0f}" '
        f'viewBox="0 0 {picture.wide:.0f} {picture.high:.0f}" '
        f'role="img" font-family="{escape(FONT, quote=True)}" font-size="14" xml:space="preserve">'
        f"<title>{_safe(picture.title)}</title><desc>{_safe(picture.words)}</desc>"
        f'<rect width="100%" height="100%" rx="8" fill="{picture.card}"/>{"".join(map(_shape, picture.shapes))}</svg>\n'
    )


def _shape(shape: Shape) -> str:
    if isinstance(shape, Cell):
        return _cell(shape)
    return _words(shape) if isinstance(shape, Words) else _bar(shape)


def _bar(bar: Bar) -> str:
    return f'<rect x="{bar.x:.1f}" y="{bar.y:.1f}" width="{bar.wide:.1f}" height="{bar.high:.1f}" fill="{bar.fill}"/>'


def _words(words: Words) -> str:
    """A line of text. `textLength` gives it the planned length whatever monospace font the viewer has."""
    size = "" if words.size == 14 else f' font-size="{words.size:g}"'
    weight = ' font-weight="600"' if words.bold else ""
    return (
        f'<text x="{words.x:.1f}" y="{words.y:.1f}" fill="{words.ink}" textLength="{max(words.wide, 1):.1f}"'
        f"{size}{weight}>{_safe(words.text)}</text>"
    )


def _cell(cell: Cell) -> str:
    """A box, the bar of its level, its token and what a pointer over it reads."""
    stroke = f' stroke="{cell.tint.edge}"' + (' stroke-dasharray="2 2"' if cell.hole else "") if cell.tint.edge else ""
    parts = [
        f'<rect x="{cell.x:.1f}" y="{cell.y:.1f}" width="{cell.wide:.1f}" height="{cell.high:g}" rx="3" '
        f'fill="{cell.tint.fill}"{stroke}/>',
        *map(_bar, cell.marks()),
    ]
    if cell.text.strip():
        long = max(width(cell.text) * SIGN, 1)
        weight = ' font-weight="700"' if cell.bold else ""
        parts.append(
            f'<text x="{cell.x + cell.lead:.1f}" y="{cell.y + BASE:.1f}" fill="{cell.tint.ink}"{weight} '
            f'textLength="{long:.1f}" lengthAdjust="spacingAndGlyphs">{_safe(cell.text)}</text>'
        )
    drawn = "".join(parts)
    return f"<g><title>{_safe(cell.tip)}</title>{drawn}</g>" if cell.tip else drawn


def _safe(text: str) -> str:
    """Escaped, without signs that XML 1.0 forbids."""
    allowed = (
        c for c in text if c in "\t\n" or 0x20 <= ord(c) <= 0xD7FF or 0xE000 <= ord(c) <= 0xFFFD or ord(c) > 0xFFFF
    )
    return escape("".join(allowed))
