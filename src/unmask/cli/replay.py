"""`unmask replay FILE`: a recorded run again, in the terminal, as JSON, or as a page, a picture or an animation. No
model, no tokenizer."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from unmask.cli import pictures
from unmask.cli.output import print_json
from unmask.cli.parsing import Parser, number
from unmask.core.errors import InputError
from unmask.core.events import Canvas, Event, Stepped, fold, tee
from unmask.sinks.files import reason
from unmask.sinks.metrics import Metrics
from unmask.sinks.recorder import Recording, read

EXAMPLES = """\
  unmask generate "Copy: red blue green" --record run.jsonl
  unmask replay run.jsonl                       as it settled, at its own speed
  unmask replay run.jsonl --speed 0.2           five times slower
  unmask replay run.jsonl --html run.html --gif run.gif
  unmask replay run.jsonl --svg run.svg --style steps
  unmask replay run.jsonl --png-steps frames --theme dark --palette safe"""
LONGEST = 2.0
"""Seconds a single step may take in a replay."""


def main(argv: Sequence[str]) -> int:
    """Shows the recording."""
    parser = Parser("unmask replay", "Show a recorded run again, without a model.", EXAMPLES)
    parser.add_argument("file", metavar="FILE", help="a recording made with --record")
    parser.add_argument("--show", action="store_true", help="draw the canvas (the default without --json and files)")
    parser.option(
        parser,
        "--speed",
        type=number(above=0),
        metavar="X",
        help="times the recorded speed (default: 1; --gif: watchable)",
    )
    parser.option(parser, "--request", metavar="ID", help="only this request (default: all; of a picture the first)")
    parser.add_argument("--json", action="store_true", help="the finished texts and counts as JSON")
    pictures.add_files(parser)
    args = parser.parse(argv)
    pictures.check(args)
    recording = _chosen(_read(args.file), args.request)
    pictures.write(args, recording, lambda text: print(text, file=sys.stderr, flush=True))
    if args.json:
        print_json(_as_json(recording))
    if args.show or not (args.json or pictures.wanted(args)):
        _show(args, recording)
    return 0


def _read(name: str) -> Recording:
    try:
        return read(name)
    except OSError as error:
        raise InputError(name or "FILE", expected="a recording that can be read", got=reason(error)) from None


def _chosen(recording: Recording, request: str | None) -> Recording:
    """The recording with one request only, if one is asked for."""
    known = list(fold(recording.events))
    if request is None:
        return recording
    if request not in known:
        expected = f"one of: {', '.join(known)}" if known else "no such option: this recording is empty"
        raise InputError(f"--request {request}", expected=expected, got=request)
    events = tuple(e for e in recording.events if e.id == request)
    answers = {i: a for i, a in recording.answers.items() if i == request}
    return Recording(recording.header, events, recording.pieces, answers)


def _show(args: argparse.Namespace, recording: Recording) -> None:
    from unmask.sinks.console import canvas_sink

    # drawn on stdout: here the drawing is the result, unless the JSON is
    stream = sys.stderr if args.json else sys.stdout
    theme, palette = pictures.terminal(args)
    metrics, canvas = Metrics(), canvas_sink(recording.pieces.__getitem__, stream, theme=theme, palette=palette)
    events: Iterator[Event] = iter(recording.events)
    if stream.isatty():
        events = _paced(recording.events, args.speed or 1.0)
    for _ in tee(events, metrics, canvas):
        pass
    ids = list(fold(recording.events))
    counts = metrics.of(ids[0]) if len(ids) == 1 else metrics.total()
    if recording.answers:
        tokens = sum(a.completion_tokens for a in recording.answers.values())
        counts = dataclasses.replace(counts, tokens=tokens)
    print(counts, file=stream)


def _paced(events: Sequence[Event], speed: float, wait: Callable[[float], None] = time.sleep) -> Iterator[Event]:
    """The events at their recorded pace; a step shared by several requests is waited for once."""
    for event in events:
        if isinstance(event, Stepped):
            wait(min(event.work.seconds / max(event.work.sharing, 1) / speed, LONGEST))
        yield event


def _as_json(recording: Recording) -> dict[str, Any]:
    metrics = Metrics()
    for event in recording.events:
        metrics(event)
    runs = [_run(i, c, recording, metrics) for i, c in fold(recording.events).items()]
    return {"header": recording.header, "runs": runs}


def _run(request: str, canvas: Canvas, recording: Recording, metrics: Metrics) -> dict[str, Any]:
    """The answer as it was printed; where a recording does not say, its pieces joined."""
    counts, answer = metrics.of(request), recording.answers.get(request)
    if answer is None:
        text = "".join(recording.pieces[i] for i in canvas.ids[canvas.prompt_len : canvas.end] if i >= 0)
    else:
        text, counts = answer.text, dataclasses.replace(counts, tokens=answer.completion_tokens)
    return {
        "id": request,
        "text": text,
        "finish_reason": canvas.reason,
        "error": canvas.error,
        "nfe": canvas.nfe,
        "completion_tokens": counts.tokens,
        "tokens_per_forward": round(counts.tokens_per_forward, 4),
        "seconds": round(counts.seconds, 6),
    }
