"""Puts finished runs into the package as the embedded models, scores them and writes their cards.

python scripts/nano_card.py install nano-ar runs/nano-ar/model runs/nano-ar/metrics.jsonl
python scripts/nano_card.py install nano runs/nano-block runs/nano-block/run/metrics.jsonl   # what `unmask adapt` wrote
python scripts/nano_card.py scores nano-ar          # scores.json beside the model; the parent before the child
python scripts/nano_card.py scores nano
python scripts/nano_card.py card nano               # README.md, from nano_card.md, nano_cards.yaml and scores.json
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from math import log10, prod
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
import yaml
from safetensors import safe_open

import unmask
from unmask.evals.synthetic_eval import evaluate, strategy, trivial
from unmask.evals.tasks.synthetic import TASKS, held_out
from unmask.train.export import tokenizer_files

HERE = Path(__file__).parent
ASSETS = HERE.parent / "src/unmask/assets"
COUNT, MANY = 500, 1000
SURE = ("one_step", "two_step", "three_step")
"""Tasks with a promise at threshold 0.9: scored on MANY items."""
FAST = "threshold(0.9)"
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 720, 320, 56, 24, 40, 28
Row = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    known = {"install": (install, 4), "scores": (scores, 2), "card": (card, 2)}
    if not argv or argv[0] not in known or len(argv) != known[argv[0]][1]:
        print(__doc__)
        return 2
    known[argv[0]][0](*argv[1:])
    return 0


def install(name: str, model: str, metrics: str) -> None:
    """The exported model's files take the place of the old ones; loss.svg and totals come from the run's metrics."""
    source, home = Path(model), ASSETS / name
    home.mkdir(parents=True, exist_ok=True)
    for file, content in tokenizer_files(source).items():
        if file != "report.json":
            (home / file).write_bytes(content)
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(source / file, home / file)
    points = list(_points(Path(metrics)))
    (home / "loss.svg").write_text(curve([(p["tokens"], p["ce"]) for p in points]), encoding="utf-8")
    own = json.loads((source / "unmask.json").read_text(encoding="utf-8"))
    own["training"] = {k: points[-1][k] for k in ("steps", "tokens", "positions", "ce")}
    (home / "unmask.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
    print(f"{home}: {sum(p.stat().st_size for p in home.iterdir()):,} bytes")


def _points(metrics: Path) -> Iterator[Row]:
    """The training lines, with tokens and positions counted from the start.

    `positions` is a mean per step; `tokens` is a total, or a mean per step where the objective reports its own.
    """
    lines = [json.loads(x) for x in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [x for x in lines if x["kind"] == "train"]
    means, before, tokens, positions = steps[-1]["tokens"] < 2 * steps[0]["tokens"], 0, 0.0, 0.0
    for x in steps:
        took, before = x["step"] - before, x["step"]
        tokens = tokens + took * x["tokens"] if means else x["tokens"]
        positions += took * x["positions"]
        yield {"steps": x["step"], "tokens": round(tokens), "positions": round(positions), "ce": x["ce"]}


def scores(name: str) -> None:
    """scores.json: one token per forward, and for diffusion models their own policy and plain threshold 0.9."""
    torch.set_num_threads(1)
    model = unmask.load(ASSETS / name, device="cpu", slots=32)
    rows = [s.to_dict() for s in evaluate(model, None, COUNT, strategy(model))]
    if model.traits.mask_id is not None:
        for policy in dict.fromkeys((_policy(name), FAST)):
            fast = strategy(model, policy)
            for task in TASKS:
                rows += [s.to_dict() for s in evaluate(model, [task], MANY if task in SURE else COUNT, fast)]
    for r in rows:
        print(f"{r['task']:10} {r['strategy']:22} {r['accuracy']:.1%} {r['tokens_per_forward']:.2f}")
    (ASSETS / name / "scores.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def card(name: str) -> None:
    """README.md."""
    words = yaml.safe_load((HERE / "nano_cards.yaml").read_text(encoding="utf-8"))[name]
    run = json.loads((ASSETS / name / "unmask.json").read_text(encoding="utf-8"))["training"]
    weights = ASSETS / name / "model.safetensors"
    with safe_open(weights, "pt") as tensors:
        count = sum(prod(tensors.get_slice(k).get_shape()) for k in tensors.keys())  # noqa: SIM118 (not a mapping)
    facts = {k: f"{run[k] / 1e6:.1f} million" for k in ("tokens", "positions") if k in run}
    words = {k: v.strip().format(**facts, steps=f"{run['steps']:,}", ce=f"{run['ce']:.3f}") for k, v in words.items()}
    words["notes"] = f"{words['notes']}\n" if "notes" in words else ""
    text = (HERE / "nano_card.md").read_text(encoding="utf-8")
    parts = {"table": table(name), "stories": _stories(name) if name == "nano" else "", "limits": "", **words}
    size = {"parameters": f"{count / 1e6:.2f}", "megabytes": f"{weights.stat().st_size / 1e6:.1f}"}
    made = text.format(name=name, **size, **parts)
    (ASSETS / name / "README.md").write_text(wrapped(made), encoding="utf-8")


def wrapped(text: str) -> str:
    """Markdown with prose and list items in lines of 120; tables, quotes, headings, code and pictures as they are."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        if block.startswith("- "):
            items = re.split(r"\n(?=- )", block)
            block = "\n".join(
                fill(" ".join(i.split()), 120, subsequent_indent="  ", break_on_hyphens=False) for i in items
            )
        elif block[0] not in "|>#`!":
            block = fill(block, 120, break_on_hyphens=False)
        blocks.append(block)
    return "\n\n".join(blocks) + "\n"


def table(name: str) -> str:
    """Scores beside the trivial rule and, for the child, its parent."""
    rows = _rows(name)
    slow = next(rows[k] for k in rows if not k.startswith("threshold"))
    fast = rows.get(f"{_policy(name)}, {_cache(rows)}")
    parent = next(iter(_rows("nano-ar").values())) if name == "nano" else None
    rules = trivial(list(TASKS), COUNT)
    one = "left to right" if fast is None else "1 token per forward"
    head = ["task", "what is asked", one, "95 % interval", "forwards"]
    how = "threshold 0.9" + (", left to right" if "left_to_right" in _policy(name) else "")
    head += [how, "95 % interval", "items", "forwards", "tokens per forward"] if fast else []
    head += ["parent nano-ar", "95 % interval", "forwards"] if parent else []
    lines = [_line([*head, "trivial rule"]), "|---" * (len(head) + 1) + "|"]
    for task, asked in TASKS.items():
        cells = [task, asked.about, *_cells(slow[task]), f"{slow[task]['nfe']:.1f}"]
        if fast:
            f = fast[task]
            cells += [*_cells(f), str(f["n"]), f"{f['nfe']:.1f}", f"{f['tokens_per_forward']:.2f}"]
        if parent:
            cells += [*_cells(parent[task]), f"{parent[task]['nfe']:.1f}"]
        lines.append(_line([*cells, f"{rules[task]:.1%}"]))
    return "\n".join(lines)


def _rows(name: str) -> dict[str, dict[str, Row]]:
    """Strategy -> task -> score."""
    found: dict[str, dict[str, Row]] = {}
    for r in json.loads((ASSETS / name / "scores.json").read_text(encoding="utf-8")):
        found.setdefault(r["strategy"], {})[r["task"]] = r
    return found


def _policy(name: str) -> str:
    """The policy that the model is decoded with when nothing is said."""
    own = json.loads((ASSETS / name / "unmask.json").read_text(encoding="utf-8"))["recommended"]
    return str(own.get("policy", FAST))


def _cache(rows: dict[str, dict[str, Row]]) -> str:
    return next(iter(rows)).rpartition(", ")[2]


def _cells(score: Row) -> list[str]:
    return [f"{score['accuracy']:.1%}", f"{score['low']:.1%} to {score['high']:.1%}"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _stories(name: str) -> str:
    """The answers to the first three held-out story prompts, as they come."""
    items = held_out("story", 3)
    answers = unmask.load(ASSETS / name, device="cpu").generate([i.prompt for i in items])
    lines = [
        "",
        "## Three stories",
        "",
        "The first three held-out prompts with the default settings, as they came.",
        "",
    ]
    for item, answer in zip(items, answers, strict=True):
        rate = answer.completion_tokens / answer.nfe
        lines += [
            f"> {item.prompt}",
            ">",
            f"> {answer.text}",
            "",
            f"{answer.nfe} forwards, {rate:.1f} tokens each.",
            "",
        ]
    return "\n".join(lines)


def curve(points: list[tuple[float, float]]) -> str:
    """Cross-entropy per answer token in the loss over tokens seen, logarithmic, as SVG."""
    right, low, high = points[-1][0], 0.01, 10.0
    span = log10(high) - log10(low)

    def place(tokens: float, loss: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * tokens / right
        y = TOP + (HEIGHT - TOP - BOTTOM) * (log10(high) - log10(max(loss, low))) / span
        return round(x, 1), round(y, 1)

    line = " ".join(f"{x},{y}" for x, y in (place(*p) for p in points))
    grid = []
    for loss in (0.01, 0.1, 1.0, 10.0):
        y = place(0, loss)[1]
        grid.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#ddd"/>')
        grid.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{loss:g}</text>')
    for i in range(6):
        x = place(right * i / 5, 1)[0]
        grid.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{right * i / 5 / 1e6:.1f} M</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#333"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(grid)}'
        f'<text x="{LEFT}" y="16">cross-entropy per answer token in the loss (nats), mean of 50 steps</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">tokens seen</text>'
        f'<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="1.5"/></svg>\n'
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
