"""The canvas in a terminal, redrawn in place as it settles, or one plain line per step where nothing can be redrawn.

Enters: events and the text of a token id. Every position keeps its cell for the whole run, so nothing jumps. Colours
say how sure a newly revealed token was, and the bar before it says the same to whoever does not see colours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from unmask.core.events import Accepted, Canvas, Event, Failed, Finished, Stepped, start_canvas
from unmask.sinks.cells import ASCII_BARS, BARS, END, Piece, fit, harmless, label, level, message, width
from unmask.sinks.palettes import BASIC, TERMINAL, Palette, Theme

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

CELL = 9
"""Columns of a token and the bar before it; longer tokens are cut, in the drawing only."""
PROMPT_ROWS, OTHERS = 3, 6
LEGENDS: tuple[dict[str, str], ...] = (
    {
        "masked": "masked",
        "low": "new, below 0.3",
        "middle": "new, below 0.7",
        "high": "new, sure",
        "earlier": "earlier",
    },
    {"masked": "mask", "low": "<.3", "middle": "<.7", "high": "sure", "earlier": "old"},
    {"low": "<.3", "middle": "<.7", "high": "sure"},
)
"""The legend in full, for narrow terminals and for very narrow ones."""


def canvas_sink(
    piece: Piece,
    stream: TextIO,
    *,
    delay: float = 0.0,
    theme: Theme = "dark",
    palette: Palette = "published",
) -> LiveCanvas | PlainCanvas:
    """The drawing that fits the stream: in place on a terminal (NO_COLOR leaves the shapes), else plain lines.

    Args:
        piece: the text of one token id.
        stream: where to draw.
        delay: seconds to wait after each step on a terminal, for runs too fast to watch.
        theme: the terminal's background. palette: which colours.
    """
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    # a pipe stays one, even where FORCE_COLOR makes rich believe in a terminal
    if stream.isatty() and console.is_terminal and not console.is_dumb_terminal:
        return LiveCanvas(piece, console, delay, theme=theme, palette=palette)
    return PlainCanvas(piece, stream)


def can_draw(encoding: str | None) -> bool:
    """Whether a stream of that encoding has our block signs."""
    try:
        "░▁▄█…↵␣∅∎·".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class PlainCanvas:
    """A sink that prints one line per step: step, settled / all, and the answer with its holes."""

    def __init__(self, piece: Piece, stream: TextIO) -> None:
        self._piece, self._stream, self._ascii = piece, stream, not can_draw(stream.encoding)
        self._canvases: dict[str, Canvas] = {}

    def __call__(self, event: Event) -> None:
        canvas = _track(self._canvases, event)
        if canvas is None:
            return
        if isinstance(event, Stepped):
            self._print(event.id, f"step {event.nfe:>4}  {_progress(canvas)}  {self._line(canvas)}")
        elif isinstance(event, Finished):
            self._print(event.id, f"done: {event.reason} after {event.nfe} forwards")
        elif isinstance(event, Failed):
            self._print(event.id, f"failed: {harmless(event.error)}")

    def close(self) -> None:
        """Pushes out what is buffered."""
        self._stream.flush()

    def _print(self, request: str, text: str) -> None:
        prefix = f"[{harmless(request)}] " if len(self._canvases) > 1 else ""
        self._stream.write(f"{prefix}{text}\n")

    def _line(self, canvas: Canvas) -> str:
        hole = "_" if self._ascii else "░"
        shown = (
            hole if i < 0 else _inline(self._piece(i), self._ascii) for i in canvas.ids[canvas.prompt_len : canvas.end]
        )
        return "".join(shown)


class LiveCanvas:
    """A sink that redraws the canvas in place. `pause` is what waits (tests give their own)."""

    def __init__(
        self,
        piece: Piece,
        console: Console,
        delay: float = 0.0,
        pause: Callable[[float], None] = time.sleep,
        theme: Theme = "dark",
        palette: Palette = "published",
    ) -> None:
        self._piece, self._console, self._delay, self._pause = piece, console, delay, pause
        self._ascii = not can_draw(console.encoding)
        basic = console.color_system in ("standard", "windows")
        self._colours = (BASIC if basic else TERMINAL)[theme, palette]
        self._canvases: dict[str, Canvas] = {}
        self._seconds = 0.0
        self._columns = console.size.width
        self._live = self._new_live()

    def __call__(self, event: Event) -> None:
        if _track(self._canvases, event) is None:
            return
        if not self._live.is_started:
            self._live.start()
        if isinstance(event, Stepped):
            self._seconds += event.work.seconds / max(event.work.sharing, 1)
        if isinstance(event, Accepted | Stepped | Finished | Failed):
            self._resized()
            self._live.update(self.frame(), refresh=True)
        if isinstance(event, Stepped) and self._delay:
            self._pause(self._delay)

    def close(self) -> None:
        """Leaves the last picture standing."""
        if self._live.is_started:
            self._live.stop()

    def _new_live(self) -> Live:
        from rich.live import Live

        return Live(console=self._console, auto_refresh=False, vertical_overflow="crop")

    def _resized(self) -> None:
        """Begins anew on an empty screen where the width changed: the terminal has broken the old lines elsewhere."""
        columns = self._console.size.width
        if columns != self._columns:
            self._columns = columns
            self._live.stop()
            self._console.clear()
            self._live = self._new_live()
            self._live.start()

    def frame(self) -> Text:
        """The whole picture of this moment."""
        from rich.text import Text

        running = [i for i, c in self._canvases.items() if c.reason is None and c.error is None]
        focus = running[0] if running else list(self._canvases)[-1]
        others = [i for i in self._canvases if i != focus][-OTHERS:]
        size = self._console.size
        lines = [Text(_status(self._canvases[i], size.width, f"[{harmless(i)}] "), style="dim") for i in others]
        head = f"[{harmless(focus)}] " if others else ""
        canvas = self._canvases[focus]
        prompt = self._prompt(canvas, size.width, min(PROMPT_ROWS, max(size.height // 4, 0)))
        room = max(size.height - len(lines) - len(prompt) - 4, 1)
        lines += [*prompt, *self._window(canvas, size.width, room)]
        lines.append(Text(_status(canvas, size.width, head, self._speed()), style="bold"))
        lines.append(self._legend(size.width))
        for line in lines:
            line.truncate(size.width)
        return Text("\n").join(lines)

    def _prompt(self, canvas: Canvas, columns: int, rows: int) -> list[Text]:
        """The end of the last message, dim, in a few lines."""
        from rich.text import Text

        words = message(canvas.ids[: canvas.prompt_len], self._piece)
        text = "".join(_inline(c, self._ascii) for c in words[-rows * columns :]) if rows else ""
        return list(Text(text, style="dim").wrap(self._console, columns)[-rows:]) if text else []

    def _window(self, canvas: Canvas, columns: int, room: int) -> list[Text]:
        """Rows of whole cells, at the end those of the answer; of a canvas too high for the screen, those around the
        open place."""
        from rich.text import Text

        cell = min(CELL, max(columns, 3))
        per_row = max(columns // cell, 1)
        positions = range(canvas.prompt_len, len(canvas.ids))
        rows = [positions[i : i + per_row] for i in range(0, len(positions), per_row)]
        if canvas.end is not None:
            rows = [row for row in rows if row[0] < canvas.end] or rows[:1]
        first = 0
        if len(rows) > room:
            end = len(canvas.ids) if canvas.end is None else max(canvas.end - 1, canvas.prompt_len)
            focus = next((p for p in positions if canvas.ids[p] < 0 and p < end), end) - canvas.prompt_len
            first = min(max(focus // per_row - room // 3, 0), len(rows) - room)
        drawn = [Text.assemble(*(self._cell(canvas, p, cell) for p in row)) for row in rows[first : first + room]]
        return drawn or [Text("")]

    def _cell(self, canvas: Canvas, position: int, columns: int) -> tuple[str, str]:
        """The text of one cell and its style."""
        token = canvas.ids[position]
        if canvas.end is not None and position >= canvas.end:
            return ("." if self._ascii else "·").ljust(columns), "dim"
        if token < 0:
            again = position in canvas.fresh
            return (("x" if again else " ") + (("." if self._ascii else "░") * (columns - 2)) + " "), self._colours[
                "masked"
            ]
        text = fit(label(self._piece(token), self._ascii), columns - 2, "~" if self._ascii else "…") + " "
        if canvas.fixed[position]:
            return "|" + text, "underline dim"
        if position not in canvas.fresh:
            return " " + text, self._colours["earlier"]
        grade = level(canvas.confidence[position])
        bar = (ASCII_BARS if self._ascii else BARS)[grade]
        return bar + text, f"bold {self._colours[grade]}"

    def _legend(self, columns: int) -> Text:
        """In as many words as there is room for."""
        from rich.text import Text

        signs: dict[str, str] = {"masked": ".." if self._ascii else "░░", "earlier": ""}
        signs |= {str(k): v for k, v in (ASCII_BARS if self._ascii else BARS).items()}
        for legend in LEGENDS:
            bold = ("low", "middle", "high")
            parts = [
                (f"{signs[k]} {word}".strip(), f"bold {self._colours[k]}" if k in bold else self._colours[k])
                for k, word in legend.items()
            ]
            text = Text("  " if legend is LEGENDS[0] else " ").join(Text(*part) for part in parts)
            if width(text.plain) <= columns:
                break
        return text

    def _speed(self) -> str:
        tokens = sum(map(_written, self._canvases.values()))
        return f"{tokens / self._seconds:.0f} tokens/s" if self._seconds > 0 else ""


def _written(canvas: Canvas) -> int:
    """Tokens of the answer that the model wrote; what stands after its end does not count."""
    return sum(s > 0 and i >= 0 for s, i in zip(canvas.step[: canvas.end], canvas.ids))


def _track(canvases: dict[str, Canvas], event: Event) -> Canvas | None:
    """Folds one event into the canvases; the canvas it belongs to."""
    if isinstance(event, Accepted):
        canvases[event.id] = start_canvas(event)
    elif event.id in canvases:
        canvases[event.id].apply(event)
    return canvases.get(event.id)


def _progress(canvas: Canvas) -> str:
    answer = canvas.ids[canvas.prompt_len : canvas.end]
    return f"{sum(i >= 0 for i in answer):>{len(str(len(answer)))}}/{len(answer)}"


def _status(canvas: Canvas, columns: int = 10_000, head: str = "", speed: str = "") -> str:
    """Step, progress, how it ended, and of the rest what there is room for."""
    text = f"{head}step {canvas.nfe:>3} - {_progress(canvas)} settled"
    if width(text) > columns:
        text = f"{head}{canvas.nfe}: {_progress(canvas).strip()}"
    rest = [harmless(canvas.error or canvas.reason or "")]
    rest.append(f"{_written(canvas) / canvas.nfe:.2f} tokens/forward" if canvas.nfe else "")
    if canvas.open is not None and canvas.reason is None and len(canvas.blocks) > 1:
        rest.append(f"block {canvas.open[0]}..{canvas.open[1]}")
    for part in (*rest, speed):
        if part and width(text) + 3 + width(part) <= columns:
            text += f" - {part}"
    return text


def _inline(piece: str, ascii_only: bool) -> str:
    """A token within running text: spaces stay, everything else invisible is drawn."""
    if END.fullmatch(piece):
        return label(piece, ascii_only)
    return "".join(c if c == " " else label(c, ascii_only) for c in piece)
