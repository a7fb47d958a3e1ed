"""`unmask bench decode`: which strategy decodes how fast, and how close to what the matrix products alone would take.

Enters: the command line's arguments. Leaves: a list of rows as JSON, or a Markdown table with machine and versions. The
measuring is in `decoding.py`, the floor in `floor.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.core.errors import InputError

if TYPE_CHECKING:
    from unmask.core.types import Request, Strategy
    from unmask.lab.decoding import Case, Measured
    from unmask.models.denoiser import TransformerDenoiser
    from unmask.pipeline.model import Model

CACHES, POLICY = "none,prefix,dual", "low_confidence"


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
    add(work, "--block-length", type=_whole(1, 1 << 20), default=32, metavar="N", help="places per block (default: 32)")
    words = "tokens settled per forward by policies that count steps (default: 1)"
    add(work, "--tokens-per-step", type=_whole(1, 1 << 20), default=1, metavar="N", help=words)
    words = "N requests of mixed lengths, together and one after the other"
    add(work, "--crowd", type=_whole(1, 64), default=1, metavar="N", help=words)
    compared = parser.add_argument_group("compared (every cache with every policy)")
    add(compared, "--cache", default=CACHES, metavar="LIST", help=f"comma-separated specs (default: {CACHES})")
    add(compared, "--policy", default=POLICY, metavar="LIST", help=f"comma-separated specs (default: {POLICY})")
    add(compared, "--rounds", type=_whole(1, 1000), default=5, metavar="N", help="interleaved runs (default: 5)")
    words = (
        "held-out items per task whose answers are scored beside the speed; only models trained on them have a score"
    )
    add(compared, "--items", type=_whole(0, 10_000), metavar="N", help=f"{words} (default: 20 for the embedded model)")
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
    model = _load(args)
    _check_length(args, model)
    cases = _cases(args, model)
    measured = _measure(args, model.denoiser, cases)
    rows = [_row(m, args, model) for m in measured]
    _pair_up(rows)
    _add_quality(rows, args, model)
    text = json.dumps(rows, indent=2) if args.json else _markdown(rows, args, model)
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


def _check(args: argparse.Namespace) -> None:
    """What can be refused before torch is imported."""
    from unmask.core import catalog, spec

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
    for kind in ("cache", "policy"):
        for given in _listed(getattr(args, kind), f"--{kind}"):
            catalog.find(kind, spec.split(given)[0])


def _listed(text: str, what: str) -> list[str]:
    """Specs between commas; commas inside parentheses belong to a spec."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    found = [p.strip() for p in parts]
    if not all(found):
        raise InputError(what, expected="specs between commas, such as none,dual(refresh=4)", got=repr(text))
    if len(set(found)) < len(found):
        raise InputError(what, expected="every spec once", got=repr(text))
    return found


def _load(args: argparse.Namespace) -> Model:
    """The model to measure; a named shape has random weights and no tokenizer."""
    from unmask.models.denoiser import TransformerDenoiser
    from unmask.models.family import find_family
    from unmask.models.shapes import random_model
    from unmask.pipeline.model import Model, load

    if args.shape is None:
        return load(args.model, dtype=args.dtype, device=args.device)
    weights, config = random_model(args.shape, 0, args.vocab, args.layers, args.dtype, args.device)
    family = find_family(config)
    return Model(TransformerDenoiser(weights, family.traits(config)), None, family, config, f"random {args.shape}")


def _prompt(args: argparse.Namespace, model: Model) -> list[int] | int:
    if args.prompt is None:
        return 128 if args.prompt_length is None else int(args.prompt_length)
    if model.codec is None:
        raise InputError("--prompt", expected="a model with a tokenizer", got=model.name, remedy="Use --prompt-length.")
    return model.codec.encode(args.prompt)


def _check_length(args: argparse.Namespace, model: Model) -> None:
    prompt = _prompt(args, model)
    length = (prompt if isinstance(prompt, int) else len(prompt)) + args.gen_length
    if length > model.traits.max_len:
        expected = f"at most {model.traits.max_len} places (the model's context)"
        raise InputError("prompt and --gen-length", expected=expected, got=str(length))


def _cases(args: argparse.Namespace, model: Model) -> list[Case]:
    from unmask.lab.decoding import Case

    cases = []
    for policy in _listed(args.policy, "--policy"):
        for cache in _listed(args.cache, "--cache"):
            requests = _requests(args, model, cache, policy)
            cases.append(Case(cache, policy, requests))
            if args.crowd > 1:
                cases.append(Case(cache, policy, requests, together=False))
    return cases


def _requests(args: argparse.Namespace, model: Model, cache: str, policy: str) -> tuple[Request, ...]:
    from unmask.engine.engine import sequence_of
    from unmask.lab.decoding import make_request, mixed_lengths

    prompt = _prompt(args, model)
    if args.crowd == 1:
        lengths: list[tuple[Any, int]] = [(prompt, args.gen_length)]
    elif isinstance(prompt, int):
        lengths = list(mixed_lengths(args.crowd, prompt, args.gen_length, args.block_length))
    else:
        raise InputError("--prompt", expected="--prompt-length with --crowd", got="a text")
    made = []
    for i, (given, answer) in enumerate(lengths):
        strategy = _strategy(args, model, cache, policy, answer)
        made.append(make_request(str(i), strategy, model.traits, model.vocab_size, given, answer))
        sequence_of(made[-1], model.traits)
    return tuple(made)


def _strategy(args: argparse.Namespace, model: Model, cache: str, policy: str, answer: int) -> Strategy:
    """The default profile. Random ids never mean an end: EOS is closed for them, so that the work is the same."""
    from unmask.core import catalog, spec
    from unmask.engine.options import DecodeOptions
    from unmask.engine.profiles import build

    if model.traits.mask_id is None:
        options = DecodeOptions(cache=cache)
    else:
        name, given, named = spec.split(policy)
        counts = any(f.name == "steps" for f in dataclasses.fields(catalog.load("policy", name)))
        steps = -(-answer // args.tokens_per_step) if counts and not given and "steps" not in named else None
        options = DecodeOptions(policy=policy, cache=cache, steps=steps, block_length=args.block_length)
    strategy = build(options, model.traits, model.family, answer)
    if args.prompt is not None:
        return strategy
    closed = dataclasses.replace(strategy.sampling, suppress=model.traits.eos_ids)
    return dataclasses.replace(strategy, sampling=closed)


def _measure(args: argparse.Namespace, denoiser: TransformerDenoiser, cases: Sequence[Case]) -> list[Measured]:
    from unmask.engine.clock import now
    from unmask.lab.decoding import compare
    from unmask.lab.floor import Floor

    parameters = denoiser.model.layers.named_parameters()
    matrices = [p for name, p in parameters if p.dim() == 2 and name.endswith("weight")]
    floor = Floor(matrices, denoiser.head.weight, lambda: now(denoiser.device))
    block = 1 if denoiser.traits.mask_id is None else min(args.block_length, args.gen_length)
    return compare(denoiser, floor, cases, args.rounds, block)


# ---- what is said ------------------------------------------------------------------------------------------------


def _row(m: Measured, args: argparse.Namespace, model: Model) -> dict[str, Any]:
    first, walls, prompt = m.runs[0], [r.seconds for r in m.runs], _prompt(args, model)
    calls, rows = max(1, first.model_calls), sum(f.layers for f in first.forwards)
    return {
        "model": model.name,
        "cache": m.case.cache,
        "policy": m.case.policy,
        "requests": len(m.case.requests),
        "way": "together" if m.case.together else "one after the other",
        "prompt_length": prompt if isinstance(prompt, int) else len(prompt),
        "gen_length": args.gen_length,
        "tokens": first.tokens,
        "tokens_per_s": round(first.tokens / m.median, 3),
        "nfe": first.nfe,
        "model_calls": first.model_calls,
        "tokens_per_forward": round(first.tokens / max(1, first.nfe), 3),
        "ms_per_forward": round(1e3 * m.median / calls, 3),
        "rows": rows,
        "rows_per_forward": round(rows / calls, 2),
        "head_rows": first.head_rows,
        "wall_s": round(m.median, 5),
        "wall_min_s": round(min(walls), 5),
        "wall_max_s": round(max(walls), 5),
        "cpu_s": round(sorted(r.cpu_seconds for r in m.runs)[len(m.runs) // 2], 5),
        "floor_s": round(m.floor, 5),
        "share": round(m.share, 4),
        "peak_mib": None if m.peak is None else round(m.peak / 2**20, 1),
        "rounds": len(m.runs),
        **_machine(model),
    }


def _pair_up(rows: list[dict[str, Any]]) -> None:
    """A crowd's row says how much faster it is than its requests one after the other."""
    for row, alone in pairwise(rows):
        if row["way"] == "together" and alone["way"] != "together":
            row["speedup"] = round(row["tokens_per_s"] / alone["tokens_per_s"], 3) if alone["tokens_per_s"] else None


def _add_quality(rows: list[dict[str, Any]], args: argparse.Namespace, model: Model) -> None:
    """Exact match on held-out synthetic items, all tasks together, decoded with each row's cache and policy."""
    from unmask.evals.intervals import wilson
    from unmask.evals.synthetic_eval import evaluate

    count = (20 if args.shape is None and args.model is None else 0) if args.items is None else args.items
    for row in rows if count and model.codec is not None else []:
        answer = model.recommended().gen_length
        strategy = _strategy(args, model, row["cache"], row["policy"], answer)
        options = {"policy": repr(strategy.policy), "cache": row["cache"], "max_tokens": answer}
        if model.traits.mask_id is None:
            options = {"cache": row["cache"], "max_tokens": answer}
        else:
            options["block_length"] = args.block_length
        scores = list(evaluate(model, None, count, {"": options}))
        correct, n = sum(s.correct for s in scores), sum(s.n for s in scores)
        low, high = wilson(correct, n)
        row |= {
            "items": n,
            "accuracy": round(correct / n, 4),
            "accuracy_low": round(low, 4),
            "accuracy_high": round(high, 4),
        }


def _machine(model: Model) -> dict[str, Any]:
    import torch

    from unmask.ops import attention

    device, weight = model.denoiser.device, model.denoiser.head.weight
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": device.type,
        "machine": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "kernels": attention.describe() if device.type == "cpu" else "torch",
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


COLUMNS = {
    "cache": "cache",
    "policy": "policy",
    "way": "way",
    "tokens_per_s": "tokens/s",
    "nfe": "NFE",
    "model_calls": "calls",
    "tokens_per_forward": "tokens/forward",
    "ms_per_forward": "ms/forward",
    "rows": "rows",
    "peak_mib": "peak MiB",
    "wall_s": "median s",
    "wall_min_s": "min s",
    "wall_max_s": "max s",
    "floor_s": "floor s",
    "share": "share",
    "speedup": "speed-up",
    "accuracy": "exact match",
    "accuracy_low": "95 % from",
    "accuracy_high": "to",
}


def _markdown(rows: Sequence[dict[str, Any]], args: argparse.Namespace, model: Model) -> str:
    first = rows[0]
    crowd = args.crowd > 1
    hidden = set() if crowd else {"way", "speedup"}
    hidden |= set() if "accuracy" in first else {"accuracy", "accuracy_low", "accuracy_high"}
    keys = [k for k in COLUMNS if k not in hidden]
    lines = [
        f"{model.name}, {first['dtype']}: prompt {first['prompt_length']}, answer {args.gen_length}, "
        f"blocks of {args.block_length}" + (f", {args.crowd} requests of mixed lengths" if crowd else ""),
        f"{first['machine']}, {first['cores']} cores, {first['threads']} threads; torch {first['torch']}, Python "
        f"{first['python']}, {platform.system()}; kernels: {first['kernels']}",
        f"{first['rounds']} interleaved rounds; tokens are visible ones; share = floor (bare matrix products) / wall."
        + (f" Exact match: {first['items']} held-out items over all synthetic tasks." if "items" in first else ""),
        "",
        "| " + " | ".join(COLUMNS[k] for k in keys) + " |",
        "|" + "---|" * len(keys),
    ]
    lines += ["| " + " | ".join(_cell(row.get(k)) for k in keys) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
