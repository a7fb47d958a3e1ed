"""A comparison as one HTML file that asks nothing of the network: an SVG made by hand, the table, a little script.

Enters: a `Pareto`. Leaves: HTML. Pointing at a mark, or reaching it with the Tab key, shows its numbers. Form says what
colour says: filled is on the frontier, a square is the exact baseline, a ring is the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10

from unmask.evals.pareto.result import AXES, Pareto, Point
from unmask.evals.pareto.table import cells, head, in_words, notes, ordered

WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM = 860, 440, 64, 24, 20, 52
LOG_FROM = 5.0
"""Speeds that differ by more than this are drawn on a logarithmic scale."""

STYLE = """\
:root{color-scheme:light dark;--ink:#1f2328;--quiet:#59636e;--paper:#fff;--grid:#e3e6ea}
:root{--on:#0072b2;--off:#8a6d00;--ring:#c4420a}
@media(prefers-color-scheme:dark){
:root{--ink:#e6edf3;--quiet:#9da7b1;--paper:#15191e;--grid:#30363d}
:root{--on:#56b4e9;--off:#e6b800;--ring:#ff8a5b}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
body{max-width:1100px;margin:24px auto;padding:0 16px}
h1{font-size:20px}svg{width:100%;height:auto;min-width:620px;max-width:860px}svg text{fill:var(--quiet);font-size:12px}
.grid{stroke:var(--grid)}.line{fill:none;stroke:var(--on);stroke-width:1.5;stroke-dasharray:5 4}
.mark{stroke:var(--off);fill:var(--paper);stroke-width:2}.on .mark{stroke:var(--on);fill:var(--on)}
.bar{stroke:var(--off);stroke-opacity:.55}.on .bar{stroke:var(--on)}
.ring{fill:none;stroke:var(--ring);stroke-width:2.5}
g.p:focus{outline:none}g.p:hover .mark,g.p:focus .mark{stroke:var(--ring);stroke-width:4}
#hover{min-height:3em;border-left:3px solid var(--on);padding:2px 10px}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:13px}
th,td{padding:3px 9px;text-align:right;border-bottom:1px solid var(--grid)}
th:first-child,td:first-child,th:last-child,td:last-child{text-align:left}
td:first-child{min-width:14em}td:not(:first-child):not(:last-child){white-space:nowrap}
.said{font-weight:600}small{color:var(--quiet)}"""
SCRIPT = """\
const out=document.getElementById('hover');
for(const g of document.querySelectorAll('g.p'))
 for(const e of ['pointerenter','focus'])
  g.addEventListener(e,()=>{out.textContent=g.getAttribute('aria-label')});"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
HINT = (
    "Point at a mark, or press Tab, for its numbers. Filled: on the frontier. Square: exact baseline. Ring: the choice."
)


def page(found: Pareto) -> str:
    """The whole file."""
    title = f"{found.about['task']} on {found.about['model']}: quality beside speed"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f'<h1>{escape(title)}</h1><p class="said">{escape(found.verdict.sentence)}.</p>',
            f'<div class="wide">{picture(found)}</div>',
            f'<p id="hover" aria-live="polite">{HINT}</p>',
            f'<div class="wide">{_table(found)}</div>',
            *(f"<p><small>{escape(n)}</small></p>" for n in notes(found)),
            f"<script>{SCRIPT}</script></body></html>",
            "",
        ]
    )


def _table(found: Pareto) -> str:
    top = "".join(f"<th>{escape(c)}</th>" for c in head(found))
    rows = ("".join(f"<td>{escape(c)}</td>" for c in cells(p, found)) for p in found.points)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(f'<tr>{r}</tr>' for r in rows)}</tbody></table>"


# ---- the picture -----------------------------------------------------------------------------------------------------


def picture(found: Pareto) -> str:
    """The SVG: score against speed, with intervals and the frontier."""
    shown = [p for p in found.points if getattr(p, found.axis) is not None]
    if not shown:
        return "<p>No strategy has a value on this axis.</p>"
    x, ticks = _scale([float(getattr(p, found.axis)) for p in shown])
    levels = _levels(shown)
    low, high = levels[0], levels[-1]

    def y(score: float) -> float:
        return TOP + (HIGH - TOP - BOTTOM) * (high - score) / (high - low)

    words, more = AXES[found.axis]
    label = f"{words} ({'more' if more else 'fewer'} is faster)"
    parts = [f'<svg viewBox="0 0 {WIDE} {HIGH}" role="group" aria-label="{escape(found.metric)} against {words}">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{HIGH - BOTTOM}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HIGH - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    for share in levels:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:g} %</text>')
    parts.append(f'<text x="{(LEFT + WIDE - RIGHT) / 2}" y="{HIGH - 10}" text-anchor="middle">{label}</text>')
    parts.append(f'<text x="{LEFT}" y="12">{escape(found.metric)}</text>')
    front = ordered([p for p in shown if p.frontier], found.axis)
    line = " ".join(f"{x(float(getattr(p, found.axis))):.1f},{y(p.score):.1f}" for p in front)
    parts.append(f'<polyline class="line" points="{line}"/>')
    parts += [_mark(p, found, x(float(getattr(p, found.axis))), y) for p in sorted(shown, key=lambda p: p.frontier)]
    return "\n".join([*parts, "</svg>"])


def _mark(point: Point, found: Pareto, x: float, y: Callable[[float], float]) -> str:
    at, words = y(point.score), escape(in_words(point, found), quote=True)
    form = (
        f'<rect class="mark" x="{x - 5:.1f}" y="{at - 5:.1f}" width="10" height="10"/>'
        if point.baseline
        else f'<circle class="mark" cx="{x:.1f}" cy="{at:.1f}" r="5"/>'
    )
    chosen = point.label == found.verdict.label
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{at:.1f}" r="11"/>' if chosen else ""
    bar = f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"/>'
    kind = "p on" if point.frontier else "p"
    return f'<g class="{kind}" tabindex="0" role="img" aria-label="{words}"><title>{words}</title>{bar}{form}{ring}</g>'


def _levels(points: Sequence[Point]) -> list[float]:
    """Round scores to draw lines at, from below the intervals to above them."""
    low, high = min(p.low for p in points), max(p.high for p in points)
    step = next(s for s in (0.02, 0.05, 0.1, 0.2) if high - low <= 6 * s)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    if first == last:
        first, last = max(0, first - 1), min(round(1 / step), last + 1)
    return [round(step * k, 2) for k in range(first, last + 1)]


def _scale(values: Sequence[float]) -> tuple[Callable[[float], float], list[float]]:
    """Where a speed is drawn, and its ticks."""
    low, high = min(values), max(values)
    wide = WIDE - LEFT - RIGHT - 32
    if low > 0 and high / low > LOG_FROM:
        a, b = log10(low), log10(high)
        steps = [m * 10.0**e for e in range(floor(a), ceil(b) + 1) for m in (1, 2, 5)]
        return lambda v: LEFT + 16 + wide * (log10(v) - a) / (b - a), [s for s in steps if low <= s <= high]
    span = high - low or abs(high) or 1.0
    size = 10.0 ** floor(log10(span))
    step = next(m * size for m in (0.2, 0.5, 1, 2) if span / (m * size) <= 8)
    first, last = (low, high) if high > low else (low - span / 2, low + span / 2)
    ticks = [step * k for k in range(ceil(first / step), floor(last / step) + 1)]
    return lambda v: LEFT + 16 + wide * (v - first) / (last - first), ticks
