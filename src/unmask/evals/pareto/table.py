"""A comparison as a table, and each point in one line.

Enters: a `Pareto`. Leaves: cells for whoever draws them, Markdown. Numbers are rounded; pareto.json has all.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.evals.pareto.result import AXES, Pareto, Point, in_points

NONE = "-"


def head(found: Pareto) -> tuple[str, ...]:
    """Titles of the columns."""
    return (
        "strategy", found.metric, "95 %", "loss in points", "at most (95 %)", "lost / gained", "McNemar p",
        "same answers", "forwards", "tokens per forward", "rows x layers", "tokens/s", "",
    )  # fmt: skip


def cells(point: Point, found: Pareto) -> tuple[str, ...]:
    """A point's row."""
    a = point.against
    return (
        point.label,
        f"{point.score:.1%}",
        f"{point.low:.1%} to {point.high:.1%}",
        NONE if a is None else f"{100 * a.loss:+.1f}",
        NONE if a is None else f"{100 * a.bound:+.1f}",
        NONE if a is None else f"{a.lost} / {a.gained}",
        NONE if a is None or a.p is None else f"{a.p:.2g}",
        NONE if point.same is None else f"{point.same:.1%}",
        _forwards(point),
        f"{point.tokens_per_forward:.2f}",
        f"{point.row_layers:.0f}",
        NONE if point.tokens_per_s is None else f"{point.tokens_per_s:.0f}",
        marks(point, found),
    )


def _forwards(point: Point) -> str:
    """Forwards per answer, and of which kinds where there are several."""
    split = ", ".join(f"{n:.1f} {kind}" for kind, n in sorted(point.forwards.items()))
    return f"{point.nfe:.1f} ({split})" if len(point.forwards) > 1 else f"{point.nfe:.1f}"


def short_head(found: Pareto) -> tuple[str, ...]:
    """Titles of the columns that fit a terminal."""
    words = () if found.axis == "tokens_per_s" else (AXES[found.axis][0],)
    return "strategy", f"{found.metric} (95 %)", "points lost (at most)", *words, "tokens/s", ""


def short_cells(point: Point, found: Pareto) -> tuple[str, ...]:
    """A point's row in a terminal."""
    a, value = point.against, getattr(point, found.axis)
    return (
        point.label,
        f"{point.score:.1%} ({100 * point.low:.1f} to {100 * point.high:.1f})",
        NONE if a is None else f"{100 * a.loss:+.1f} ({100 * a.bound:+.1f})",
        *(() if found.axis == "tokens_per_s" else (f"{value:.1f}" if value < 100 else f"{value:.0f}",)),
        NONE if point.tokens_per_s is None else f"{point.tokens_per_s:.0f}",
        marks(point, found),
    )


def marks(point: Point, found: Pareto) -> str:
    """What is special about it."""
    words = ["exact baseline"] if point.baseline else []
    words += ["frontier"] if point.frontier else []
    words += ["chosen"] if point.label == found.verdict.label else []
    return ", ".join(words)


def in_words(point: Point, found: Pareto) -> str:
    """A point in one line, for a tooltip."""
    a = point.against
    beside = "" if a is None else f"; loses {in_points(a.loss)}, at most {in_points(a.bound)} (95 %)"
    speed = "" if point.tokens_per_s is None else f", {point.tokens_per_s:.0f} tokens/s"
    special = marks(point, found)
    return (
        f"{point.label}: {found.metric} {point.score:.1%} ({point.low:.1%} to {point.high:.1%}){beside}; "
        f"{point.nfe:.1f} forwards, {point.tokens_per_forward:.2f} tokens per forward, "
        f"{point.row_layers:.0f} rows x layers{speed}" + (f" [{special}]" if special else "")
    )


def notes(found: Pareto) -> list[str]:
    """What the numbers are, in sentences."""
    about = found.about
    part = f"the first {about['n']} of {about['items_in_data']}" if about["limited"] else f"all {about['n']}"
    first = found.points[0].interval
    timed = (
        "measured in turns over groups of items, one run"
        if about["timed_in_turns"]
        else "NOT measured in one run: do not compare them; the counters beside them are exact"
    )
    machine = about["machine"]
    return [
        f"{about['task']} on {about['model']} ({about['dtype']}), {part} items, {about['batch']} at a time; "
        f"intervals: {first}. Losses are against {found.points[0].label} on the same items; the bound is one-sided and "
        "holds for one strategy at a time.",
        f"Tokens per second are {timed}; {machine['processor']} ({machine['device']}), threads: {machine['threads']}. "
        f"Frontier: nothing is at least as good and as fast ({AXES[found.axis][0]}) and better in one of them.",
    ]


def markdown(found: Pareto) -> str:
    """The table with the verdict and its notes."""
    rows = [head(found), ("---",) * len(head(found)), *(cells(p, found) for p in found.points)]
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join([*lines, "", f"**{found.verdict.sentence}.**", "", *notes(found)]) + "\n"


def ordered(points: Sequence[Point], axis: str) -> list[Point]:
    """From slow to fast."""
    return sorted(points, key=lambda p: (p.speed(axis), p.label))
