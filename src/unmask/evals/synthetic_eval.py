"""Scores on held-out items of the synthetic tasks: what the embedded model's card shows, by one command.

Enters: a model and decoding options. Leaves: exact match per task with a 95 % interval, forwards per answer, and tokens
per forward. Items come from the test side of the split, so no training run can have seen them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unmask.core.errors import InputError
from unmask.evals import baseline
from unmask.evals.tasks.synthetic import TASKS, Item, held_out, task_named

ONE_TOKEN_PER_STEP = {"gen_length": 64, "steps": 64, "block_length": 32, "remasking": "low_confidence"}
SLOTS = 50


@dataclass(frozen=True)
class Score:
    """One task's result.

    Args:
        exact: share of items whose answer passes the task's check. low, high: Wilson's 95 % interval.
        baseline: the same share for the trivial rule of `evals.baseline`.
        nfe: forwards per answer. tokens: visible tokens per answer. seconds: wall time of all items.
    """

    task: str
    items: int
    exact: float
    low: float
    high: float
    baseline: float
    nfe: float
    tokens: float
    seconds: float


def evaluate(model: Any, tasks: Sequence[str], items: int, seed: int = 0, **given: Any) -> Iterator[Score]:
    """Scores of a loaded `pipeline.Model`, task by task; keywords as in `Model.generate`."""
    for name in tasks:
        yield score(model, name, held_out(name, items, seed), **given)


def score(model: Any, name: str, items: Sequence[Item], **given: Any) -> Score:
    """One task. All items are decoded together, as many at a time as the model has slots."""
    task, began = task_named(name), time.perf_counter()
    found = model.generate([i.prompt for i in items], chat=True, **given)
    seconds = time.perf_counter() - began
    right = sum(task.check(i, g.text) for i, g in zip(items, found, strict=True))
    low, high = wilson(right, len(items))
    return Score(
        task=name,
        items=len(items),
        exact=right / len(items),
        low=low,
        high=high,
        baseline=sum(task.check(i, baseline.answer(i)) for i in items) / len(items),
        nfe=sum(g.nfe for g in found) / len(items),
        tokens=sum(g.completion_tokens for g in found) / len(items),
        seconds=seconds,
    )


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def metric(model: Any, config: Mapping[str, Any], tokenizer: Path, items: int = 50, **given: Any) -> dict[str, float]:
    """Exact match during training: the trainer's `validate.metric`. `tasks` in the arguments is a comma list."""
    from unmask.models.denoiser import TransformerDenoiser
    from unmask.models.family import find_family
    from unmask.pipeline.model import Model
    from unmask.text.codec import Codec

    tasks = _task_list(str(given.pop("tasks", "all")))
    family = find_family(config)
    denoiser = TransformerDenoiser(model, family.traits(config))
    loaded = Model(denoiser, Codec.from_dir(tokenizer), family, config, "training", None, SLOTS)
    found = {s.task: s.exact for s in evaluate(loaded, tasks, items, **{**ONE_TOKEN_PER_STEP, **given})}
    return {"exact": sum(found.values()) / len(found), **{f"exact/{name}": value for name, value in found.items()}}


# --- the command ------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `unmask eval synthetic`."""
    parser.add_argument("--model", metavar="MODEL", help="directory or hub id (default: the embedded model)")
    parser.add_argument("--tasks", default="all", metavar="LIST", help="comma list of: " + ", ".join(TASKS))
    parser.add_argument("--items", type=_count, default=500, metavar="N", help="held-out items per task (default: 500)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which held-out items (default: 0)")
    group = parser.add_argument_group("decoding", "default: one token per step, 64 tokens, blocks of 32")
    for name, kind, text in (
        ("gen-length", _count, "answer canvas in tokens"),
        ("steps", _count, "denoising steps in all"),
        ("block-length", _count, "positions per block"),
        ("threshold", float, "commit every position at or above this confidence"),
        ("factor", float, "Fast-dLLM's factor rule"),
        ("policy", str, "a policy spec"),
        ("schedule", str, "a schedule spec"),
        ("cache", str, "none, prefix or dual"),
        ("dtype", str, "auto, bf16, fp16, fp32"),
        ("device", str, "auto, cpu, cuda, mps"),
    ):
        group.add_argument(f"--{name}", type=kind, metavar=name.split("-")[0].upper(), help=text)
    parser.add_argument("--recommended", action="store_true", help="decode by the checkpoint's own settings")
    parser.add_argument("--out", metavar="FILE", help="also write the scores as JSON")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")


def run(args: argparse.Namespace) -> int:
    """Loads, decodes, prints a table (or JSON). Bad input is refused before anything is loaded."""
    from unmask.pipeline.model import load
    from unmask.sinks.files import WholeFile, check_writable

    tasks, given = _task_list(args.tasks), _decoding(args)
    if args.out:
        check_writable(args.out, "--out")
    model = load(args.model, dtype=args.dtype or "auto", device=args.device or "auto", slots=SLOTS)
    say = _silent if args.json else _line
    say(f"{'task':<11}{'items':>6}{'exact':>8}   95 % interval   baseline  forwards  tokens/forward")
    scores = []
    for one in evaluate(model, tasks, args.items, args.seed, **given):
        scores.append(one)
        say(
            f"{one.task:<11}{one.items:>6}{one.exact:>8.3f}   {one.low:.3f} - {one.high:.3f}   {one.baseline:>8.3f}"
            f"{one.nfe:>10.1f}{one.tokens / max(1e-9, one.nfe):>16.2f}"
        )
    result = {
        "model": model.name,
        "decoding": given or "recommended",
        "seed": args.seed,
        "scores": [asdict(s) for s in scores],
    }
    text = json.dumps(result, indent=1) + "\n"
    if args.out:
        with WholeFile(args.out) as file:
            file.write(text)
            file.commit()
    if args.json:
        sys.stdout.write(text)
    return 0


def _decoding(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for. A rule of its own (threshold, policy ...) replaces the fixed steps of the default."""
    names = ("gen_length", "steps", "block_length", "threshold", "factor", "policy", "schedule", "cache")
    said = {n: v for n in names if (v := getattr(args, n)) is not None}
    if args.recommended:
        if set(said) - {"cache"}:
            raise InputError("--recommended", expected="no other decoding option", got=", ".join(said))
        return said
    base = dict(ONE_TOKEN_PER_STEP)
    if {"threshold", "factor", "policy"} & set(said):
        base.pop("remasking")
        base.pop("steps")
    elif "gen_length" in said:
        base["steps"] = said["gen_length"]
    if "schedule" in said:
        base.pop("block_length")
    return {**base, **said}


def _task_list(text: str) -> list[str]:
    names = list(TASKS) if text == "all" else [t.strip() for t in text.split(",") if t.strip()]
    for name in names:
        task_named(name)
    if not names:
        raise InputError("--tasks", expected="all, or a comma list of " + ", ".join(TASKS), got=repr(text))
    return names


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer from 1, got {text!r}")
    return value


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _silent(text: str) -> None:
    """Says nothing."""
