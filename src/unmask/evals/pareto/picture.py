"""The comparison as a PNG, drawn by matplotlib (extra `plot`).

Enters: a `Pareto`. Leaves: a file, whole or not at all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from unmask.core.errors import ConfigError
from unmask.evals.pareto.page import LOG_FROM
from unmask.evals.pareto.result import AXES, Pareto, Point
from unmask.evals.pareto.table import ordered

ON, OFF, RING = "#0072b2", "#8a6d00", "#c4420a"


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
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(8, 4.6), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = [p for p in found.points if getattr(p, found.axis) is not None]
    values = [getattr(p, found.axis) for p in shown]
    middle = (min(values) + max(values)) / 2 if values else 0.0
    for point in shown:
        _draw(axes, point, found, getattr(point, found.axis) > middle)
    front = ordered([p for p in shown if p.frontier], found.axis)
    axes.plot([getattr(p, found.axis) for p in front], [100 * p.score for p in front], "--", color=ON, lw=1, zorder=1)
    if values and min(values) > 0 and max(values) / min(values) > LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(ScalarFormatter())
        axes.tick_params(axis="x", which="both", labelsize=7)
    words, more = AXES[found.axis]
    axes.set(xlabel=f"{words} ({'more' if more else 'fewer'} is faster)", ylabel=f"{found.metric}, %")
    axes.set_title(_plain(f"{found.about['task']} on {found.about['model']}"), fontsize=9)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", metadata={"Software": None})
    os.replace(partial, path)


def _draw(axes: Any, point: Point, found: Pareto, late: bool) -> None:
    at, score = getattr(point, found.axis), 100 * point.score
    colour = ON if point.frontier else OFF
    error = [[max(0.0, score - 100 * point.low)], [max(0.0, 100 * point.high - score)]]
    axes.errorbar(
        at, score, yerr=error, fmt="s" if point.baseline else "o", color=colour, ecolor=colour, elinewidth=0.8,
        mfc=colour if point.frontier else "white", zorder=2,
    )  # fmt: skip
    chosen = point.label == found.verdict.label
    if chosen:
        axes.plot(at, score, "o", ms=14, mfc="none", mec=RING, mew=2, zorder=3)
    if point.frontier or point.baseline or chosen:
        side = -1 if late else 1  # a name stays inside the picture
        where = {"textcoords": "offset points", "xytext": (9 * side, 5), "ha": "right" if late else "left"}
        axes.annotate(_plain(point.label), (at, score), fontsize=7, **where)


def _plain(text: str) -> str:
    """Dollar signs begin a formula in matplotlib."""
    return text.replace("$", r"\$")
