"""`unmask score`: how likely a model finds an answer. The scoring itself lives in `unmask.evals.likelihood`."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unmask.cli.decoding import add_model
from unmask.cli.inputs import need_file
from unmask.cli.output import Notices, columns, one_line, print_json
from unmask.cli.parsing import Parser, integer, number
from unmask.core.errors import RequestError
from unmask.core.versions import versions
from unmask.sinks.files import check_writable

if TYPE_CHECKING:
    from unmask.evals.likelihood import Scoring
    from unmask.evals.likelihood.file import Item, Record
    from unmask.pipeline import Model

DESCRIPTION = """\
The log-probability of an answer, given its prompt: of one pair (--prompt, --answer) or of a file of pairs.

An autoregressive model gives log p exactly, in one forward. A masked diffusion model gives a bound: the answer is
partly masked at random, again and again; the mean over these draws comes with a standard error. On a block-diffusion
model the bound is the sum over its blocks. --error asks for draws until the standard error is small enough. The table
says for every row which kind of value it is; values of different kinds do not compare.

methods (--method):
  auto           exact for autoregressive models, else bound
  exact          the chain rule (autoregressive models)
  bound          Monte-Carlo bound, unbiased
  all_masks      the bound without noise, from every set of masks (up to 12 tokens per answer or block)
  left_to_right  log p of writing one token after the other from the left; no noise
  llada, dream   the published estimates to the letter (llada's rounding prefers even counts)
  strategy       what a decoding strategy gives (--policy, --schedule, --cache; else the checkpoint's own)"""
EXAMPLES = """\
  unmask score --prompt "Copy: red blue green" --answer "red blue green"
  unmask score --model nano-ar --input pairs.jsonl                        exact
  unmask score --model nano-llada --input pairs.jsonl --error 0.05        draw until the error is 0.05 nats
  unmask score --model GSAI-ML/LLaDA-8B-Base --raw --method llada --mc-num 128 --batch 16 --input pairs.jsonl
  unmask score --input pairs.jsonl --out scores.jsonl                     can be stopped and started again
  echo '{"prompt": "Reverse: a b", "answer": "b a"}' > pairs.jsonl        a line of such a file"""
METHODS = ("auto", "exact", "bound", "all_masks", "left_to_right", "llada", "dream", "strategy")
SHOWN = 40
"""Rows of the table; --json and --out have them all."""


def main(argv: Sequence[str]) -> int:
    """Prints one row per pair; 0 when all were scored."""
    args = _parser().parse(argv)
    notices = Notices(args.quiet)
    if args.out is not None:
        check_writable(args.out, "--out")
    _check(args)
    items = _items(args)
    from unmask.evals.likelihood import Scoring

    names = ("mc_num", "batch", "error", "seed", "cfg_scale", "greedy")
    scoring = Scoring.of({"method": _method(args)} | {n: v for n in names if (v := getattr(args, n)) is not None})
    records = _run(args, items, scoring, notices)
    missed = [r for r in records if scoring.error is not None and r["error"] and r["error"] > scoring.error]
    if missed:
        notices.warn(
            f"{len(missed)} of {len(records)} pairs did not reach the error of {scoring.error:g} nats with "
            f"{scoring.draws} draws; raise --mc-num"
        )
    if args.json:
        print_json(records[0] if args.input is None else records)
    else:
        _print(records)
    return 0


def _parser() -> Parser:
    parser = Parser("unmask score", DESCRIPTION, EXAMPLES, usage="unmask score --input PAIRS.jsonl [options]")
    g = parser.add_argument_group("pairs")
    g.add_argument("--input", "-i", metavar="FILE", help='JSON lines {"prompt": ..., "answer": ...}, optional "id"')
    g.add_argument("--prompt", "-p", metavar="TEXT", help="one prompt (with --answer)")
    g.add_argument("--answer", "-a", metavar="TEXT", help="its answer")
    form = g.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", help="use the chat template (default: if the checkpoint has one)")
    form.add_argument("--raw", action="store_true", help="use the texts as they stand")
    add_model(parser)
    g = parser.add_argument_group("value")
    g.add_argument("--method", default="auto", choices=METHODS, help="see above (default: auto)")
    parser.option(
        g, "--mc-num", type=integer(1), metavar="N", help="draws in all (default: 128; with --error at most, 8192)"
    )
    g.add_argument(
        "--batch",
        type=integer(1),
        default=16,
        metavar="B",
        help="draws of a round, which divide --mc-num (default: 16)",
    )
    g.add_argument("--error", type=number(above=0), metavar="E", help="stop at this standard error, in nats")
    g.add_argument("--seed", type=integer(0), default=0, metavar="S", help="of the noise (default: 0)")
    parser.option(g, "--cfg-scale", hidden=("--cfg",), type=number(0), metavar="W", help="guidance, 0 is off (default)")
    parser.option(
        g, "--greedy", flag=True, default=False, help="also say whether greedy decoding writes exactly this answer"
    )
    for name, meaning in (("policy", "order"), ("schedule", "blocks"), ("cache", "cache")):
        g.add_argument(f"--{name}", metavar="SPEC", help=f"score under this decoding strategy: its {meaning}")
    g = parser.add_argument_group("output")
    g.add_argument("--json", action="store_true", help="records as JSON on stdout")
    g.add_argument("--out", "-o", metavar="FILE", help="records as JSON lines; a run that was stopped goes on here")
    g.add_argument("--quiet", "-q", action="store_true", help="say nothing but the result")
    return parser


def _check(args: argparse.Namespace) -> None:
    """What can be wrong before any file or model is read."""
    one = args.prompt is not None or args.answer is not None
    if one == (args.input is not None) or (one and None in (args.prompt, args.answer)):
        remedy = 'Give --prompt "..." --answer "...", or --input pairs.jsonl.'
        raise RequestError("pairs", expected="--prompt with --answer, or --input", remedy=remedy)
    if args.input is not None:
        need_file(args.input, "--input ", "a file of JSON lines", "Its lines: see `unmask score --help`.")
    specs = [n for n in ("policy", "schedule", "cache") if getattr(args, n) is not None]
    if specs and args.method not in ("auto", "strategy"):
        raise RequestError(
            f"--{specs[0]} with --method {args.method}",
            expected="--method strategy (the other methods compute every canvas anew: no cache or order has a meaning)",
            got=args.method,
        )


def _method(args: argparse.Namespace) -> str:
    asked = any(v is not None for v in (args.policy, args.schedule, args.cache))
    return "strategy" if asked else str(args.method)


def _items(args: argparse.Namespace) -> list[Item]:
    from unmask.evals.likelihood.file import Item, read_items

    return read_items(args.input) if args.input is not None else [Item("1", args.prompt, args.answer)]


# ---- the run ---------------------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace, items: list[Item], scoring: Scoring, notices: Notices) -> list[Record]:
    from unmask.cli.session import load_model
    from unmask.engine.options import DecodeOptions
    from unmask.evals.likelihood.file import ScoresFile, run

    options = DecodeOptions(policy=args.policy, schedule=args.schedule, cache=args.cache)
    model = load_model(args, options, notices)
    chat = True if args.chat else False if args.raw else model.has_chat
    _warn(model, scoring, notices)
    notices.say(f"{len(items)} pair{'s' * (len(items) > 1)}, {'chat template' if chat else 'raw text'}")
    scorer = _Scorer(model, scoring, replace(options, temperature=0.0), chat)
    scorer.check(items)
    out = ScoresFile(args.out, scorer.settings(options), items) if args.out is not None else None
    if out is not None and out.found:
        notices.say(f"{out.found} of {len(items)} pairs are done already in {args.out}")
    before = 0 if out is None else out.found
    bar = _Bar(len(items), before) if len(items) > 1 and sys.stderr.isatty() and not args.quiet else None
    try:
        return run(items, scorer, out, bar)
    finally:
        if bar is not None:
            bar.close()


def _warn(model: Model, scoring: Scoring, notices: Notices) -> None:
    from unmask.models.llada import NO_LIKELIHOOD

    if NO_LIKELIHOOD in model.recommended().known_issues and scoring.method != "strategy":
        notices.warn(NO_LIKELIHOOD)


class _Scorer:
    """Items into records."""

    def __init__(self, model: Model, scoring: Scoring, options: Any, chat: bool) -> None:
        self.model, self.scoring, self.options, self.chat = model, scoring, options, chat

    def settings(self, options: Any) -> dict[str, Any]:
        """What must be equal for scores to stand in one file, and the versions, which are told only."""
        from dataclasses import asdict

        from unmask.evals.runner.environment import model_sha256

        weight = self.model.denoiser.head.weight
        return {
            "model": self.model.name,
            "model_sha256": model_sha256(self.model),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
            "chat": self.chat,
            "strategy": {k: str(v) for k, v in options.said().items()},
            "scoring": asdict(self.scoring),
            "versions": versions(),
        }

    def check(self, items: Sequence[Item]) -> None:
        """Every pair becomes ids and is laid out once, so that a bad one is refused before any work."""
        from unmask.evals.likelihood import lay_out
        from unmask.evals.likelihood.score import resolve_method

        traits, vocab = self.model.traits, self.model.vocab_size
        method = self.scoring.method
        if method != "strategy":
            method = resolve_method(self.scoring, traits)
        for item in items:
            try:
                lay_out(traits, *self._ids(item), vocab, method)
            except RequestError as error:
                raise RequestError(
                    f"pair {item.id}: {error.what}", expected=error.expected, got=error.got, remedy=error.remedy
                ) from None

    def __call__(self, items: Sequence[Item]) -> list[Record]:
        from unmask.evals.likelihood import log_likelihood, log_likelihoods

        pairs = [self._ids(item) for item in items]
        if self.scoring.method == "strategy":
            found = [
                log_likelihood(self.model, p, a, scoring=self.scoring, strategy=self._strategy(len(a)))
                for p, a in pairs
            ]
        else:
            found = log_likelihoods(self.model, pairs, scoring=self.scoring)
        return [
            {"id": item.id, "prompt": item.prompt, "answer": item.answer, **one.to_dict()}
            for item, one in zip(items, found, strict=True)
        ]

    def _ids(self, item: Item) -> tuple[list[int], list[int]]:
        from unmask.evals.likelihood.text import encode_pair

        return encode_pair(self.model, item.prompt, item.answer, self.chat)

    def _strategy(self, length: int) -> Any:
        from unmask.pipeline.settings import GIVEN, resolve

        model = self.model
        advice = model.recommended(length, self.chat)
        return resolve(self.options, advice, model.traits, model.kind.model_type, length, GIVEN).strategy


# ---- what is shown ---------------------------------------------------------------------------------------------------


class _Bar:
    """One line on stderr: how far, how long, how long still."""

    def __init__(self, total: int, before: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.before, self.clock, self.begun = total, before, clock, clock()

    def __call__(self, done: int) -> None:
        seconds = self.clock() - self.begun
        rate = (done - self.before) / seconds if seconds > 0 else 0.0
        left = f", about {(self.total - done) / rate:.0f} s left" if rate and done < self.total else ""
        full = 30 * done // self.total
        bar = "#" * full + "." * (30 - full)
        print(f"\r\033[K[{bar}] {done}/{self.total} pairs, {seconds:.0f} s{left}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the line empty."""
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _print(records: Sequence[Record]) -> None:
    head = ("pair", "log p", "± error", "bits/token", "perplexity", "tokens", "kind", "answer")
    rows = [_row(r) for r in records[:SHOWN]]
    print(columns([head, *rows], ""))
    if len(records) > SHOWN:
        print(f"... and {len(records) - SHOWN} more (--json or --out have them all)")
    if len(records) > 1:
        print(_total(records))


def _row(r: Record) -> tuple[str, ...]:
    greedy = {None: "", True: ", greedy", False: ", not greedy"}[r["greedy"]]
    return (
        one_line(r["id"])[:24],
        f"{r['value']:.4f}",
        _error(r),
        _number(r["bits_per_token"], ".3f"),
        _number(r["perplexity"], ".4g"),
        str(r["tokens"]),
        kind(r) + greedy,
        one_line(r["answer"])[:40],
    )


def _error(r: Record) -> str:
    return "0" if r["error"] == 0 else "unknown (one round)" if r["error"] is None else f"{r['error']:.2g}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def kind(r: Record) -> str:
    """What sort of value a record holds, in a word or two."""
    if r["method"] == "strategy":
        return "strategy, approximate cache" if r["approximate"] else "strategy"
    if r["method"] == "left_to_right":
        return "left to right"
    if r["method"] == "all_masks" and not r["exact"]:
        return "bound, all masks"
    return "exact" if r["exact"] else "bound" if r["method"] == "bound" else f"bound ({r['method']})"


def _total(records: Sequence[Record]) -> str:
    total, tokens = math.fsum(r["value"] for r in records), sum(r["tokens"] for r in records)
    errors = [r["error"] for r in records]
    error = "" if None in errors or not any(errors) else f" ± {math.sqrt(math.fsum(e * e for e in errors)):.2g}"
    bits = f", {-total / tokens / math.log(2):.3f} bits per token" if tokens else ""
    return f"{len(records)} pairs, {tokens} tokens: log p {total:.4f}{error}{bits}"
