"""`unmask eval run TASK` and `unmask eval --protocol NAME`: a benchmark on a model. The work lives in
`unmask.evals.runner`.

Enters: a command line, and RANK / WORLD_SIZE / LOCAL_RANK where torchrun started several processes. Leaves: a folder
with items.jsonl, results.json and timing.json, and one line (or JSON) on stdout.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unmask.cli.decoding import add_decoding, add_model, resolve, warn
from unmask.cli.output import Notices, columns, print_json, print_text
from unmask.cli.parsing import Parser, integer, number
from unmask.cli.processes import device_of, place
from unmask.core import catalog
from unmask.core.errors import ConfigError, InputError
from unmask.engine.options import DecodeOptions

if TYPE_CHECKING:
    from unmask.evals.protocols import Protocol
    from unmask.evals.runner import Begun, Finished, Setup
    from unmask.evals.runner.plan import Plan
    from unmask.pipeline import Model

DESCRIPTION = """\
Score a model on a benchmark. Every answer becomes a record; a killed run goes on where it stood when the same line is
given again, and ends with the same files to the byte. TASK is a spec, see `unmask ls tasks`; `unmask ls protocols`
lists published evaluations that need no further options."""
EXAMPLES = """\
  unmask eval run "synthetic(task='sort', count=100)"                       the embedded model, nothing is kept
  unmask eval run gsm8k --model DIR --data FILE --limit 100 --out runs/gsm8k
  unmask eval run gsm8k --model DIR --data DIR2 --dry-run                   the first prompts and the settings
  unmask eval run humaneval --model DIR --confirm-run-unsafe-code --temperature 0.8 --n-samples 5 --pass-at 1,5
  unmask eval --protocol fast-dllm/gsm8k-5shot/dual+parallel --model DIR --data DIR2 --out DIR3 --compare
  unmask eval run gsm8k --model DIR --data DIR2 --cache dual --audit 5% --out DIR3
  torchrun --nproc-per-node 8 -m unmask eval run gsm8k --model DIR --data DIR2 --out DIR3"""
FREE = {"seed"}
"""Decoding options that a protocol leaves open."""


def main(argv: Sequence[str]) -> int:
    """Prints the score; 0 when the run is complete."""
    args = _parser().parse(argv)
    notices = Notices(args.quiet)
    _check_kept(args)
    options, tokens, warnings = resolve(args)
    protocol = _protocol(args, options)
    task = _task(args, protocol)
    rank, world = place(os.environ)
    if catalog.parse("task", task).kind == "code" and not args.dry_run:
        from unmask.evals.sandbox import consent

        consent(args.confirm_run_unsafe_code, os.environ)
    warn(notices, warnings)
    from unmask.cli.session import load_model, without_effectless

    args.device = device_of(args.device, os.environ)
    model = load_model(args, options, notices if rank == 0 else Notices(True))
    options = without_effectless(args, options, model, tokens, notices)
    setup = _setup(args, task, options, tokens, protocol)
    from unmask.evals.runner.plan import Plan

    plan = Plan(model, setup)
    if args.dry_run:
        return _dry_run(args, plan, notices)
    return _run(args, plan, notices, rank, world, protocol)


def _check_kept(args: argparse.Namespace) -> None:
    """What is said about files needs a folder for them."""
    if args.out is None:
        for name in ("extend", "samples"):
            if getattr(args, name):
                raise InputError(f"--{name}", expected="--out DIR with it", got="none")
    elif not str(args.out):
        raise InputError("--out", expected="a folder for the run", got="nothing")


# ---- the command line ------------------------------------------------------------------------------------------------


def _parser() -> Parser:
    usage = "unmask eval run TASK [options]     or     unmask eval --protocol NAME [options]"
    parser = Parser("unmask eval run", DESCRIPTION, EXAMPLES, usage)
    parser.add_argument(
        "task", nargs="?", metavar="TASK", help='a spec: gsm8k, "gsm8k(shots=0)", "sudoku(empty=4)" ...'
    )
    _add_what(parser)
    _add_kept(parser)
    _add_kinds(parser)
    add_model(parser)
    add_decoding(parser)
    return parser


def _add_what(parser: Parser) -> None:
    g = parser.add_argument_group("what is asked")
    g.add_argument("--protocol", metavar="NAME", help="a published evaluation: task, prompt form and all settings")
    g.add_argument("--data", metavar="PATH", help="file or folder with the data (default: the hub, or a generator)")
    g.add_argument("--split", default="test", metavar="NAME", help="part of the data (default: test)")
    g.add_argument("--limit", type=limit_of, metavar="N", help="the first N items, or a share: 0.1, 10%%")
    form = g.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", help="use the chat template (default: if the checkpoint has one)")
    form.add_argument("--raw", action="store_true", help="use the text as it stands")
    parser.option(g, "--system", "--system-prompt", metavar="TEXT", help="a system message before the prompt")
    parser.option(g, "--bos", flag=True, hidden=("--add_bos_token",), help="raw text begins with the tokenizer's BOS")
    parser.option(g, "--no-cut", flag=True, hidden=("--escape_until",), help="do not cut answers at the stop strings")
    parser.option(
        g, "--batch", hidden=("--batch_size", "--batch-size"), type=integer(1), metavar="N",
        help="answers decoded together (default: 8; a protocol's own)",
    )  # fmt: skip
    parser.option(g, "--dry-run", flag=True, help="print the first prompts, settings and costs, and decode nothing")


def _add_kept(parser: Parser) -> None:
    g = parser.add_argument_group("what is kept")
    parser.option(g, "--out", "-o", hidden=("--output_path",), metavar="DIR", help="folder of the run; go on in it")
    parser.option(g, "--extend", flag=True, help="go on with more items than the run in DIR had")
    parser.option(g, "--samples", hidden=("--log_samples",), flag=True, help="also write samples in lm-eval's layout")
    parser.option(
        g, "--audit", type=_share, metavar="SHARE", help="decode a share of the items again, exactly: 5%%, 0.05"
    )
    parser.option(
        g, "--audit-dtype", choices=("bf16", "fp16", "fp32"), help="audit against the model in this dtype instead"
    )
    g.add_argument("--compare", action="store_true", help="print the published figures of the protocol beside ours")
    g.add_argument("--json", action="store_true", help="the results as JSON on stdout")
    g.add_argument("--quiet", "-q", action="store_true", help="no progress")


def add_programs(parser: Parser) -> argparse._ArgumentGroup:
    """Options of the sandbox; the group, for more."""
    g = parser.add_argument_group("tasks whose answers are programs (docs/sandbox.md)")
    parser.option(g, "--confirm-run-unsafe-code", flag=True, help="your consent to run them (or HF_ALLOW_CODE_EVAL=1)")
    parser.option(g, "--weak-sandbox", flag=True, help="run them even where a protection is missing")
    g.add_argument("--timeout", type=number(above=0), default=3.0, metavar="S", help="seconds per program (default: 3)")
    g.add_argument("--workers", type=integer(1, 1024), metavar="N", help="programs at a time (default: one per core)")
    return g


def _add_kinds(parser: Parser) -> None:
    g = add_programs(parser)
    parser.option(g, "--n-samples", type=integer(1, 10_000), default=1, metavar="N", help="answers per item")
    parser.option(g, "--pass-at", type=_numbers, default=(), metavar="K,...", help="also print pass@K")
    g = parser.add_argument_group("tasks whose choices are scored by likelihood")
    g.add_argument("--method", metavar="NAME", help="as in `unmask score` (default: auto)")
    parser.option(g, "--mc-num", type=integer(1), metavar="N", help="draws of the bound (default: 128)")
    parser.option(g, "--mc-batch", type=integer(1), metavar="N", help="draws of a round (default: 16)")


def limit_of(text: str) -> int | float:
    """100, 0.1 or 10%."""
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    share = _number(text)
    if share is None or not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"expected a number of items from 1, or a share below 1 (10%), got {text!r}")
    return share


def _share(text: str) -> float:
    share = _number(text)
    if share is None or not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"expected a share such as 5% or 0.05, got {text!r}")
    return share


def _number(text: str) -> float | None:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,10, got {text!r}")
    return found


def _protocol(args: argparse.Namespace, options: DecodeOptions) -> Protocol | None:
    """The protocol named, alone: what it decides cannot be said beside it."""
    if args.protocol is None:
        if args.compare:
            raise InputError(
                "--compare", expected="--protocol beside it", got="none", remedy="See `unmask ls protocols`."
            )
        return None
    from unmask.evals.protocols import find

    found = find(args.protocol)
    own = {
        n: getattr(args, n) for n in ("task", "chat", "raw", "system", "bos", "no_cut", "method", "mc_num", "mc_batch")
    }
    given = [n for n, value in {**own, **{k: v for k, v in options.said().items() if k not in FREE}}.items() if value]
    given += ["profile"] if options.profile != "default" else []
    if given:
        raise InputError(
            f"--protocol beside {', '.join('--' + n.replace('_', '-') if n != 'task' else 'a task' for n in given)}",
            expected="the protocol's own settings",
            got="others",
            remedy=f"Leave them out, or use `unmask eval run` with the settings you want (task: {found.task}).",
        )
    return found


def _task(args: argparse.Namespace, protocol: Protocol | None) -> str:
    if protocol is not None:
        return protocol.task
    if args.task is None:
        raise InputError("task", expected="a task or --protocol", got="none", remedy="See `unmask ls tasks`.")
    return str(args.task)


def _setup(
    args: argparse.Namespace, task: str, options: DecodeOptions, tokens: int | None, protocol: Protocol | None
) -> Setup:
    from unmask.evals.likelihood import Scoring
    from unmask.evals.runner import Setup

    free: dict[str, Any] = {
        n: getattr(args, n) for n in ("data", "split", "limit", "seed", "audit", "timeout", "workers")
    }
    free |= {"n_samples": args.n_samples, "pass_at": args.pass_at, "weak": args.weak_sandbox}
    free |= {} if args.batch is None else {"batch": args.batch}
    if protocol is not None:
        return protocol.setup(**free)
    scoring = {"method": args.method, "mc_num": args.mc_num, "batch": args.mc_batch}
    if catalog.parse("task", task).kind == "choice":
        scoring["cfg_scale"], options = options.cfg_scale, replace(options, cfg_scale=None)
    elif any(v is not None for v in scoring.values()):
        raise ConfigError("--method, --mc-num, --mc-batch", expected="a task whose choices are scored", got=task)
    return Setup(
        task=task,
        chat=True if args.chat else False if args.raw else None,
        system=args.system,
        bos=args.bos or False,
        cut=not args.no_cut,
        max_tokens=tokens,
        options=options,
        scoring=Scoring(**{k: v for k, v in scoring.items() if v is not None}),
        **free,
    )


# ---- the run ---------------------------------------------------------------------------------------------------------


def _run(
    args: argparse.Namespace, plan: Plan, notices: Notices, rank: int, world: int, protocol: Protocol | None
) -> int:
    from unmask.evals.runner import Begun, Decoded, Finished, evaluate
    from unmask.sinks.progress import Progress

    events = evaluate(
        plan.model,
        plan.setup,
        args.out,
        rank=rank,
        world=world,
        extend=args.extend or False,
        samples=args.samples or False,
        audit_model=_other(args, plan),
        plan=plan,
    )
    bar: Progress | None = None
    try:
        with ExitStack() as shown:
            for event in events:
                if isinstance(event, Begun) and rank == 0:
                    _say_begun(event, plan, notices)
                    if not notices.quiet:
                        bar = shown.enter_context(Progress(plan.spec, event.total, event.done, sys.stderr))
                elif isinstance(event, Decoded) and bar is not None:
                    bar.update(event.done, "" if event.score is None else f"{plan.task.metric} {event.score:.1%}")
                elif isinstance(event, Finished) and rank == 0:
                    shown.close()
                    _print(args, event, protocol, notices)
    except KeyboardInterrupt:
        if args.out is not None:
            notices.say(f"stopped; what was finished is kept. Go on with the same line (--out {args.out})")
        raise
    return 0


def _other(args: argparse.Namespace, plan: Plan) -> Model | None:
    """The model of --audit-dtype."""
    if args.audit_dtype is None:
        return None
    if args.audit is None:
        raise InputError("--audit-dtype", expected="--audit SHARE beside it", got="none")
    from unmask.evals.runner.run import dtype_of
    from unmask.pipeline import load

    other = load(args.model, revision=args.revision, dtype=args.audit_dtype, device=args.device)
    if dtype_of(other) == dtype_of(plan.model):
        raise InputError("--audit-dtype", expected=f"another dtype than {dtype_of(other)}", got=args.audit_dtype)
    return other


def _say_begun(event: Begun, plan: Plan, notices: Notices) -> None:
    warn(notices, list(event.warnings))
    settings = ", ".join(f"{name} {value}" for name, value in plan.settings.items())
    notices.say(f"settings: {settings}" if settings else f"scoring: {plan.setup.scoring.words}")
    if event.done:
        notices.say(f"going on: {event.done} answers are there already")


def _print(args: argparse.Namespace, event: Finished, protocol: Protocol | None, notices: Notices) -> None:
    from unmask.cli.eval_show import compared, line_of

    assert event.results is not None
    if args.json:
        print_json(event.results)
    else:
        print(line_of(event.results))
    if args.compare and protocol is not None:
        print(compared(event.results, protocol, event.path), file=sys.stderr if args.json else sys.stdout)
    notices.say(f"kept in {event.path}" if event.path is not None else "nothing was kept; --out DIR keeps every answer")


def _dry_run(args: argparse.Namespace, plan: Plan, notices: Notices) -> int:
    """Prompts, settings and costs, without decoding."""
    from unmask.evals.runner.known import known_problems

    warn(notices, known_problems(plan))
    least, most = plan.forwards
    answers = len(plan.asked)
    found: dict[str, Any] = {
        "task": plan.spec,
        "kind": plan.task.kind,
        "items": f"{len(plan.items)} of {len(plan.data.items)}",
        "answers": answers,
        "data": plan.data.source,
        "data_sha256": plan.data.sha256,
        "longest_prompt": max(len(a.ids) for a in plan.asked),
        "forwards": f"{answers * least} to {answers * most} ({least} to {most} per answer; an early end makes fewer)",
        **{f"settings.{name}": value for name, value in plan.settings.items()},
        **({} if plan.settings else {"scoring": plan.setup.scoring.words}),
    }
    codec = plan.model.codec
    shown = [codec.decode(a.ids, skip_special=False) if codec is not None else str(a.ids) for a in plan.asked[:2]]
    if args.json:
        print_json({**found, "prompts": shown})
        return 0
    print(columns([(name, str(value)) for name, value in found.items()], ""))
    for number_, text in enumerate(shown, 1):
        print_text(f"\n--- prompt {number_} of {answers} ---\n{text}")
    return 0
