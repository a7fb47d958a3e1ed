"""From records to points, the frontier, and what may be claimed.

Enters: per strategy its scores item by item and its costs. Leaves: `Pareto`, whose dictionary is pareto.json. The rule
for a claim: the strategy is chosen on one half of the items, and "at most X lost" is said only if the one-sided 95 %
bound of the paired loss is below X on the other half, which the choice never saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import fsum
from typing import Any

from unmask.core.errors import ConfigError
from unmask.evals.intervals import wilson
from unmask.evals.pareto.stats import Paired, bootstrap, is_binary, is_choice, items_needed, paired

FORMAT = 1
AXES: dict[str, tuple[str, bool]] = {
    "tokens_per_s": ("tokens per second", True),
    "tokens_per_forward": ("tokens per forward", True),
    "nfe": ("forwards per answer", False),
    "row_layers": ("rows x layers per answer", False),
}
"""Speed axes: their words, and whether more is faster."""


@dataclass(frozen=True)
class Measured:
    """What was recorded for one strategy: scores by item id, and mean costs (None where unknown).

    Args:
        forwards: mean forwards per answer by kind; they add up to `nfe`. Empty where they were not recorded.
        answers: text by item id, to be compared with the baseline's.
    """

    key: str
    label: str
    baseline: bool
    options: Mapping[str, Any]
    strategy: str
    scores: Mapping[str, float]
    tokens: float
    nfe: float
    tokens_per_forward: float
    row_layers: float
    tokens_per_s: float | None
    forwards: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One strategy in the table and the plots.

    Args:
        low, high: 95 % interval of the score; `interval` says which.
        against: the baseline, on the same items; None for the baseline itself.
        forwards: mean forwards per answer by kind. same: share of the answers that are, letter for letter, the
            baseline's; None where texts were not recorded.
        frontier: no other strategy is at least as good and as fast, and better in one of the two.
    """

    key: str
    label: str
    baseline: bool
    options: Mapping[str, Any]
    strategy: str
    n: int
    score: float
    low: float
    high: float
    interval: str
    tokens: float
    nfe: float
    tokens_per_forward: float
    row_layers: float
    tokens_per_s: float | None
    against: Paired | None
    frontier: bool = False
    forwards: Mapping[str, float] = field(default_factory=dict)
    same: float | None = None

    def speed(self, axis: str) -> float:
        """Its place on a speed axis, more is faster; what was not timed is slowest."""
        value = getattr(self, axis)
        if value is None:
            return float("-inf")
        return float(value) if AXES[axis][1] else -float(value)


@dataclass(frozen=True)
class Verdict:
    """What may be said.

    Args:
        label: the strategy chosen, the fastest that seemed to lose at most `max_loss`; the baseline if there was none.
        choice, confirmation: it against the baseline on each half; None for the baseline.
        confirmed: whether the claim holds on the confirmation half.
        needed: about how many items in all would settle it; None when nothing is open.
        sentence: the same for a reader.
    """

    label: str
    max_loss: float
    choice: Paired | None
    confirmation: Paired | None
    confirmed: bool
    needed: int | None
    sentence: str


@dataclass(frozen=True)
class Pareto:
    """Everything that was found. about: task, model, data, versions, how it was timed."""

    axis: str
    metric: str
    points: tuple[Point, ...]
    verdict: Verdict
    about: Mapping[str, Any]

    @property
    def chosen(self) -> Point:
        """The recommended strategy."""
        return next(p for p in self.points if p.label == self.verdict.label)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        head = {"format": FORMAT, "axis": self.axis, "metric": self.metric, **self.about}
        return {**head, "verdict": asdict(self.verdict), "points": [asdict(p) for p in self.points]}


def analyse(measured: Sequence[Measured], axis: str, metric: str, max_loss: float, about: Mapping[str, Any]) -> Pareto:
    """Points, frontier and verdict.

    Args:
        measured: the baseline first, all on the same items.
        axis: a name of `AXES`. max_loss: as a share, 0.01 is one point.
    """
    points = tuple(_point(m, measured[0]) for m in measured)
    points = tuple(replace(p, frontier=not any(_dominates(q, p, axis) for q in points)) for p in points)
    return Pareto(axis, metric, points, judge(measured, axis, max_loss, {p.key: p for p in points}), about)


def check_halves(items: Sequence[str]) -> None:
    """Refuses items that cannot be cut in two.

    Raises:
        ConfigError: too few.
    """
    first = sum(is_choice(i) for i in items)
    if not 0 < first < len(items):
        raise ConfigError(
            "items", expected="some to choose a strategy on and some to confirm it", got=f"{len(items)} in all",
            remedy="Take more items; a hundred are few.",
        )  # fmt: skip


def _point(own: Measured, base: Measured) -> Point:
    scores = list(own.scores.values())
    n, mean = len(scores), fsum(scores) / len(scores)
    binary = is_binary(scores)
    low, high = wilson(int(fsum(scores)), n) if binary else bootstrap(scores)
    against = None if own.baseline else paired([base.scores[i] for i in own.scores], scores)
    costs = {name: getattr(own, name) for name in ("tokens", "nfe", "tokens_per_forward", "row_layers", "tokens_per_s")}
    return Point(
        own.key, own.label, own.baseline, own.options, own.strategy, n, mean, low, high,
        "Wilson 95 %" if binary else "bootstrap 95 % over items", against=against, forwards=own.forwards,
        same=_agreement(own, base), **costs,
    )  # fmt: skip


def _agreement(own: Measured, base: Measured) -> float | None:
    """Share of the answers that are the baseline's."""
    if own.baseline or not own.answers or own.answers.keys() != base.answers.keys():
        return None
    return sum(own.answers[i] == base.answers[i] for i in own.answers) / len(own.answers)


def _dominates(a: Point, b: Point, axis: str) -> bool:
    at_least = a.score >= b.score and a.speed(axis) >= b.speed(axis)
    return at_least and (a.score > b.score or a.speed(axis) > b.speed(axis))


# ---- the power rule --------------------------------------------------------------------------------------------------


def judge(measured: Sequence[Measured], axis: str, max_loss: float, points: Mapping[str, Point]) -> Verdict:
    """Chooses on one half, confirms on the other."""
    base = measured[0]
    items = list(base.scores)
    halves = [i for i in items if is_choice(i)], [i for i in items if not is_choice(i)]
    chosen = _choose(measured, halves[0], axis, max_loss, points)
    if chosen is None:
        return Verdict(
            base.label, max_loss, None, None, False, None,
            f"keep {base.label}: nothing faster lost at most {in_points(max_loss)} on the {len(halves[0])} items "
            "of the choice half",
        )  # fmt: skip
    choice, confirmation = _on(base, chosen, halves[0]), _on(base, chosen, halves[1])
    confirmed = confirmation.bound < max_loss
    if confirmed:
        sentence = (
            f"{chosen.label}: at most {in_points(max_loss)} lost against {base.label} (95 %): {_seen(confirmation)}, "
            "which the choice never saw"
        )
        return Verdict(chosen.label, max_loss, choice, confirmation, True, None, sentence)
    needed, supposed = items_needed(_losses(base, chosen, halves[1]), max_loss)
    needed = max(2 * needed, len(items) + 1)  # half of the items confirm
    why = (
        f"if the true loss is {in_points(supposed)}" if confirmation.loss < max_loss else "if nothing is lost in truth"
    )
    sentence = (
        f"{chosen.label}: not resolved, needs about {needed} items ({why}): {_seen(confirmation)}; "
        f"at most {in_points(max_loss)} cannot be claimed"
    )
    return Verdict(chosen.label, max_loss, choice, confirmation, False, needed, sentence)


def _choose(
    measured: Sequence[Measured], half: Sequence[str], axis: str, max_loss: float, points: Mapping[str, Point]
) -> Measured | None:
    """The fastest strategy that is faster than the baseline and already within the bound on this half; else the
    fastest that seems to lose at most so much there; else none."""
    base = measured[0]
    faster = [m for m in measured[1:] if points[m.key].speed(axis) > points[base.key].speed(axis)]
    found = [(m, _on(base, m, half)) for m in faster]
    sure = [m for m, p in found if p.bound < max_loss]
    likely = [m for m, p in found if p.loss <= max_loss]
    return max(sure or likely, key=lambda m: (points[m.key].speed(axis), -m.row_layers, m.label), default=None)


def _on(base: Measured, other: Measured, items: Sequence[str]) -> Paired:
    return paired([base.scores[i] for i in items], [other.scores[i] for i in items])


def _losses(base: Measured, other: Measured, items: Sequence[str]) -> list[float]:
    return [base.scores[i] - other.scores[i] for i in items]


def in_points(share: float) -> str:
    """0.01 is "1 point"."""
    text = f"{100 * share:.2f}".rstrip("0").rstrip(".")
    text = "0" if text == "-0" else text
    return f"{text} point" if text in ("1", "-1") else f"{text} points"


def _seen(found: Paired) -> str:
    return (
        f"loss {in_points(found.loss)}, bound {in_points(found.bound)}, on {found.n} items "
        f"({found.lost} lost, {found.gained} gained)"
    )
