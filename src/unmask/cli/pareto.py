"""`unmask pareto TASK`: quality beside speed over strategies. The work lives in `unmask.evals.pareto`.

Enters: a command line. Leaves: a folder with every answer, pareto.json, pareto.md, pareto.html, pareto.png and
profile.toml, and a table on stdout.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.decoding import add_model, warn
from unmask.cli.eval_run import add_programs, limit_of
from unmask.cli.output import Notices, columns, one_line, print_json
from unmask.cli.parsing import Parser, integer
from unmask.core import catalog, spec
from unmask.core.errors import InputError
from unmask.core.spec import MOST

if TYPE_CHECKING:
    from unmask.evals.pareto import Candidate, Pareto
    from unmask.evals.runner import Setup
    from unmask.evals.runner.plan import Plan
    from unmask.pipeline import Model

DESCRIPTION = """\
Which strategy to take, and what it costs. Every strategy answers the same items, in turns; the exact one (a token per
forward, nothing stale) is always among them. Without names the grid of the kind of model is measured. One strategy is
chosen on half of the items, and what it loses is claimed only if the other half shows it."""
EXAMPLES = """\
  unmask pareto "synthetic(task='sudoku', count=100)" --model nano-llada --out runs/pareto
  unmask pareto gsm8k --model DIR --data FILE --limit 200 --policy "threshold(0.9)" --cache none --cache dual --out DIR2
  unmask pareto gsm8k --model DIR --data FILE --strategies mine.yaml --max-loss 2pt --out DIR2
  unmask pareto gsm8k --model DIR --data FILE --dry-run                the strategies and how many forwards they need
  unmask generate --model DIR --settings DIR2/profile.toml "..."       use what was chosen

a strategies file: a name, and decoding options as `unmask generate` has them
  careful: {policy: threshold(0.95), cache: prefix, block_length: 32}
  fast:    {policy: threshold(0.7), cache: dual, schedule: blocks(16)}"""


def main(argv: Sequence[str]) -> int:
    """Prints the table; 0 when all strategies are measured, whatever the verdict."""
    args = _parser().parse(argv)
    notices = Notices(args.quiet)
    _check(args)
    given = _named(args)
    from unmask.cli.session import load_model
    from unmask.engine.options import DecodeOptions
    from unmask.evals.pareto.run import plans

    model = load_model(args, DecodeOptions(), notices)
    setup = _setup(args)
    candidates = _candidates(args, model, given)
    planned = plans(model, setup, candidates, args.score)
    if args.dry_run:
        return _dry_run(args, candidates, planned)
    return _run(args, model, setup, candidates, planned, notices)


# ---- the command line ------------------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser("unmask pareto", DESCRIPTION, EXAMPLES, "unmask pareto TASK --out DIR [options]")
    parser.add_argument("task", metavar="TASK", help='a spec, see `unmask ls tasks`: gsm8k, "sudoku(empty=4)" ...')
    _add_strategies(parser)
    _add_choice(parser)
    _add_what(parser)
    _add_kept(parser)
    add_programs(parser)
    add_model(parser)
    return parser


def _add_strategies(parser: Parser) -> None:
    g = parser.add_argument_group("strategies (each option may be repeated: every value with every other)")
    for name, example in (("policy", '"threshold(0.9)"'), ("cache", "none, prefix, dual, block ..."), ("schedule", "")):
        words = f"a {name} spec" + (f": {example}" if example else ', "blocks(16)"')
        g.add_argument(f"--{name}", action="append", default=[], metavar="SPEC", help=words)
    parser.option(g, "--block-length", type=_numbers, default=(), metavar="N,N", help="the same as blocks(N)")
    g.add_argument("--strategies", metavar="FILE", help="named strategies in YAML, or TOML (.toml)")


def _add_choice(parser: Parser) -> None:
    g = parser.add_argument_group("what is looked for")
    parser.option(
        g, "--max-loss", type=_points, default=0.01, metavar="X",
        help="what you are ready to lose, in points of the score: 0.5pt (default: 1pt)",
    )  # fmt: skip
    g.add_argument(
        "--speed", default="tokens_per_s", choices=("tokens_per_s", "tokens_per_forward", "nfe", "row_layers"),
        help="what counts as fast; only the first is a time of this machine, the others are exact counts "
        "(default: tokens_per_s)",
    )  # fmt: skip
    g.add_argument("--score", metavar="NAME", help="the task's score that counts (default: the one it is known by)")


def _add_what(parser: Parser) -> None:
    g = parser.add_argument_group("what is asked")
    g.add_argument("--data", metavar="PATH", help="file or folder with the data (default: the hub, or a generator)")
    g.add_argument("--split", default="test", metavar="NAME", help="part of the data (default: test)")
    g.add_argument("--limit", type=limit_of, metavar="N", help="the first N items, or a share: 0.1, 10%%")
    form = g.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", help="use the chat template (default: if the checkpoint has one)")
    form.add_argument("--raw", action="store_true", help="use the text as it stands")
    g.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    parser.option(g, "--no-cut", flag=True, help="do not cut answers at the stop strings")
    parser.option(
        g, "--max-tokens", "-n", type=integer(1, MOST), metavar="N", help="length of an answer (default: the task's)"
    )
    g.add_argument("--batch", type=integer(1), default=8, metavar="N", help="answers decoded together (default: 8)")
    g.add_argument("--seed", type=integer(0, 2**63 - 1), default=0, metavar="N", help="of the run (default: 0)")
    parser.option(g, "--dry-run", flag=True, help="print the strategies and their forwards, and decode nothing")


def _add_kept(parser: Parser) -> None:
    g = parser.add_argument_group("what is kept and shown")
    g.add_argument("--out", "-o", metavar="DIR", help="folder of the comparison; the same line goes on in it")
    parser.option(g, "--extend", flag=True, help="go on with more items than before (a larger --limit)")
    parser.option(g, "--no-png", flag=True, help="no pareto.png (it needs matplotlib: pip install 'unmask[plot]')")
    form = g.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="the table as Markdown (default where nobody watches)")
    form.add_argument("--json", action="store_true", help="everything as JSON on stdout")
    g.add_argument("--quiet", "-q", action="store_true", help="no progress")


def _numbers(text: str) -> tuple[int, ...]:
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isascii() and p.isdigit() and 0 < int(p) <= MOST for p in parts):
        raise argparse.ArgumentTypeError(f"expected lengths such as 8,16,32, got {text!r}")
    return tuple(int(p) for p in parts)


def _points(text: str) -> float:
    """1pt, 1 point, 0.5%: a share."""
    bare = text.strip().lower()
    for unit in ("points", "point", "pts", "pt", "%"):
        if bare.endswith(unit):
            try:
                value = float(bare.removesuffix(unit)) / 100
            except ValueError:
                break
            if 0 < value < 1:
                return value
    raise argparse.ArgumentTypeError(
        f"expected points above 0 and below 100 with their unit, such as 1pt, got {text!r}"
    )


def _check(args: argparse.Namespace) -> None:
    """Everything that can be wrong before the model is read."""
    if not args.out and not args.dry_run:
        raise InputError(
            "--out", expected="a folder for the answers and the plots", got="none",
            remedy="Add --out runs/pareto; --dry-run needs none.",
        )  # fmt: skip
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("unmask pareto", expected="one process", got=f"WORLD_SIZE={os.environ['WORLD_SIZE']}")
    kind = catalog.parse("task", args.task).kind
    if kind == "code" and not args.dry_run:
        from unmask.evals.sandbox import consent

        consent(args.confirm_run_unsafe_code, os.environ)
    for axis in ("policy", "cache", "schedule"):
        for text in getattr(args, axis):
            catalog.find(axis, spec.split(text)[0])
    if args.strategies is not None and (args.policy or args.cache or args.schedule or args.block_length):
        raise InputError(
            "--strategies", expected="to stand alone", got="--policy, --cache, --schedule or --block-length beside it"
        )
    if not (args.no_png or args.dry_run):
        from unmask.evals.pareto.picture import require_matplotlib

        require_matplotlib()


def _named(args: argparse.Namespace) -> list[Candidate]:
    """Strategies of --strategies."""
    if args.strategies is None:
        return []
    from unmask.evals.pareto import read_file

    return read_file(args.strategies)


def _candidates(args: argparse.Namespace, model: Model, given: Sequence[Candidate]) -> list[Candidate]:
    from unmask.evals.pareto import combine, grid, with_baseline

    tokens = args.max_tokens or catalog.parse("task", args.task).max_tokens
    if given:
        return with_baseline(model, tokens, given)
    schedules = [*args.schedule, *(f"blocks({n})" for n in args.block_length)]
    if args.policy or args.cache or schedules:
        return combine(model, tokens, args.policy, args.cache, schedules)
    return grid(model, tokens)


def _setup(args: argparse.Namespace) -> Setup:
    from unmask.evals.runner import Setup

    same = {n: getattr(args, n) for n in ("task", "data", "split", "system", "max_tokens", "seed", "batch", "limit")}
    return Setup(
        **same,
        chat=True if args.chat else False if args.raw else None,
        cut=not args.no_cut,
        timeout=args.timeout,
        weak=args.weak_sandbox or False,
        workers=args.workers,
    )


# ---- the run ---------------------------------------------------------------------------------------------------------


def _dry_run(args: argparse.Namespace, candidates: Sequence[Candidate], planned: Sequence[Plan]) -> int:
    from unmask.evals.pareto.run import forwards

    found = [(c, p, forwards(p, c)) for c, p in zip(candidates, planned, strict=True)]
    rows: list[dict[str, Any]] = [
        {"strategy": c.label, "baseline": c.baseline, "resolved": p.strategy, "least": low, "most": high}
        for c, p, (low, high) in found
    ]
    if args.json:
        print_json(rows)
        return 0
    shown = [(r["strategy"], f"{r['least']} to {r['most']}", r["resolved"]) for r in rows]
    print(columns([("strategy", "forwards", "settings"), *shown], ""))
    first = planned[0]
    print(
        f"{len(rows)} strategies, {len(first.items)} of {len(first.data.items)} items each: "
        f"{sum(r['least'] for r in rows)} to {sum(r['most'] for r in rows)} forwards of one answer, "
        f"{args.batch} answers to a forward; an early end makes fewer"
    )
    return 0


def _run(
    args: argparse.Namespace,
    model: Model,
    setup: Setup,
    candidates: Sequence[Candidate],
    planned: Sequence[Plan],
    notices: Notices,
) -> int:
    from unmask.evals.pareto import Done, Pareto, Started, measure
    from unmask.sinks.progress import Progress

    events = measure(
        model, setup, candidates, args.out, axis=args.speed, max_loss=args.max_loss, score=args.score,
        extend=args.extend or False, planned=planned,
    )  # fmt: skip
    bar: Progress | None = None
    try:
        with ExitStack() as shown:
            for event in events:
                if isinstance(event, Started):
                    warn(notices, list(event.warnings))
                    if event.done:
                        notices.say(f"going on: {event.done} of {event.total} answers are there already")
                    if not notices.quiet and event.done < event.total:
                        label = f"{event.strategies} strategies"
                        bar = shown.enter_context(Progress(label, event.total, event.done, sys.stderr))
                elif isinstance(event, Done) and bar is not None:
                    score = "" if event.score is None else f" {event.score:.1%}"
                    bar.update(event.done, f"{one_line(event.label)}{score}")
                elif isinstance(event, Pareto):
                    shown.close()
                    _finish(args, event, notices)
    except KeyboardInterrupt:
        notices.say(f"stopped; what was finished is kept. Go on with the same line (--out {args.out})")
        raise
    return 0


def _finish(args: argparse.Namespace, found: Pareto, notices: Notices) -> None:
    from unmask.evals.pareto.files import write_files
    from unmask.evals.pareto.table import markdown

    written = write_files(found, Path(args.out), png=not args.no_png)
    if args.json:
        print_json(found.to_dict())
    elif args.markdown or not sys.stdout.isatty():
        print(markdown(found), end="")
    else:
        _draw(found)
    notices.say("written: " + ", ".join(str(p) for p in written))


def _draw(found: Pareto) -> None:
    """The table for a person at a terminal; pareto.md has more columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from unmask.evals.pareto.table import notes, short_cells, short_head

    table = Table(padding=(0, 1), pad_edge=False)
    titles = short_head(found)
    for i, title in enumerate(titles):
        table.add_column(title, justify="left" if i in (0, len(titles) - 1) else "right")
    for point in found.points:
        style = "bold" if point.label == found.verdict.label else "" if point.frontier or point.baseline else "dim"
        table.add_row(*(Text(one_line(c)) for c in short_cells(point, found)), style=style)
    console = Console(highlight=False)
    console.print(table)
    console.print(Text(found.verdict.sentence, style="bold"))
    for note in notes(found):
        console.print(Text(note, style="dim"))
