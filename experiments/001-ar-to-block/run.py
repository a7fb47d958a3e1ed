"""Trains and measures what is missing of experiment 001; finished parts are never redone.

    python experiments/001-ar-to-block/run.py --status             what is done
    python experiments/001-ar-to-block/run.py                      do the rest (about 80 minutes of one core)
    python experiments/001-ar-to-block/run.py --only parent-s0,child10-s0
    python experiments/001-ar-to-block/run.py --try child10-s0 optim.lr=0.001    on train-side problems; nothing is kept

A killed run goes on from its last checkpoint. Outcomes land in results/NAME.json, all at once.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml

from unmask.core.errors import ConfigError
from unmask.core.events import Stepped
from unmask.evals.tasks.synthetic import Item, held_out, stream, task_named
from unmask.models.embedded import embedded
from unmask.pipeline import Model, load
from unmask.sinks.files import write_text
from unmask.train.config import build
from unmask.train.events import Done, Progress
from unmask.train.recipe import Recipe
from unmask.train.trainer import Trainer

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Arm:
    """One run. share: of the parent's tokens, `tokens`; parent: the arm whose model it starts from."""

    name: str
    kind: str
    seed: int
    share: float
    tokens: int
    parent: str | None = None


def arms(config: Mapping[str, Any]) -> list[Arm]:
    """All runs, parents first."""
    out, tokens, control = [], config["tokens"], config["control_share"]
    for seed in config["seeds"]:
        parent = f"parent-s{seed}"
        out.append(Arm(parent, "parent", seed, 1.0, tokens))
        out += [Arm(f"child{percent(s)}-s{seed}", "child", seed, s, tokens, parent) for s in config["shares"]]
        out.append(Arm(f"published{percent(control)}-s{seed}", "published", seed, control, tokens, parent))
        out.append(Arm(f"scratch{percent(control)}-s{seed}", "scratch", seed, control, tokens))
        out.append(Arm(f"bidirectional{percent(control)}-s{seed}", "bidirectional", seed, control, tokens, parent))
    for seed in config["seeds"]:
        parent, own = f"long-parent-s{seed}", config["long"]
        out.append(Arm(parent, "parent", seed, 1.0, own["tokens"]))
        out += [Arm(f"long{percent(s)}-s{seed}", "child", seed, s, own["tokens"], parent) for s in own["shares"]]
    own = config["embedded"]
    out.append(Arm("embedded-parent", "embedded-parent", 0, 1.0, own["tokens"]))
    out += [Arm(f"embedded{percent(s)}-s0", "embedded", 0, s, own["tokens"], "embedded-parent") for s in own["shares"]]
    return out


def percent(share: float) -> int:
    """0.1 is 10."""
    return round(100 * share)


def embedded_recipe(config: Mapping[str, Any], arm: Arm) -> Recipe:
    """The recipe of the embedded child, shortened to the arm's share."""
    own = config["embedded"]
    raw = yaml.safe_load((HERE.parents[1] / own["recipe"]).read_text(encoding="utf-8"))
    raw |= {
        "name": arm.name,
        "seed": 1000 + arm.seed,
        "model": {"path": str(embedded("nano-ar"))},
        "run": raw["run"] | {"steps": round(arm.share * arm.tokens / own["mean_batch"])},
    }
    del raw["recommended"]
    return build(Recipe, raw, "")


def recipe(config: Mapping[str, Any], arm: Arm, runs: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of an arm. Children draw other data than their parent: their seed is 1000 higher."""
    model = {"path": str(runs / arm.parent / "model")} if arm.parent else config["model"]
    raw: dict[str, Any] = {
        "name": arm.name,
        "seed": arm.seed if arm.kind == "parent" else 1000 + arm.seed,
        "model": model,
        "tokenizer": {"path": str(files("unmask") / "assets" / "nano")},
        "data": {
            "kind": "generator",
            "source": "unmask.evals.tasks.synthetic:stream",
            "batch_tokens": config["batch"][arm.kind],
            "gen_share": 0.0,
            "short_tail": 0,
            "stages": [{"start": 0, "mix": config["mix"]}],
        },
        "objective": _objective(config, arm.kind),
        "optim": config["optim"][arm.kind],
        "run": {
            "steps": round(arm.share * arm.tokens / config["mean_batch"][config["batch"][arm.kind]]),
            "threads": 1,
            "compile": True,
            "log_every": 50,
            "save_every": 500,
        },
    }
    for item in overrides:
        path, _, value = item.partition("=")
        section, key = path.split(".")
        raw[section][key] = yaml.safe_load(value)
    return build(Recipe, raw, "")


def _objective(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    if kind == "parent":
        return {"kind": "ar", "prompt_loss": False}
    if kind == "bidirectional":
        return {
            "kind": "llada-sft",
            "shift": 1,
            "normalise": "batch",
            "weight_clip": 8.0,
            "noise": {"stratified": True},
        }
    if kind == "published":  # Fast-dLLM v2's loss; two draws of its two views: as many noisy tokens as the children's
        return {"kind": "block-diffusion", "block": config["block"], "noise": {"draws": 2}}
    return {
        "kind": "block-diffusion",
        "block": config["block"],
        "context": "causal",
        "ar_weight": config["ar_weight"],
        "noise": config["noise"],
    }


def train(arm: Arm, made: Recipe, out: Path) -> dict[str, Any]:
    """Trains (or goes on) and says what it took."""
    begun, last = time.perf_counter(), {}
    for event in Trainer(made, out).fit():
        if isinstance(event, Progress):
            last = dict(event.metrics)
            print(
                f"{arm.name} step {event.step}/{event.steps} loss {last['loss']:.3f} {event.speed:,.0f} tokens/s",
                flush=True,
            )
        elif isinstance(event, Done):
            seconds = time.perf_counter() - begun
            return {
                "steps": event.step,
                "tokens": event.tokens,
                "positions": event.positions,
                "seconds": seconds,
                "loss": last.get("loss"),
            }
    raise AssertionError("a run ends with Done")


def strategies(config: Mapping[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    """How each kind of model is decoded; the parent has one way only."""
    if kind in ("parent", "embedded-parent"):
        return {"greedy": {}}
    threshold = f"threshold({config['evaluate']['threshold']})"
    size = config["embedded"]["block"] if kind == "embedded" else config["block"]
    block, cache = f"blocks({size})", "none" if kind == "bidirectional" else "block"
    ways = {
        "threshold": (threshold, block),
        "threshold, left to right": (threshold[:-1] + ', order="left_to_right")', block),
        "one per forward": ("left_to_right", block),
    }
    if kind == "bidirectional":
        ways["threshold, whole canvas"] = (threshold, "whole")
    return {name: {"policy": policy, "schedule": schedule, "cache": cache} for name, (policy, schedule) in ways.items()}


def fresh(task: str, count: int, seed: int) -> list[Item]:
    """Train-side problems for choices; the test items are left alone."""
    source = stream(random.Random(f"dev/{seed}"), {task: 1})
    return [next(source) for _ in range(count)]


class _Rows:
    """Counts rows times layers."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, event: Any) -> None:
        if isinstance(event, Stepped):
            self.total += event.work.row_layers

    def close(self) -> None:
        """Nothing to release."""


def measure(config: Mapping[str, Any], model: Model, kind: str, items: Mapping[str, Sequence[Item]]) -> dict[str, Any]:
    """Per strategy and task: right or wrong item by item, and what the answers cost."""
    out: dict[str, Any] = {}
    for label, options in strategies(config, kind).items():
        for task, problems in items.items():
            rows, begun = _Rows(), time.perf_counter()
            answers = model.generate(
                [p.prompt for p in problems], gen_length=config["evaluate"]["gen_length"], sinks=[rows], **options
            )
            assert isinstance(answers, list)
            seconds = time.perf_counter() - begun
            right = [task_named(task).check(p, a.text) for p, a in zip(problems, answers, strict=True)]
            out.setdefault(label, {})[task] = {
                "right": "".join("01"[r] for r in right),
                "forwards": sum(a.nfe for a in answers),
                "tokens": sum(a.completion_tokens for a in answers),
                "row_layers": rows.total,
                "seconds": round(seconds, 2),
            }
            speed = sum(a.completion_tokens for a in answers) / sum(a.nfe for a in answers)
            print(f"  {label}, {task}: {sum(right) / len(right):.1%}, {speed:.2f} tokens per forward", flush=True)
    return out


def finish(config: Mapping[str, Any], arm: Arm, runs: Path) -> None:
    """One arm from start to result file."""
    if arm.kind == "embedded-parent":
        cost, path = {"tokens": arm.tokens, "positions": arm.tokens}, embedded("nano-ar")
    else:
        made = embedded_recipe(config, arm) if arm.kind == "embedded" else recipe(config, arm, runs)
        cost, path = train(arm, made, runs / arm.name), runs / arm.name / "model"
    model = load(path, slots=config["evaluate"]["slots"])
    items = {task: held_out(task, n) for task, n in config["evaluate"]["items"].items()}
    result = {
        "arm": vars(arm),
        "cost": cost,
        "parameters": sum(p.numel() for p in model.denoiser.model.parameters()),
        "measured": measure(config, model, arm.kind, items),
        "environment": environment(),
    }
    (HERE / "results").mkdir(exist_ok=True)
    write_text(HERE / "results" / f"{arm.name}.json", json.dumps(result, indent=1) + "\n")


def environment() -> dict[str, str]:
    """What a reader needs to compare numbers."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def attempt(config: Mapping[str, Any], arm: Arm, runs: Path, overrides: Sequence[str]) -> None:
    """A trial on train-side problems, for choices before the runs."""
    scratch = runs / "tries" / f"{arm.name}-{abs(hash(tuple(overrides))):x}"
    train(arm, recipe(config, arm, runs, overrides), scratch)
    model = load(scratch / "model", slots=config["evaluate"]["slots"])
    measure(config, model, arm.kind, {task: fresh(task, 200, 7) for task in config["evaluate"]["items"]})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/001-ar-to-block"), help="checkpoints and models")
    parser.add_argument("--only", help="comma list of runs")
    parser.add_argument("--status", action="store_true", help="what is done and what is missing")
    parser.add_argument("--try", dest="attempt", metavar="RUN", help="a trial on train-side problems")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="with --try only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = yaml.safe_load((HERE / "config.yaml").read_text(encoding="utf-8"))
    known = {a.name: a for a in arms(config)}
    wanted = args.only.split(",") if args.only else list(known)
    unknown = [n for n in [*wanted, *([args.attempt] if args.attempt else [])] if n not in known]
    if unknown:
        raise ConfigError(f"unknown run {unknown[0]!r}", expected="one of " + ", ".join(known))
    if args.attempt:
        attempt(config, known[args.attempt], args.runs, args.overrides)
        return 0
    for name in wanted:
        done = (HERE / "results" / f"{name}.json").exists()
        if args.status:
            print(f"{'done   ' if done else 'missing'} {name}")
        elif not done:
            finish(config, known[name], args.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
