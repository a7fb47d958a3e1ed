"""`unmask eval synthetic`: scores a model on the held-out tasks. The scoring itself lives in `unmask.evals`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unmask.cli.eval_harness import main as harness
from unmask.cli.eval_run import main as run
from unmask.cli.eval_show import main as show
from unmask.cli.nested import choose
from unmask.cli.output import print_json
from unmask.cli.parsing import Parser, integer
from unmask.cli.postprocess import main as postprocess

if TYPE_CHECKING:
    from unmask.evals.synthetic_eval import Score

EXAMPLES = """\
  unmask eval synthetic                                 the embedded model, as on its card: 500 items per task
  unmask eval synthetic --policy "threshold(0.9)"       several tokens per step
  unmask eval synthetic --count 100 --grid              accuracy against speed: policies times caches
  unmask eval synthetic --model nano-llada --cache dual --tasks sort,sudoku
  unmask eval synthetic --model ./my-checkpoint --json"""


def main(argv: Sequence[str]) -> int:
    """Runs the evaluation that is named."""
    actions = {
        "run": ("a benchmark on a model (also: unmask eval --protocol NAME)", run),
        "show": ("finished runs as a table", show),
        "harness": ("tasks of lm-evaluation-harness (also: unmask eval --harness)", harness),
        "synthetic": ("the held-out tasks of the embedded models", synthetic),
        "postprocess": ("HumanEval samples of lm-eval, cleaned and run in the sandbox", postprocess),
    }
    if argv and argv[0].split("=")[0] == "--protocol":
        return run(argv)
    if argv and argv[0] == "--harness":
        return harness(argv[1:])
    return choose("unmask eval", argv, actions)


def synthetic(argv: Sequence[str]) -> int:
    """`unmask eval synthetic`."""
    parser = Parser(
        "unmask eval synthetic",
        "Exact match on held-out items of every synthetic task, with 95 % intervals, beside its cost.",
        EXAMPLES,
    )
    parser.add_argument("--model", metavar="DIR", help="a checkpoint or an embedded model (default: nano)")
    parser.add_argument("--tasks", metavar="A,B", help="tasks to score (default: all)")
    parser.add_argument("--count", type=integer(1), default=500, help="held-out items per task (default: 500)")
    parser.add_argument("--policy", help="a policy spec (default: one token per step)")
    parser.add_argument("--cache", help="a cache spec (default: none; block on block models, which is exact)")
    parser.add_argument("--block-length", type=integer(1), help="positions per block (default: the checkpoint's)")
    parser.add_argument(
        "--grid", action="store_true", help="one token per step, thresholds and factors, times the caches"
    )
    parser.add_argument("--crowd", type=integer(1), default=32, help="answers decoded at the same time (default: 32)")
    parser.add_argument("--threads", type=integer(1, 1024), help="CPU threads (default: torch's)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bf16", "fp16", "fp32"), help="default: auto")
    parser.add_argument("--json", action="store_true", help="a JSON list on stdout")
    return _run(parser.parse(argv))


def _run(args: argparse.Namespace) -> int:
    import torch

    from unmask.core.errors import ConfigError
    from unmask.evals.synthetic_eval import evaluate, grid, strategy
    from unmask.pipeline import load

    if args.grid and (args.policy is not None or args.cache is not None):
        raise ConfigError("--grid", expected="to stand alone", got="--policy or --cache beside it")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model = load(args.model, slots=args.crowd, dtype=args.dtype)
    strategies = grid(model) if args.grid else strategy(model, args.policy, args.cache)
    if args.block_length is not None:
        strategies = {k: {**v, "schedule": f"blocks({args.block_length})"} for k, v in strategies.items()}
    tasks = [t.strip() for t in args.tasks.split(",")] if args.tasks is not None else None
    scores = []
    for score in evaluate(model, tasks, args.count, strategies):
        scores.append(score)
        print(f"{score.task}, {score.strategy}: {score.accuracy:.1%}", file=sys.stderr, flush=True)
    if args.json:
        print_json([s.to_dict() for s in scores])
    else:
        print(_by_strategy(scores) if args.grid else _by_task(scores))
    return 0


def _by_task(scores: Sequence[Score]) -> str:
    lines = [
        "| task | strategy | items | exact match | 95 % interval | forwards | tokens per forward | tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for s in scores:
        lines.append(
            f"| {s.task} | {s.strategy} | {s.n} | {s.accuracy:.1%} | {s.low:.1%} to {s.high:.1%} "
            f"| {s.nfe:.1f} | {s.tokens_per_forward:.2f} | {s.tokens_per_s:.0f} |"
        )
    return "\n".join(lines)


def _by_strategy(scores: Sequence[Score]) -> str:
    """One row per strategy: accuracy per task, then the means over the tasks."""
    tasks = list(dict.fromkeys(s.task for s in scores))
    lines = [
        f"| strategy | {' | '.join(tasks)} | mean | forwards | tokens per forward | rows x layers | tokens/s |",
        "|---" * (len(tasks) + 6) + "|",
    ]
    for strategy in dict.fromkeys(s.strategy for s in scores):
        own = {s.task: s for s in scores if s.strategy == strategy}
        cells = " | ".join(f"{own[t].accuracy:.1%}" for t in tasks)
        n = len(own)
        mean, nfe = sum(s.accuracy for s in own.values()) / n, sum(s.nfe for s in own.values()) / n
        per_forward = sum(s.tokens for s in own.values()) / sum(s.nfe for s in own.values())
        rows = sum(s.row_layers for s in own.values()) / n
        speed = sum(s.tokens for s in own.values()) / sum(s.tokens / s.tokens_per_s for s in own.values())
        lines.append(
            f"| {strategy} | {cells} | {mean:.1%} | {nfe:.1f} | {per_forward:.2f} | {rows:.0f} | {speed:.0f} |"
        )
    return "\n".join(lines)
