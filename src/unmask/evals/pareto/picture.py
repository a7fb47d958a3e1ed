"""The comparison as a PNG, drawn by matplotlib (extra `plot`).

Enters: a `Pareto`. Leaves: a file, whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from unmask.core.errors import ConfigError
from unmask.evals.pareto.page import LOG_FROM
from unmask.evals.pareto.result import AXES, Pareto, Point
from unmask.evals.pareto.table import ordered

ON, OFF, RING = "#0072b2", "#8a6d00", "#c4420a"
MARK, RING_MARK = 8.0, 16.0
"""Pixels around the middle of a mark (with a ring) that a name must leave free."""
PLACES = [
    (side * x, y)
    for x, y in sorted(
        ((x, y) for x in (10, 20, 35, 55, 80) for y in range(-60, 61, 6)), key=lambda p: p[0] + abs(p[1])
    )
    for side in (1, -1)
]
"""Where a name may stand, in points from its mark, the nearest first."""
SIZE = 7
Box = tuple[float, float, float, float]


def require_matplotlib() -> None:
    """Refuses early where it is not installed.

    Raises:
        ConfigError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ConfigError(
            "pareto.png", expected="matplotlib", got="not installed",
            remedy="pip install 'unmask[plot]', or leave the picture out with --no-png (pareto.html needs nothing).",
        )  # fmt: skip


def write_png(found: Pareto, path: Path) -> None:
    """Draws and writes it."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(8, 4.6), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = [p for p in found.points if getattr(p, found.axis) is not None]
    values = [getattr(p, found.axis) for p in shown]
    for point in shown:
        _draw(axes, point, found)
    front = ordered([p for p in shown if p.frontier], found.axis)
    axes.plot([getattr(p, found.axis) for p in front], [100 * p.score for p in front], "--", color=ON, lw=1, zorder=1)
    if values and min(values) > 0 and max(values) / min(values) > LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    words, more = AXES[found.axis]
    axes.set(xlabel=f"{words} ({'more' if more else 'fewer'} is faster)", ylabel=f"{found.metric}, %")
    axes.set_title(_plain(f"{found.about['task']} on {found.about['model']}"), fontsize=9)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    _name(axes, [p for p in shown if _named(p, found)], shown, found)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", metadata={"Software": None})
    os.replace(partial, path)


def _draw(axes: Any, point: Point, found: Pareto) -> None:
    at, score = getattr(point, found.axis), 100 * point.score
    colour = ON if point.frontier else OFF
    error = [[max(0.0, score - 100 * point.low)], [max(0.0, 100 * point.high - score)]]
    axes.errorbar(
        at, score, yerr=error, fmt="s" if point.baseline else "o", color=colour, ecolor=colour, elinewidth=0.8,
        mfc=colour if point.frontier else "white", zorder=2,
    )  # fmt: skip
    if point.label == found.verdict.label:
        axes.plot(at, score, "o", ms=14, mfc="none", mec=RING, mew=2, zorder=3)


def _named(point: Point, found: Pareto) -> bool:
    return point.frontier or point.baseline or point.label == found.verdict.label


def _name(axes: Any, points: Sequence[Point], shown: Sequence[Point], found: Pareto) -> list[Box]:
    """Each name in the nearest free place beside its mark: inside the axes, on no other name, mark or line. The pixels
    that the names take."""
    axes.figure.canvas.draw()
    inside = axes.get_window_extent().extents
    taken = [_extent(axes, p, found) for p in shown] + _along(axes, found)
    first = len(taken)
    for point in sorted(points, key=lambda p: (-p.score, p.label)):
        boxes = _boxes(axes, point, found)
        costs = [_outside(b, inside) + sum(_shared(b, other) for other in taken) for b in boxes]
        best = costs.index(min(costs))
        (x, y), far = PLACES[best], PLACES[best] not in PLACES[:4]
        axes.annotate(
            _plain(point.label), (getattr(point, found.axis), 100 * point.score), xytext=(x, y), fontsize=SIZE,
            textcoords="offset points", va="center", ha="left" if x > 0 else "right", zorder=4,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.6", "shrinkA": 0, "shrinkB": 5} if far else None,
        )  # fmt: skip
        taken.append(boxes[best])
    return taken[first:]


def _boxes(axes: Any, point: Point, found: Pareto) -> list[Box]:
    """The pixels that its name would take at each of `PLACES`."""
    text = axes.text(0, 0, _plain(point.label), fontsize=SIZE)
    size = text.get_window_extent()
    text.remove()
    pixels = axes.figure.dpi / 72
    x0, y0 = axes.transData.transform((getattr(point, found.axis), 100 * point.score))
    out = []
    for x, y in PLACES:
        left, middle = x0 + pixels * x - (0 if x > 0 else size.width), y0 + pixels * y
        out.append((left, middle - size.height / 2, left + size.width, middle + size.height / 2))
    return out


def _extent(axes: Any, point: Point, found: Pareto) -> Box:
    """The pixels that a mark with its bar takes."""
    at, mark = getattr(point, found.axis), RING_MARK if point.label == found.verdict.label else MARK
    ends = axes.transData.transform([(at, 100 * s) for s in (point.low, point.score, point.high)])
    x, middle = ends[1]
    return x - mark, min(ends[0][1], middle - mark), x + mark, max(ends[2][1], middle + mark)


def _along(axes: Any, found: Pareto) -> list[Box]:
    """Small boxes along the line of the frontier."""
    front = ordered([p for p in found.points if p.frontier and getattr(p, found.axis) is not None], found.axis)
    out: list[Box] = []
    if len(front) < 2:
        return out
    ends = axes.transData.transform([(getattr(p, found.axis), 100 * p.score) for p in front])
    for (x0, y0), (x1, y1) in pairwise(ends):
        count = int(max(abs(x1 - x0), abs(y1 - y0)) / 4) + 1
        for k in range(count + 1):
            x, y = x0 + (x1 - x0) * k / count, y0 + (y1 - y0) * k / count
            out.append((x - 2, y - 2, x + 2, y + 2))
    return out


def _outside(box: Box, inside: Box) -> float:
    """How much of a box is not inside, far worse than an overlap."""
    return 1000 * max(0.0, inside[0] - box[0], inside[1] - box[1], box[2] - inside[2], box[3] - inside[3])


def _shared(a: Box, b: Box) -> float:
    """Pixels that two boxes have in common."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _plain(text: str) -> str:
    """Dollar signs begin a formula in matplotlib."""
    return text.replace("$", r"\$")
