"""`unmask eval harness` (also `unmask eval --harness`): tasks of lm-evaluation-harness on a model. The work lives in
`unmask.evals.harness`.

Enters: a command line, ours or that of a published script (`--model llada_dist --model_args ...`), and RANK,
WORLD_SIZE, LOCAL_RANK where torchrun or accelerate started several processes. Leaves: lm-eval's table or JSON on
stdout, its files where --output-path says.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from unmask.cli.decoding import add_decoding, add_model, check_specs, resolve, warn
from unmask.cli.eval_run import limit_of
from unmask.cli.output import Notices, print_json
from unmask.cli.parsing import Parser, integer, number
from unmask.cli.processes import device_of, place
from unmask.core.errors import InputError
from unmask.engine.options import DecodeOptions

if TYPE_CHECKING:
    from unmask.evals.harness.bridge import Bridge
    from unmask.evals.harness.published import Line
    from unmask.evals.harness.run import Wanted
    from unmask.pipeline import Model

DESCRIPTION = """\
Tasks of lm-evaluation-harness (pip install 'unmask[harness]') on a model. Stop strings, lengths and templates are the
tasks' own. A launch line of LLaDA's, Dream's or Fast-dLLM's evaluation scripts works as it stands behind
`unmask eval harness`, in place of the script's name (docs/evaluation.md)."""
EXAMPLES = """\
  unmask eval harness --tasks gsm8k --num-fewshot 5 --model DIR --apply-chat-template --limit 50
  unmask eval harness --tasks my_task --include-path DIR2 --model DIR --output-path out --log-samples
  unmask eval harness --tasks arc_challenge --model DIR --mc-num 128
  unmask eval harness --tasks gsm8k --model llada_dist --model_args model_path=DIR,gen_length=256,steps=8,\\
block_length=32,use_cache=True,threshold=0.9
  torchrun --nproc-per-node 8 -m unmask eval harness --tasks gsm8k --model DIR"""
SCRIPT_NAMES = ("llada_dist", "dream", "fast_dllm_v2")
OURS = {"max_tokens", "raw", "bos", "no_cut", "method", "mc_num", "mc_batch", "error", "greedy"}
"""Options beside --model_args that a published line has no place for."""


def main(argv: Sequence[str]) -> int:
    """Prints the scores; 0 when the run is complete."""
    args = _parser().parse(argv)
    notices = Notices(args.quiet)
    from unmask.evals.harness import require

    require()
    rank, world = place(os.environ)
    line = _line(args)
    options, tokens, warnings = resolve(args)
    if line is None:
        check_specs(options)
        bridge = _bridge(args, options, tokens)
    else:
        _alone(args, options)
        bridge, warnings = line.bridge, [*warnings, *line.warnings]
    wanted = _wanted(args)
    if rank == 0:
        warn(notices, warnings)
    model = _load(args, line)
    bridge = _effective(args, model, bridge, line, notices if rank == 0 else None)
    return _run(args, model, bridge, wanted, notices, rank, world)


# ---- the command line ------------------------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser("unmask eval harness", DESCRIPTION, EXAMPLES)
    _add_tasks(parser)
    _add_form(parser)
    _add_kept(parser)
    _add_likelihood(parser)
    add_model(parser)
    add_decoding(parser)
    return parser


def _add_tasks(parser: Parser) -> None:
    g = parser.add_argument_group("what is asked")
    parser.option(g, "--tasks", nargs="+", metavar="A,B", required=True, help="tasks of lm-eval, or YAML files")
    parser.option(g, "--include-path", metavar="DIR", help="a directory with YAML tasks of your own")
    parser.option(g, "--num-fewshot", type=integer(0), metavar="N", help="worked examples (default: the task's)")
    parser.option(g, "--limit", type=limit_of, metavar="N", help="the first N documents, or a share: 0.1, 10%%")
    parser.option(
        g, "--model-args", metavar="A=1,B=2", help=f"for --model {', '.join(SCRIPT_NAMES)}: arguments of that script"
    )
    parser.option(g, "--gen-kwargs", metavar="A=1,B=2", help="generation options in place of the tasks' own")
    parser.option(
        g, "--batch", hidden=("--batch_size", "--batch-size"), type=_batch, metavar="N", help="answers decoded together"
    )


def _add_form(parser: Parser) -> None:
    g = parser.add_argument_group("prompts")
    parser.option(
        g, "--apply-chat-template", nargs="?", const="default", metavar="NAME",
        help="put prompts into the checkpoint's chat template",
    )  # fmt: skip
    parser.option(
        g, "--fewshot-as-multiturn", nargs="?", const=True, type=_yes, metavar="BOOL",
        help="worked examples as turns (default: with the chat template)",
    )  # fmt: skip
    parser.option(g, "--system-instruction", metavar="TEXT", help="a system message before the prompt")
    parser.option(g, "--bos", flag=True, hidden=("--add_bos_token",), help="raw text begins with the tokenizer's BOS")
    parser.option(g, "--no-cut", flag=True, hidden=("--escape_until",), help="do not cut answers at the stop strings")


def _add_kept(parser: Parser) -> None:
    g = parser.add_argument_group("what is kept")
    parser.option(g, "--output-path", "-o", metavar="DIR", help="lm-eval's results files")
    parser.option(g, "--log-samples", flag=True, help="its samples files too")
    parser.option(g, "--confirm-run-unsafe-code", flag=True, help="your consent to tasks that run programs")
    g.add_argument("--json", action="store_true", help="the results as JSON on stdout")
    g.add_argument("--quiet", "-q", action="store_true", help="no progress")


def _add_likelihood(parser: Parser) -> None:
    g = parser.add_argument_group("tasks that are scored by likelihood")
    g.add_argument("--method", metavar="NAME", help="as in `unmask score` (default: auto)")
    parser.option(g, "--mc-num", type=integer(1), metavar="N", help="draws of the bound (default: 128)")
    parser.option(g, "--mc-batch", type=integer(1), metavar="N", help="draws of a round (default: 16)")
    parser.option(g, "--error", type=number(above=0), metavar="E", help="draw until the error is at most E nats")
    parser.option(g, "--greedy", flag=True, help="also check whether greedy decoding writes the continuation")
    parser.option(
        g, "--published-likelihood", flag=True, help="fast_dllm_v2 only: its script's, of the first token alone"
    )


def _batch(text: str) -> int | None:
    """A number, or lm-eval's "auto", which leaves it to us."""
    return None if text.startswith("auto") else integer(1)(text)


def _yes(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "false", "0", "no"):
        return text.lower() in ("true", "1", "yes")
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def _line(args: argparse.Namespace) -> Line | None:
    """The published script's line, if this is one."""
    if args.model not in SCRIPT_NAMES or os.path.isdir(args.model):
        if args.model_args is not None:
            raise InputError(
                "--model_args", expected=f"--model {', '.join(SCRIPT_NAMES)} beside it", got=f"--model {args.model}",
                remedy="Give decoding options by name: --gen-length 256 --threshold 0.9 ...",
            )  # fmt: skip
        return None
    from unmask.evals.harness.published import parse, understood

    return understood(args.model, parse(args.model_args or ""), args.batch)


def _alone(args: argparse.Namespace, options: DecodeOptions) -> None:
    """What a published line decides cannot be said beside it."""
    given = [n for n in options.said() if n != "gen_length"] + [n for n in OURS if getattr(args, n, None)]
    given += ["profile"] if options.profile != "default" else []
    if given:
        raise InputError(
            f"--model {args.model} beside {', '.join('--' + n.replace('_', '-') for n in given)}",
            expected="the script's own options, in --model_args", got="ours",
            remedy="Use --model DIR with our options, or put them into --model_args.",
        )  # fmt: skip


def _bridge(args: argparse.Namespace, options: DecodeOptions, tokens: int | None) -> Bridge:
    from unmask.evals.harness.bridge import Bridge
    from unmask.evals.likelihood import Scoring

    said = {"method": args.method, "mc_num": args.mc_num, "batch": args.mc_batch, "error": args.error}
    scoring = Scoring(
        **{k: v for k, v in said.items() if v is not None},
        cfg_scale=options.cfg_scale or 0.0,
        greedy=args.greedy or False,
    )
    return Bridge(
        options, tokens, scoring, args.batch or 8, args.seed, not args.no_cut, args.bos or False,
    )  # fmt: skip


def _wanted(args: argparse.Namespace) -> Wanted:
    from unmask.evals.harness.run import Wanted
    from unmask.evals.sandbox import consent

    if args.apply_chat_template not in (None, "default"):
        raise InputError("--apply-chat-template", expected="no name, or default", got=args.apply_chat_template)
    if args.log_samples and args.output_path is None:
        raise InputError("--log-samples", expected="--output-path DIR beside it", got="none")
    odd = [part for part in (args.gen_kwargs or "").split(",") if part and "=" not in part]
    if odd:
        raise InputError("--gen-kwargs", expected="name=value,name=value", got=odd[0])
    agreed = bool(args.confirm_run_unsafe_code) or os.environ.get("HF_ALLOW_CODE_EVAL") == "1"
    if agreed:
        consent(True, os.environ)
    return Wanted(
        tasks=[t for word in args.tasks for t in word.split(",") if t],
        include=args.include_path,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        chat=args.apply_chat_template is not None,
        multiturn=args.fewshot_as_multiturn,
        system=args.system_instruction,
        gen_kwargs=args.gen_kwargs,
        unsafe=agreed,
        samples=args.log_samples or False,
        output=args.output_path,
    )


# ---- the model -------------------------------------------------------------------------------------------------------


def _load(args: argparse.Namespace, line: Line | None) -> Model:
    from unmask.pipeline import load

    source, dtype, device = args.model, args.dtype, args.device
    if line is not None:
        source = line.source
        dtype = line.dtype if dtype == "auto" else dtype
        device = line.device if device == "auto" else device
    return load(source, revision=args.revision, dtype=dtype, device=device_of(device, os.environ))


def _effective(
    args: argparse.Namespace, model: Model, bridge: Bridge, line: Line | None, notices: Notices | None
) -> Bridge:
    """The bridge without what has no effect in a published line: said once each, and dropped."""
    if args.published_likelihood:
        if line is None or args.model != "fast_dllm_v2":
            raise InputError("--published-likelihood", expected="--model fast_dllm_v2", got=f"--model {args.model}")
        bridge = dataclasses.replace(bridge, first_token=True)
    if line is None and not args.published:
        return bridge
    from unmask.engine.profiles import ignored

    names = ignored(bridge.options, model.traits, model.kind.model_type, bridge.max_tokens or 256)
    said = args.spelled if line is None else line.said
    for name in names:
        if name in said and notices is not None:
            notices.warn(f"{said[name]} has no effect with the other options, as in the published script")
    nothing: dict[str, Any] = dict.fromkeys(names)
    return dataclasses.replace(bridge, options=dataclasses.replace(bridge.options, **nothing))


# ---- the run ---------------------------------------------------------------------------------------------------------


def _run(
    args: argparse.Namespace, model: Model, bridge: Bridge, wanted: Wanted, notices: Notices, rank: int, world: int
) -> int:
    from unmask.evals.harness.model import HarnessModel
    from unmask.evals.harness.processes import Processes
    from unmask.evals.harness.run import run
    from unmask.sinks.progress import Progress

    warn_one = notices.warn if rank == 0 else _silent
    processes = Processes(rank, world)
    with ExitStack() as stack:
        stack.callback(processes.close)
        bar: list[Progress] = []

        def shown(done: int, total: int) -> None:
            if not bar or bar[0].total != total:
                bar[:] = [stack.enter_context(Progress("requests", total, 0, sys.stderr))]
            bar[0].update(done)

        lm = HarnessModel(model, bridge, processes, warn_one, None if args.quiet or rank else shown)
        results = run(lm, wanted)
    if results is not None:
        _print(args, lm.spent, results, notices)
    return 0


def _silent(text: str) -> None:
    """Process 0 says it."""


def _print(args: argparse.Namespace, spent: dict[str, Any], results: dict[str, Any], notices: Notices) -> None:
    from unmask.evals.harness.run import tables

    own = {k: v for k, v in results.items() if k != "samples"}
    if args.json:
        print_json(own | {"spent": spent})
    else:
        print(tables(own))
    if spent["nfe"]:
        speed = spent["tokens"] / spent["seconds"] if spent["seconds"] else 0.0
        notices.say(
            f"{spent['tokens']} visible tokens, {spent['nfe']} forwards, {spent['seconds']:.1f} s of decoding: "
            f"{speed:.1f} tokens/s"
        )
