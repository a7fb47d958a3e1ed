"""Puts a finished run into the package as the embedded model and writes its card.

unmask train recipes/nano.yaml --out runs/nano
python scripts/nano_card.py install runs/nano          # the model's files -> src/unmask/assets/nano
unmask eval synthetic --json > scores.json             # 500 held-out items per task, one token per step
python scripts/nano_card.py card runs/nano scores.json # README.md, loss.svg and scores.json beside the model
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.evals.synthetic_eval import trivial
from unmask.evals.tasks.synthetic import TASKS

TEMPLATE = Path(__file__).with_name("nano_card.md")
HOME = Path(__file__).parents[1] / "src/unmask/assets/nano"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 320, 56, 40, 28


def main(argv: Sequence[str]) -> int:
    if len(argv) == 2 and argv[0] == "install":
        return install(Path(argv[1]))
    if len(argv) == 4 and argv[0] == "card":
        return card(Path(argv[1]), Path(argv[2]), Path(argv[3]))
    print(__doc__)
    return 2


def install(run: Path) -> int:
    """The exported model's files take the place of the old ones."""
    HOME.mkdir(parents=True, exist_ok=True)
    for file in sorted((run / "model").iterdir()):
        shutil.copyfile(file, HOME / file.name)
        print(f"{HOME / file.name}: {file.stat().st_size:,} bytes")
    return 0


def card(run: Path, scores: Path, fast: Path) -> int:
    """README.md, loss.svg and scores.json."""
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [x for x in lines if x["kind"] == "train"]
    rows, quick = (json.loads(p.read_text(encoding="utf-8")) for p in (scores, fast))
    (HOME / "loss.svg").write_text(curve([(x["tokens"], x["ce"]) for x in steps]), encoding="utf-8")
    (HOME / "scores.json").write_text(json.dumps(rows + quick, indent=1) + "\n", encoding="utf-8")
    (HOME / "README.md").write_text(text(steps[-1], rows, quick), encoding="utf-8")
    return 0


def text(last: dict[str, Any], rows: list[dict[str, Any]], quick: list[dict[str, Any]]) -> str:
    """The card."""
    config = json.loads((HOME / "config.json").read_text(encoding="utf-8"))
    size = (HOME / "model.safetensors").stat().st_size
    return TEMPLATE.read_text(encoding="utf-8").format(
        parameters=f"{size / 2e6:.2f}",
        megabytes=f"{size / 1e6:.1f}",
        layers=config["n_layers"],
        dim=config["d_model"],
        heads=config["n_heads"],
        mlp=config["mlp_hidden_size"],
        vocab=config["vocab_size"],
        tokens=f"{last['tokens'] / 1e6:.1f}",
        steps=f"{last['step']:,}",
        ce=f"{last['ce']:.3f}",
        table=table(rows, quick),
    )


def table(rows: list[dict[str, Any]], quick: list[dict[str, Any]]) -> str:
    """Scores beside the trivial rule."""
    rules = trivial([r["task"] for r in rows], rows[0]["n"])
    lines = [
        "| task | what is asked | exact match | 95 % interval | forwards | threshold 0.9 | forwards | trivial rule |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r, f in zip(rows, quick, strict=True):
        lines.append(
            f"| {r['task']} | {TASKS[r['task']].about} | {r['accuracy']:.1%} | {r['low']:.1%} to {r['high']:.1%} "
            f"| {r['nfe']:.1f} | {f['accuracy']:.1%} | {f['nfe']:.1f} | {rules[r['task']]:.1%} |"
        )
    return "\n".join(lines)


def curve(points: list[tuple[float, float]]) -> str:
    """Cross-entropy per masked answer token over tokens seen, logarithmic, as SVG."""
    from math import log10

    right, low, high = points[-1][0], 0.01, 10.0
    span = log10(high) - log10(low)

    def place(tokens: float, loss: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 12) * tokens / right
        y = TOP + (HEIGHT - TOP - BOTTOM) * (log10(high) - log10(max(loss, low))) / span
        return round(x, 1), round(y, 1)

    line = " ".join(f"{x},{y}" for x, y in (place(*p) for p in points))
    grid = []
    for loss in (0.01, 0.1, 1.0, 10.0):
        y = place(0, loss)[1]
        grid.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - 12}" y2="{y}" stroke="#ddd"/>')
        grid.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{loss:g}</text>')
    for i in range(6):
        x = place(right * i / 5, 1)[0]
        grid.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{right * i / 5 / 1e6:.0f} M</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#333"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(grid)}'
        f'<text x="{LEFT}" y="16">cross-entropy per masked answer token (nats), mean of 50 steps</text>'
        f'<text x="{WIDTH - 12}" y="{HEIGHT - 6}" text-anchor="end">tokens seen</text>'
        f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="1.5"/></svg>\n'
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
