"""`unmask bench decode`: which strategy decodes how fast, and how close to what the matrix products alone would take.

Enters: the command line's arguments. Leaves: a list of rows as JSON, or a Markdown table with machine and versions. The
strategies are made in `cases.py`, measured in `decoding.py` against the floor of `floor.py`, and told in `table.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from unmask.core.errors import InputError
from unmask.lab.words import CACHES

if TYPE_CHECKING:
    from unmask.lab.decoding import Case, Measured
    from unmask.pipeline.model import Model

POLICY = "low_confidence"
BASELINES = "ar, fast-dllm-v2, fast-dllm-v2-cached"


def add_arguments(parser: Any) -> None:
    """Declares the options on the command line's own parser (it adds the underscore forms)."""
    add = parser.option
    model = parser.add_argument_group("model (default: the one inside this package)")
    source = model.add_mutually_exclusive_group()
    add(source, "--shape", metavar="NAME", help="random weights of a named shape: llada-mid, dream-mid, v2-mid, ...")
    add(source, "--model", metavar="DIR|ID", help="checkpoint folder or hub id")
    add(model, "--vocab", type=_whole(4), metavar="N", help="another vocabulary for --shape (8192: a light head)")
    add(model, "--layers", type=_whole(1), metavar="N", help="another depth for --shape")
    add(model, "--device", default="auto", metavar="D", help="auto, cuda, mps or cpu (default: auto)")
    add(model, "--dtype", default="auto", choices=("auto", "bf16", "fp16", "fp32"), help="default: auto")
    add(model, "--threads", type=_whole(1, 1024), metavar="N", help="CPU threads (default: torch's choice)")
    work = parser.add_argument_group("work")
    add(work, "--prompt", metavar="TEXT", help="a real prompt (models with a tokenizer) instead of random ids")
    add(work, "--prompt-length", type=_whole(1, 1 << 20), metavar="N", help="random ids in the prompt (default: 128)")
    add(work, "--gen-length", type=_whole(1, 1 << 20), default=128, metavar="N", help="answer places (default: 128)")
    words = "places per block (default: 32; on block-diffusion models a sub-block of 8)"
    add(work, "--block-length", type=_whole(1, 1 << 20), metavar="N", help=words)
    words = "tokens settled per forward by policies that count steps, such as 1,2,4 (default: 1)"
    add(work, "--tokens-per-step", type=_wholes(1, 1 << 20), metavar="LIST", help=words)
    words = "N requests of mixed lengths, together and one after the other"
    add(work, "--crowd", type=_whole(1, 64), default=1, metavar="N", help=words)
    _add_comparison(parser)


def _add_comparison(parser: Any) -> None:
    add = parser.option
    compared = parser.add_argument_group("compared (every cache with every policy, the baselines beside them)")
    words = f"comma-separated specs (default: {CACHES['canvas']}; on block models {CACHES['block']})"
    add(compared, "--cache", metavar="LIST", help=words)
    add(compared, "--policy", default=POLICY, metavar="LIST", help=f"comma-separated specs (default: {POLICY})")
    words = "same weights decoded left to right (ar), published samplers at one token per forward"
    add(compared, "--baseline", metavar="LIST", help=f"of {BASELINES}: {words}")
    add(compared, "--rounds", type=_whole(1, 1000), default=5, metavar="N", help="interleaved runs (default: 5)")
    words = "wall, or the processor time of one thread, for a busy machine (default: wall)"
    add(compared, "--clock", default="wall", choices=("wall", "cpu"), help=words)
    words = (
        "held-out items per task whose answers are scored beside the speed; only models trained on them have a score"
    )
    add(compared, "--items", type=_whole(0, 10_000), metavar="N", help=f"{words} (default: 20 for the embedded models)")
    parser.add_argument("--json", action="store_true", help="a list of rows on stdout")


def run(args: argparse.Namespace) -> int:
    """Measures and prints.

    Raises:
        InputError: options that do not fit together, an unknown shape or spec, a canvas beyond the model's context.
    """
    _check(args)
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    from unmask.lab import table
    from unmask.lab.cases import block_of, cases, prompt_of

    model = _load(args)
    measured = _measure(args, model, cases(args, model))
    prompt = prompt_of(args, model)
    work = {"prompt_length": prompt if isinstance(prompt, int) else len(prompt), "gen_length": args.gen_length}
    work |= {"block_length": block_of(args, model.traits), "clock": args.clock}
    rows = [table.row(m, model, work) for m in measured]
    table.relate(rows)
    _add_quality(rows, measured, args, model)
    text = json.dumps(rows, indent=2) if args.json else table.markdown(rows, args.crowd)
    sys.stdout.write(text + "\n")
    return 0


# ---- what is asked -----------------------------------------------------------------------------------------------


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            upper = "" if high is None else f" to {high}"
            raise argparse.ArgumentTypeError(f"expected an integer from {low}{upper}, got {text!r}")
        return value

    return convert


def _wholes(low: int, high: int) -> Callable[[str], list[int]]:
    return lambda text: [_whole(low, high)(part) for part in text.split(",")]


def _check(args: argparse.Namespace) -> None:
    """What can be refused before torch is imported."""
    from unmask.core import catalog, spec
    from unmask.lab.words import listed, once

    for name in ("vocab", "layers"):
        if getattr(args, name) is not None and args.shape is None:
            raise InputError(f"--{name}", expected="--shape beside it", got="no --shape")
    if args.items and args.shape is not None:
        raise InputError("--items", expected="a trained model", got="--shape", remedy="Random weights have no score.")
    if args.prompt is not None and args.shape is not None:
        raise InputError("--prompt", expected="a model with a tokenizer", got="--shape", remedy="Use --prompt-length.")
    if args.prompt is not None and args.prompt_length is not None:
        raise InputError("--prompt and --prompt-length", expected="one of them", got="both")
    if args.prompt is not None and not args.prompt.strip():
        raise InputError("--prompt", expected="some text", got="an empty one")
    if args.clock == "cpu" and args.threads != 1:
        raise InputError("--clock cpu", expected="--threads 1 (processor time adds up over threads)", got="more")
    once(args.tokens_per_step or [], "--tokens-per-step")
    for kind in ("cache", "policy"):
        for given in listed(getattr(args, kind), f"--{kind}") if getattr(args, kind) is not None else []:
            catalog.find(kind, spec.split(given)[0])
    for given in listed(args.baseline, "--baseline") if args.baseline is not None else []:
        if given not in BASELINES.split(", "):
            raise InputError("--baseline", expected=f"some of: {BASELINES}", got=repr(given))


def _load(args: argparse.Namespace) -> Model:
    """The model to measure; a named shape has random weights and no tokenizer."""
    from unmask.models.backbone import denoiser_of
    from unmask.models.family import find_family
    from unmask.models.shapes import random_model
    from unmask.pipeline.model import Model, load

    if args.shape is None:
        return load(args.model, dtype=args.dtype, device=args.device)
    weights, config = random_model(args.shape, 0, args.vocab, args.layers, args.dtype, args.device)
    family = find_family(config)
    return Model(denoiser_of(weights, family.traits(config)), None, family, config, f"random {args.shape}")


def _measure(args: argparse.Namespace, model: Model, cases: Sequence[Case]) -> list[Measured]:
    from unmask.engine.clock import now
    from unmask.lab.decoding import compare
    from unmask.lab.floor import Floor
    from unmask.models.backbone import transformer_of

    denoiser = model.denoiser
    clock = partial(now, denoiser.device) if args.clock == "wall" else time.process_time
    if args.clock == "cpu" and denoiser.device.type != "cpu":
        raise InputError("--clock cpu", expected="a model on the CPU", got=denoiser.device.type)
    network = transformer_of(denoiser.model, "bench decode (its floor)")
    parameters = network.layers.named_parameters()
    matrices = [p for name, p in parameters if p.dim() == 2 and name.endswith("weight")]
    return compare(Floor(matrices, denoiser.head.weight, clock), cases, args.rounds, clock)


def _add_quality(
    rows: list[dict[str, Any]], measured: Sequence[Measured], args: argparse.Namespace, model: Model
) -> None:
    """Exact match on held-out synthetic items, all tasks together, decoded with each row's cache and policy."""
    from unmask.evals.intervals import wilson
    from unmask.evals.synthetic_eval import evaluate
    from unmask.lab.cases import block_of, line
    from unmask.models.embedded import EMBEDDED

    known = args.shape is None and args.model in (None, *EMBEDDED)
    count = (20 if known else 0) if args.items is None else args.items
    if not count or model.codec is None:
        return
    for row, m in zip(rows, measured, strict=True):
        if m.case.baseline is not None:
            continue
        answer = model.recommended().gen_length
        strategy = line(args, model, m.case.cache, m.case.policy, m.case.tokens_per_step).strategy(answer, closed=False)
        options = {"policy": repr(strategy.policy), "cache": row["cache"], "max_tokens": answer}
        if model.traits.mask_id is None:
            options = {"cache": row["cache"], "max_tokens": answer}
        else:
            options["schedule"] = f"blocks({block_of(args, model.traits)})"
        scores = list(evaluate(model, None, count, {"": options}))
        correct, n = sum(s.correct for s in scores), sum(s.n for s in scores)
        low, high = wilson(correct, n)
        row |= {
            "items": n,
            "accuracy": round(correct / n, 4),
            "accuracy_low": round(low, 4),
            "accuracy_high": round(high, 4),
        }
