"""`unmask generate`: text for one prompt or many. Everything that can be wrong is found before the model is loaded."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.decoding import add_decoding, add_model, resolve, warn
from unmask.cli.inputs import add_prompts, read_prompts
from unmask.cli.output import Notices, print_json, print_text
from unmask.cli.parsing import Parser, integer, number
from unmask.cli.pictures import add_colours, check_colours
from unmask.core.errors import RequestError
from unmask.core.events import Event
from unmask.sinks.files import WholeFile, check_writable

if TYPE_CHECKING:
    from unmask.core.protocols import Sink
    from unmask.pipeline import Generation, Model
    from unmask.pipeline.request import Prepared
    from unmask.sinks.metrics import Metrics

DESCRIPTION = """\
Write text for a prompt. Without --model the small model inside this package answers. Settings that are not given come
from the checkpoint's own recommendation and are printed. The text goes to stdout, everything else to stderr."""
EXAMPLES = """\
  unmask generate "Tell a story about Bob the rabbit, a kite and a farm." --show
  echo "Copy: red blue green" | unmask generate --json
  unmask generate --model ./LLaDA-8B-Instruct --cache dual --threshold 0.9 "Why is the sky blue?"
  unmask generate --model ./Dream-7B --steps 64 --temperature 0.2 --top-p 0.95 --prompt-file question.txt
  unmask generate "Write a line." --constraint "3:apple, 7:pear"     words at fixed places of the answer
  unmask generate --infill "Lily had[[4]] and gave[[6]] away."       free tokens between fixed words
  unmask generate "Reverse: a b c" --record run.jsonl --svg run.svg  keep the run, and a picture of it"""


def main(argv: Sequence[str]) -> int:
    """Prints the answers; 0 when all were written."""
    args = _parser().parse(argv)
    args.prog = "unmask generate"
    notices = Notices(args.quiet)
    options, tokens, warnings = resolve(args)
    for flag in ("record", "svg"):
        if getattr(args, flag) is not None:
            check_writable(getattr(args, flag), f"--{flag}")
    if args.record is not None and args.svg is not None and Path(args.record).resolve() == Path(args.svg).resolve():
        raise RequestError("--record and --svg", expected="two different files", got=args.svg)
    prompts, chat = _prompts(args)
    _check_given(args)
    warn(notices, warnings)
    from unmask.cli.session import load_model, say_settings, without_effectless

    model = load_model(args, options, notices)
    options = without_effectless(args, options, model, tokens, notices)
    prepared = model.prepare(
        prompts,
        chat=chat,
        system=args.system,
        max_tokens=tokens,
        seed=args.seed,
        samples=args.n,
        stop=tuple(args.stop),
        constraints=args.constraint or "",
        template=args.infill,
        options=options,
    )
    say_settings(prepared, notices)
    if args.infill is not None or args.constraint:
        _say_who_sees_it(model, notices)
    _run(args, model, prompts, prepared, notices)
    return 0


def _say_who_sees_it(model: Model, notices: Notices) -> None:
    """Given text on a model that reads left to right, by blocks or tokens."""
    from unmask.core.types import BlockCausal

    if isinstance(model.traits.attention, BlockCausal):
        notices.say(
            "given text is not seen by the blocks before it on this model; --model nano-llada (or another model with "
            "full attention) sees all of it"
        )


def _parser() -> Parser:
    parser = Parser("unmask generate", DESCRIPTION, EXAMPLES, usage="unmask generate [PROMPT ...] [options]")
    add_prompts(parser)
    g = parser.add_argument_group("form of the prompt and the answer")
    form = g.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", help="use the chat template (default: if the checkpoint has one)")
    form.add_argument("--raw", action="store_true", help="use the text as it stands")
    parser.option(g, "--system", "--system-prompt", metavar="TEXT", help="a system message before the prompt")
    parser.option(
        g,
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer before this text; may be repeated",
    )
    parser.option(
        g, "--constraint", "--constraints", metavar="P:W,...", help='fix words in the answer: "3:apple, 7:pear"'
    )
    parser.option(g, "--infill", metavar="TEMPLATE", help='the answer as text with free spans: "The [[4]] sat."')
    parser.option(
        g, "--n", type=integer(1, 10_000), default=1, metavar="K", help="answers per prompt, seeds SEED, SEED+1 ..."
    )
    add_model(parser)
    add_decoding(parser)
    _add_output(parser)
    return parser


def _add_output(parser: Parser) -> None:
    g = parser.add_argument_group("output")
    g.add_argument("--show", action="store_true", help="draw the canvas as it settles (on stderr)")
    parser.option(g, "--delay", type=number(0, 10), metavar="S", help="seconds between two drawings (default: 0.03)")
    g.add_argument(
        "--json", action="store_true", help="an object (a list for several answers) with text, counts and tokens"
    )
    g.add_argument("--record", metavar="FILE", help="keep the run for `unmask replay` (JSON lines)")
    g.add_argument("--svg", metavar="FILE", help="write a picture of the first answer settling")
    add_colours(parser, g)
    g.add_argument("--quiet", "-q", action="store_true", help="say nothing but the answer")


def _prompts(args: argparse.Namespace) -> tuple[list[str], bool | None]:
    """The prompts, and whether the template is forced. A template to fill may stand alone, as plain text."""
    chat = True if args.chat else False if args.raw else None
    if args.system is not None and args.raw:
        raise RequestError(
            "--system", expected="a chat template to put it in", got="--raw", remedy="Leave one of them out."
        )
    given = args.prompts or args.prompt or args.prompt_file
    if args.infill is not None and not given and not args.chat and args.system is None:
        return [""], False
    return read_prompts(args), chat


def _check_given(args: argparse.Namespace) -> None:
    """The forms that can be read without a model."""
    from unmask.text import constraints, template

    if args.infill is not None:
        template.parse(args.infill)
    if args.constraint is not None:
        if not constraints.parse(args.constraint):
            raise RequestError("--constraint", expected='position:word, such as "3:apple"', got="nothing")
        if args.infill is not None:
            raise RequestError(
                "--constraint", expected="it or --infill", got="both", remedy="Write the words into the template."
            )
    if any(not s for s in args.stop):
        raise RequestError("--stop", expected="a text of at least one character", got="an empty one")
    if args.delay is not None and not args.show:
        raise RequestError("--delay", expected="--show beside it", got="no drawing to delay")
    check_colours(args, ("show", "svg"))


def _run(
    args: argparse.Namespace, model: Model, prompts: list[str], prepared: list[Prepared], notices: Notices
) -> None:
    """Decodes, feeds every sink, prints. Files appear together: after an error none of them is there."""
    from unmask.cli.session import drawing, watched
    from unmask.pipeline.record import answers as shown
    from unmask.pipeline.record import header, piece_of
    from unmask.sinks.metrics import Metrics
    from unmask.sinks.recorder import Recorder

    metrics, collect, kept = Metrics(), model.collector(prepared), list[Event]()
    sinks: list[Sink] = [metrics, *drawing(args, model)]
    with ExitStack() as files:
        recorder = drawn = None
        if args.record is not None:
            recorder = Recorder(
                args.record,
                header(model, prepared, args.seed),
                piece_of(model),
                lambda: shown(collect.generations),
            )
            files.callback(recorder.discard)
        with watched(model.events(prepared), sinks) as events:
            for event in events:
                collect(event)
                if recorder is not None:
                    recorder(event)
                if args.svg is not None:
                    kept.append(event)
        answers = [collect.generations[p.request.id] for p in prepared]
        if args.svg is not None:
            from unmask.cli.pictures import look
            from unmask.sinks.picture import settling

            drawn = WholeFile(args.svg)
            files.callback(drawn.discard)
            drawn.write(settling(kept, piece_of(model), look=look(args, title=_head(prompts[0]))))
            drawn.settle()
        if recorder is not None:
            recorder.close()
        if drawn is not None:
            drawn.commit()
    if args.json:
        rows = [_as_json(model, prompts, p, a, metrics) for p, a in zip(prepared, answers)]
        print_json(rows[0] if len(rows) == 1 else rows)
    else:
        _print(prompts, answers, notices)
    summary = dataclasses.replace(metrics.total(), tokens=sum(a.completion_tokens for a in answers))
    notices.say(f"{summary} - {', '.join(dict.fromkeys(a.finish_reason for a in answers))}")


def _print(prompts: list[str], answers: list[Generation], notices: Notices) -> None:
    for number_, answer in enumerate(answers, 1):
        if len(answers) > 1 and not notices.quiet:
            print_text(f"[{number_}/{len(answers)}] {_head(prompts[answer.index])}")
        print_text(answer.text)


def _head(text: str, wide: int = 70) -> str:
    """The first words of a prompt, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= wide else line[: wide - 3] + "..."


def _as_json(model: Model, prompts: list[str], one: Prepared, answer: Generation, metrics: Metrics) -> dict[str, Any]:
    counts = dataclasses.replace(metrics.of(one.request.id), tokens=answer.completion_tokens)
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt": prompts[answer.index],
        "model": model.name,
        "seed": one.request.seed,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "nfe": answer.nfe,
        "forwards": dict(counts.kinds),
        "row_layers": counts.row_layers,
        "head_rows": counts.head_rows,
        "tokens_per_forward": round(counts.tokens_per_forward, 4),
        "seconds": round(counts.seconds, 6),
        "tokens_per_second": round(counts.tokens_per_second, 3),
        "settings": answer.settings,
        "tokens": _tokens(model, answer),
    }


def _tokens(model: Model, answer: Generation) -> list[dict[str, Any]]:
    """Every token of the answer: id, text, the forward that wrote it (0: given) and how sure it was."""
    from unmask.pipeline.record import piece_of

    canvas, piece, start = answer.canvas, piece_of(model), answer.prompt_tokens
    rows = []
    for i, token in enumerate(answer.ids, start):
        sure = canvas.confidence[i]
        rows.append(
            {
                "id": token,
                "text": piece(token),
                "step": canvas.step[i],
                "confidence": round(sure, 6) if math.isfinite(sure) else None,
            }
        )
    return rows
