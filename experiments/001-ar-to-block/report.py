"""Tables and plots of experiment 001, out of `results/` alone.

python experiments/001-ar-to-block/report.py          writes tables.md and the two plots; needs the extra `plot`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

from unmask.evals.intervals import paired_difference, wilson
from unmask.sinks.files import write_text

HERE = Path(__file__).parent
TASKS = ("one_step", "two_step", "three_step")
NAMES = {
    "parent": "AR parent",
    "child": "child",
    "published": "control: published adaptation",
    "scratch": "control: block diffusion from scratch",
    "bidirectional": "control: parent to full bidirectional attention",
    "embedded-parent": "AR parent, embedded model",
    "embedded": "child of the embedded model",
}
CONTROLS = {"published": "^", "scratch": "x", "bidirectional": "s"}
"""Their marks in the plots."""
PARENTS = ("parent", "embedded-parent")
ORDERED = "threshold, left to right"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
Result = dict[str, Any]


def read() -> list[Result]:
    """All results, by seed, then in the order of the design."""
    order = list(NAMES)
    found = [json.loads(p.read_text(encoding="utf-8")) for p in (HERE / "results").glob("*.json")]
    kinds = ("embedded-parent", "embedded")

    def place(r: Result) -> tuple[bool, int, int, int, float]:
        arm = r["arm"]
        return arm["kind"] in kinds, arm["tokens"], arm["seed"], order.index(arm["kind"]), arm["share"]

    return sorted(found, key=place)


def name(result: Result) -> str:
    """A row's label."""
    arm = result["arm"]
    whose = f" of {arm['tokens'] / 1e6:.3g} M"
    return NAMES[arm["kind"]] + ("" if arm["kind"] in PARENTS else f", {100 * arm['share']:.0f} %{whose}")


def millions(result: Result, what: str) -> str:
    """A cost in millions."""
    return f"{result['cost'][what] / 1e6:.2f} M"


def right(result: Result, strategy: str) -> list[bool]:
    """Right or wrong, item by item, over the tasks in their order."""
    return [c == "1" for task in TASKS for c in result["measured"][strategy][task]["right"]]


def per_forward(result: Result, strategy: str) -> float:
    """Visible tokens per forward over all items."""
    cells = result["measured"][strategy].values()
    return sum(c["tokens"] for c in cells) / sum(c["forwards"] for c in cells)


def rows(results: Sequence[Result]) -> list[str]:
    """The main table."""
    lines = [
        "| run | seed | data tokens | positions | decoding | one step | two steps | three steps | all | 95 % interval "
        "| against the parent (95 % at least) | tokens per forward |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    parents = {r["arm"]["name"]: right(r, "greedy") for r in results if r["arm"]["kind"] in PARENTS}
    for r in results:
        for strategy, cells in r["measured"].items():
            flags = right(r, strategy)
            low, high = wilson(sum(flags), len(flags))
            tasks = [cells[t]["right"] for t in TASKS]
            shares = " | ".join(f"{x.count('1') / len(x):.1%}" for x in tasks)
            against = ""
            parent = r["arm"]["parent"] or f"parent-s{r['arm']['seed']}"  # for the control from scratch
            if r["arm"]["kind"] not in PARENTS and parent in parents:
                mean, least, _ = paired_difference(parents[parent], flags)
                against = f"{100 * mean:+.1f} ({100 * least:+.1f})"
            lines.append(
                f"| {name(r)} | {r['arm']['seed']} | {millions(r, 'tokens')} | {millions(r, 'positions')} "
                f"| {strategy} | {shares} | {sum(flags) / len(flags):.1%} | {low:.1%} to {high:.1%} | {against} "
                f"| {per_forward(r, strategy):.2f} |"
            )
    return lines


def controls(results: Sequence[Result]) -> list[str]:
    """Each control against the 10 % child of its seed, at the threshold."""
    children = {r["arm"]["seed"]: r for r in results if r["arm"]["name"].startswith("child10-")}
    lines = ["| control | seed | against the 10 % child | 95 % at most |", "|---|---|---|---|"]
    for r in results:
        seed = r["arm"]["seed"]
        if r["arm"]["kind"] in CONTROLS and seed in children:
            mean, _, most = paired_difference(right(children[seed], "threshold"), right(r, "threshold"))
            lines.append(f"| {name(r)} | {seed} | {100 * mean:+.1f} points | {100 * most:+.1f} |")
    return lines


def plot_shares(results: Sequence[Result], path: Path) -> None:
    """Accuracy against the share of the parent's tokens."""
    figure, axes = plt.subplots(figsize=(8, 4.2))
    groups = sorted({(r["arm"]["tokens"], r["arm"]["seed"]) for r in results if r["arm"]["kind"] == "child"})
    for (tokens, seed), colour in zip(groups, COLOURS, strict=False):
        mine = [r for r in results if (r["arm"]["tokens"], r["arm"]["seed"]) == (tokens, seed)]
        label = f"{tokens / 1e6:.0f} M, seed {seed}"
        for r in mine:
            kind, x = r["arm"]["kind"], 100 * r["arm"]["share"]
            if kind == "parent":
                y = 100 * mean(right(r, "greedy"))
                axes.axhline(y, color=colour, ls="--", lw=1, label=f"AR parent, {label}")
            elif kind in CONTROLS:
                what = f"{NAMES[kind].removeprefix('control: ')}, seed {seed}"
                axes.plot(x, 100 * mean(right(r, ORDERED)), CONTROLS[kind], color=colour, mfc="none", label=what)
        for strategy, line in ((ORDERED, "o-"), ("threshold", "o:")):
            points = [
                (100 * r["arm"]["share"], 100 * mean(right(r, strategy))) for r in mine if r["arm"]["kind"] == "child"
            ]
            axes.plot(*zip(*points, strict=True), line, color=colour, label=f"child of {label}, {strategy}")
    axes.set(
        xscale="log",
        xlabel="adaptation tokens, % of the parent's",
        ylabel="exact match, % of 2100 problems",
        ylim=(0, 100),
    )
    axes.set_xticks([3, 10, 30], ["3", "10", "30"])
    axes.minorticks_off()
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(figure, path)


def plot_speed(results: Sequence[Result], path: Path) -> None:
    """Accuracy against tokens per forward, one point per run and strategy."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    marks = {"parent": "*", "child": "o", "embedded-parent": "P", "embedded": "D", **CONTROLS}
    for kind, mark in marks.items():
        mine = [r for r in results if r["arm"]["kind"] == kind]
        for i, (r, strategy) in enumerate([(m, s) for m in mine for s in m["measured"]]):
            size = 4 + 14 * r["arm"]["share"] if kind == "child" else 7
            axes.plot(
                per_forward(r, strategy), 100 * mean(right(r, strategy)), mark, ms=size, mfc="none",
                color=COLOURS[list(marks).index(kind) % len(COLOURS)],
                label=None if i else NAMES[kind].removeprefix("control: "),
            )  # fmt: skip
    axes.set(xlabel="visible tokens per forward", ylabel="exact match, % of 2100 problems", ylim=(0, 100))
    axes.legend(fontsize=7, frameon=False, title="larger circles: more tokens", title_fontsize=7)
    save(figure, path)


def mean(flags: Sequence[bool]) -> float:
    """Share of True."""
    return sum(flags) / len(flags)


def save(figure: Any, path: Path) -> None:
    """An SVG without a date, so that equal results give equal files."""
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    mpl.rcParams["svg.hashsalt"] = "unmask"
    results = read()
    write_text(HERE / "tables.md", "\n".join([*rows(results), "", *controls(results)]) + "\n")
    plot_shares(results, HERE / "accuracy-by-share.svg")
    plot_speed(results, HERE / "accuracy-by-speed.svg")
    print("\n".join([*rows(results), "", *controls(results)]))


if __name__ == "__main__":
    main()
