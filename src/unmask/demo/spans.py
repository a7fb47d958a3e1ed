"""A run as plain HTML, for a page that can only show HTML it is given: the canvas, its legend, and a line of numbers.

Enters: the lines of a run as they come, and a palette. Leaves: HTML in which every text is escaped, and the style sheet
it needs. A token's box has the same place and size in every picture, and its level has a shape besides its colour.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any

from unmask.core.events import Accepted, Canvas, Failed, Stepped, from_dict, start_canvas
from unmask.sinks.cells import Level, label, level, share
from unmask.sinks.palettes import COLOURS, PALETTES, THEMES, Palette, Tint

SIGNS = 9
"""Characters that fit into a box; a longer token is cut there and whole in its tooltip."""
LEGEND: tuple[tuple[str, str, str], ...] = (
    ("mask", "", "masked"),
    ("new", "low", "new, below 0.3"),
    ("new", "middle", "new, below 0.7"),
    ("new", "high", "new, sure"),
    ("earlier", "high", "earlier"),
    ("given", "", "given"),
)
ENDS = {"stop": "Finished", "length": "Finished: the canvas is full", "cancelled": "Stopped"}


@dataclass
class Live:
    """One run as far as its lines have come. place: how many wait before it, itself included; 0 once it runs."""

    place: int = 0
    canvas: Canvas | None = None
    pieces: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    rows: int = 0
    text: str = ""
    tokens: int | None = None
    stopped: bool = False
    error: str = ""

    def push(self, line: dict[str, Any]) -> bool:
        """Take a line into account; whether it was a step, which moves the picture."""
        if "piece" in line:
            self.pieces.update({int(id): piece for id, piece in line["piece"].items()})
        elif "answers" in line:
            answer = next(iter(line["answers"].values()))
            self.text, self.tokens = answer["text"], answer["completion_tokens"]
        elif "event" in line:
            return self._take(line)
        elif "error" in line:
            self.error = line["error"]["message"]
        elif line.get("stopped"):
            self.stopped = True
        return False

    def _take(self, line: dict[str, Any]) -> bool:
        event = from_dict(line)
        if isinstance(event, Accepted):
            self.place, self.canvas = 0, start_canvas(event)
        elif self.canvas is not None:
            self.canvas.apply(event)
        if isinstance(event, Failed):
            self.error = event.error
        if isinstance(event, Stepped):
            self.seconds, self.rows = self.seconds + event.work.seconds, self.rows + event.work.row_layers
        return isinstance(event, Stepped)

    def state(self) -> str:
        """In words, what is going on; empty while it is being written."""
        if self.error:
            return self.error
        if self.place:
            return f"Waiting: {self.place - 1} ahead" if self.place > 1 else "Waiting: next in line"
        reason = "cancelled" if self.stopped else None if self.canvas is None else self.canvas.reason
        return ENDS.get(reason or "", "")


@dataclass(frozen=True)
class Box:
    """One position: kind "mask", "new", "earlier", "given" or "after" the end; level of a written one; its text."""

    kind: str
    level: Level | None
    text: str
    about: str
    again: bool = False


def box(canvas: Canvas, pieces: dict[int, str], position: int) -> Box:
    """What to draw there."""
    id, name = canvas.ids[position], f"position {position - canvas.prompt_len}"  # as constraints count
    fresh = position in canvas.fresh
    if canvas.end is not None and position >= canvas.end:
        return Box("after", None, "", f"{name} · after the end of the answer")
    if id < 0:
        return Box("mask", None, "", f"{name} · {'masked again' if fresh else 'masked'}", again=fresh)
    word = label(pieces.get(id, "?"))
    if canvas.fixed[position]:
        return Box("given", None, word, f"{name} · “{word}” · given")
    sure = canvas.confidence[position]
    about = f"{name} · “{word}” · confidence {share(sure):.2f} · step {canvas.step[position]}"
    return Box("new" if fresh else "earlier", level(sure), word, about)


def canvas_html(live: Live, palette: Palette = "published") -> str:
    """The answer's boxes and the legend."""
    canvas = live.canvas
    if canvas is None:
        words = "The canvas appears here while an answer is written."
        return _frame(f'<div class="um-empty">{words}</div>{_legend()}', palette)
    wide = any(stop - start > 1 for start, stop in canvas.blocks)
    edges = {start for start, _ in canvas.blocks if wide and start > canvas.prompt_len}
    spans = (_span(canvas, live.pieces, p, p in edges) for p in range(canvas.prompt_len, len(canvas.ids)))
    count = len(canvas.ids) - canvas.prompt_len
    cells = f'<div class="um-boxes" role="group" aria-label="Canvas of {count} tokens">{"".join(spans)}</div>'
    return _frame(cells + _legend(), palette)


def _span(canvas: Canvas, pieces: dict[int, str], position: int, edge: bool) -> str:
    one, id = box(canvas, pieces, position), canvas.ids[position]
    facts = {
        "class": f"um-box um-{one.kind}{' um-edge' if edge else ''}{' um-again' if one.again else ''}",
        "data-position": str(position),
        "data-kind": one.kind,
        "data-token": str(id),
        "data-level": one.level or "",
        "data-step": str(canvas.step[position]),
        "title": one.about,
    }
    return f"<span {_attributes(facts)}>{escape(one.text)}</span>"


def _attributes(facts: dict[str, str]) -> str:
    return " ".join(f'{name}="{escape(value, quote=True)}"' for name, value in facts.items())


def _frame(inside: str, palette: Palette) -> str:
    return f'<div class="um-live" data-palette="{escape(palette, quote=True)}">{inside}</div>'


def _legend() -> str:
    items = "".join(
        f'<span class="um-item" role="listitem"><span class="um-box um-{kind}" data-level="{grade}" aria-hidden="true">'
        f"</span>{escape(words)}</span>"
        for kind, grade, words in LEGEND
    )
    return f'<div class="um-legend" role="list">{items}</div>'


def counts_html(live: Live) -> str:
    """Forwards, tokens per forward, tokens per second, rows and time so far, and how it ended."""
    canvas, state = live.canvas, live.state()
    said = f'<b class="{"um-wrong" if live.error else "um-state"}">{escape(state)}</b>' if state else ""
    if canvas is None:
        return f'<div class="um-counts">{said}</div>'
    answer = range(canvas.prompt_len, len(canvas.ids))
    settled = sum(canvas.ids[p] >= 0 for p in answer)
    written = settled - sum(canvas.fixed[p] for p in answer)
    tokens = written if live.tokens is None else live.tokens
    numbers = [
        f"{canvas.nfe:,} forward{'' if canvas.nfe == 1 else 's'}",
        f"{tokens / canvas.nfe if canvas.nfe else 0:.2f} tokens per forward",
        f"{tokens / live.seconds if live.seconds else 0:.1f} tokens/s",
        f"{live.rows:,} rows",
        f"{live.seconds:.2f} s",
        f"{settled} of {len(answer)} settled",
    ]
    return f'<div class="um-counts">{said}{"".join(f"<span>{escape(n)}</span>" for n in numbers)}</div>'


def error_html(message: str) -> str:
    """A refusal, where the numbers would be."""
    return f'<div class="um-counts" role="alert"><b class="um-wrong">{escape(message)}</b></div>'


def style() -> str:
    """The style sheet: the colours of `sinks.palettes` for both themes (`.dark` is the page's), and the boxes."""
    colours = []
    for theme in THEMES:
        for palette in PALETTES:
            dark = ".dark " if theme == "dark" else ""
            colours.append(
                f'{dark}.um-live[data-palette="{palette}"] {{ {_variables(COLOURS[theme, palette].tints())} }}'
            )
    base = [
        f"{where} {{ --um-card: {c.card}; --um-quiet: {c.quiet}; --um-line: {c.line}; --um-wrong: {wrong}; }}"
        for where, c, wrong in (
            (".um-live, .um-counts", COLOURS["light", "published"], "#b3261e"),
            (".dark .um-live, .dark .um-counts", COLOURS["dark", "published"], "#ff8a80"),
        )
    ]
    return "\n".join([*base, *colours, RULES])


def _variables(tints: dict[str, Tint]) -> str:
    return " ".join(
        f"--um-{name}: {t.fill}; --um-{name}-ink: {t.ink}; --um-{name}-edge: {t.edge or 'transparent'};"
        for name, t in tints.items()
    )


RULES = f"""\
.um-live {{
  min-height: 360px; padding: 8px; border: 1px solid var(--um-line); border-radius: 6px;
  background: var(--um-card); color: var(--um-quiet); font-size: 14px;
}}
.um-boxes {{
  display: grid; grid-template-columns: repeat(auto-fill, minmax(calc({SIGNS}ch + 20px), 1fr)); gap: 5px;
  max-height: 60vh; overflow: hidden auto; padding: 4px;
  font: 500 13px/28px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace;
}}
.um-box {{
  position: relative; height: 28px; min-width: 0; padding: 0 6px 0 13px; border-radius: 5px; overflow: hidden;
  text-overflow: ellipsis; white-space: pre; contain: strict; border: 1px solid transparent; line-height: 26px;
}}
.um-box::before {{
  content: ""; position: absolute; left: 5px; bottom: 3px; width: 3px; height: 0; border-radius: 1px;
  background: currentColor;
}}
.um-box[data-level="low"]::before {{ height: 5px; }}
.um-box[data-level="middle"]::before {{ height: 12px; }}
.um-box[data-level="high"]::before {{ height: 20px; }}
.um-mask {{
  background: var(--um-masked); color: var(--um-masked-ink);
  border: 1px dashed var(--um-masked-edge);
}}
.um-again::after {{ content: "×"; position: absolute; inset: 0; text-align: center; }}
.um-new {{ font-weight: 700; }}
.um-new[data-level="low"] {{ background: var(--um-low); color: var(--um-low-ink); border-color: var(--um-low-edge); }}
.um-new[data-level="middle"] {{
  background: var(--um-middle); color: var(--um-middle-ink); border-color: var(--um-middle-edge);
}}
.um-new[data-level="high"] {{
  background: var(--um-high); color: var(--um-high-ink); border-color: var(--um-high-edge);
}}
.um-earlier {{ background: var(--um-earlier); color: var(--um-earlier-ink); }}
.um-given {{ background: var(--um-given); color: var(--um-given-ink); border-color: var(--um-given-ink); }}
.um-given::before {{ left: 4px; bottom: 10px; width: 5px; height: 5px; border-radius: 50%; }}
.um-after {{ border: 1px dotted var(--um-line); }}
.um-boxes .um-edge {{ box-shadow: -2px 0 0 var(--um-card), -4px 0 0 var(--um-quiet); }}
.um-legend {{ display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 4px 0; }}
.um-legend .um-item {{ display: flex; align-items: center; gap: 6px; font-size: 13px; color: var(--um-quiet); }}
.um-legend .um-box {{ width: 30px; height: 22px; padding: 0; }}
.um-legend .um-box[data-level="high"]::before {{ height: 14px; }}
.um-legend .um-box[data-level="middle"]::before {{ height: 9px; }}
.um-legend .um-given::before {{ bottom: 7px; }}
.um-empty {{ display: grid; min-height: 280px; margin: 0 4px; place-items: center; }}
.um-counts {{
  display: flex; flex-wrap: wrap; gap: 2px 18px; min-height: 3em; margin: 0; color: var(--um-quiet);
  font-size: 14px; font-variant-numeric: tabular-nums;
}}
@media (max-width: 520px) {{
  .um-boxes {{ grid-template-columns: repeat(auto-fill, minmax(calc(7ch + 18px), 1fr)); gap: 4px; font-size: 12px; }}
}}
.um-counts .um-wrong {{ color: var(--um-wrong); overflow-wrap: anywhere; }}
"""
