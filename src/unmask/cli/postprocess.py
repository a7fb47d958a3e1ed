"""`unmask eval postprocess`: scores a HumanEval samples file of lm-eval; `unmask.evals.postprocess` does the work."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unmask.cli.output import Notices, columns, one_line, print_json
from unmask.cli.parsing import Parser, integer, number

if TYPE_CHECKING:
    from unmask.evals.postprocess import Cleaned

EXAMPLES = """\
  unmask eval postprocess out/samples_humaneval.jsonl --confirm-run-unsafe-code
  unmask eval postprocess samples.jsonl --confirm-run-unsafe-code --json     one JSON object
  unmask ls sandbox                                                          what protects you here"""


RULES = ("published", "fixed")


def main(argv: Sequence[str]) -> int:
    """Prints pass@1; exit code 0 whatever the score."""
    parser = Parser(
        "unmask eval postprocess",
        "Clean the answers of a HumanEval samples file as the published scripts do, run them with their tests in the\n"
        "sandbox, write FILE.cleaned, print pass@1 with its 95 % interval.",
        EXAMPLES,
    )
    parser.add_argument("file", metavar="SAMPLES.jsonl", help="written by lm-eval with --log_samples")
    code = parser.add_argument_group("running code that a model wrote (docs/sandbox.md)")
    parser.option(code, "--confirm-run-unsafe-code", flag=True, help="your consent (or HF_ALLOW_CODE_EVAL=1)")
    parser.option(code, "--weak-sandbox", flag=True, help="run even where a protection is missing; it is named")
    code.add_argument("--timeout", type=number(above=0), default=3.0, help="seconds per program (default: 3)")
    code.add_argument("--workers", type=integer(1, 1024), help="programs at a time (default: one per core)")
    parser.add_argument(
        "--rules",
        choices=RULES,
        default=RULES[0],
        help="how answers are cleaned: as published (default), or with its"
        " defects fixed: helpers stay that the tests call, that return nothing, or that are used before a dot",
    )
    parser.add_argument("--failures", action="store_true", help="list the tasks that did not pass, and why")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse(argv)

    from unmask.evals.postprocess import failures, postprocess
    from unmask.evals.sandbox import consent, require

    consent(bool(args.confirm_run_unsafe_code), os.environ)
    notices = Notices()
    for name, reason in require(bool(args.weak_sandbox)).items():
        notices.warn(f"sandbox without {name} ({reason})")
    report = postprocess(
        args.file,
        timeout=args.timeout,
        workers=args.workers,
        weak=bool(args.weak_sandbox),
        rules=args.rules,
        progress=_progress if sys.stderr.isatty() else None,
    )
    for task, names in report.dropped.items():
        notices.warn(f"{task}: the published cleaning drops {', '.join(names)}, which its tests call (--rules fixed)")
    if args.json:
        print_json({**report.to_dict(), "failures": dict(failures(report.rows))})
        return 0
    print(f"pass@1: {report.score.value:.1%} (95 % interval {report.score.low:.1%} to {report.score.high:.1%})")
    print(f"samples: {len(report.rows)}, {', '.join(f'{n} {s}' for s, n in report.to_dict()['ends'].items())}")
    print(f"written: {report.cleaned}")
    if args.failures:
        print(columns([(task, one_line(why)) for task, why in failures(report.rows)]))
    return 0


def _progress(row: Cleaned, done: int, total: int) -> None:
    print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
