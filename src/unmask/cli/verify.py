"""`unmask verify DIR`: replays recorded outputs of the reference implementations; `--real DIR` checks real weights
instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unmask.cli.output import columns, print_json
from unmask.cli.parsing import Parser
from unmask.core.errors import InputError

if TYPE_CHECKING:
    from unmask.evals.verify import CaseResult, Report

EXAMPLES = """\
  unmask verify fixtures/llada           every recorded case below this folder
  unmask verify fixtures --json          the same, for a script
  unmask verify --real ./LLaDA-8B        memory, tokenizer, template and golden prompts of real weights"""
SHOWN = 20
"""Failures printed in full; --json has them all."""


def main(argv: Sequence[str]) -> int:
    """0: every case passed; 1: some failed; 2: no case, or an unknown kind or reference."""
    parser = Parser(
        "unmask verify",
        "Replay recorded cases of the reference implementations: token ids and forwards exactly, logits within 2e-3.\n"
        "Exit code 1 if any case fails, 2 if there is none or one of an unknown kind.",
        EXAMPLES,
    )
    parser.add_argument("dir", nargs="?", metavar="DIR", help="a folder with cases.json files anywhere below it")
    parser.add_argument("--real", metavar="MODEL_DIR", help="check a real checkpoint and print a report to send back")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse(argv)
    if (args.dir is None) == (args.real is None) or "" in (args.dir, args.real):
        raise InputError(
            "verify", expected="a folder of cases, or --real MODEL_DIR", remedy="See `unmask verify --help`."
        )
    return _real(args) if args.real is not None else _cases(args)


def _cases(args: argparse.Namespace) -> int:
    from unmask.evals.verify import verify_dir

    report = verify_dir(args.dir, _progress if sys.stderr.isatty() else None)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if args.json:
        print_json(report.to_dict())
    else:
        _print(report)
    return 1 if report.failed or not report.results else 0


def _progress(result: CaseResult, number: int, total: int) -> None:
    print(f"\r{number}/{total}", end="", file=sys.stderr, flush=True)


def _print(report: Report) -> None:
    print(columns([(kind, f"{ok:>4} of {n:>4} passed") for kind, (ok, n) in report.by_kind().items()], ""))
    error = report.largest_logit_error
    print(f"largest logit error: {'no logit case' if error is None else f'{error:.2e}'}")
    for r in report.failed[:SHOWN]:
        print(f"FAILED {r.folder} {r.id} ({r.kind}): {r.detail}")
    if len(report.failed) > SHOWN:
        print(f"... and {len(report.failed) - SHOWN} more failures (--json lists all)")
    print(f"{len(report.results) - len(report.failed)} passed, {len(report.failed)} failed")


def _real(args: argparse.Namespace) -> int:
    from unmask.evals.verify_real import verify_real

    report = verify_real(args.real, _notice)
    if args.json:
        print_json(report)
    else:
        for name, value in report.items():
            print(f"{name}: {value}")
    return 0 if report.get("passed", True) else 1


def _notice(text: str) -> None:
    print(f"verify: {text}", file=sys.stderr, flush=True)
