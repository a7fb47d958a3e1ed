"""What `generate` and `chat` share: loading the model, saying the settings, and dropping published options without
effect.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

from unmask.cli.decoding import check_specs
from unmask.cli.output import Notices
from unmask.core.events import tee

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from unmask.core.events import Event
    from unmask.core.protocols import Sink
    from unmask.engine.options import DecodeOptions
    from unmask.pipeline import Model
    from unmask.pipeline.request import Prepared

DELAY = 0.03
"""Seconds between two drawings on a terminal: small models settle faster than an eye follows."""


def load_model(args: argparse.Namespace, options: DecodeOptions, notices: Notices) -> Model:
    """The model of a command line; every spec is read in full before its weights are."""
    check_specs(options)
    from unmask.pipeline import load

    if args.model is not None:
        notices.say(f"loading {args.model} ...")
    return load(args.model, revision=args.revision, dtype=args.dtype, device=args.device)


def without_effectless(
    args: argparse.Namespace, options: DecodeOptions, model: Model, tokens: int | None, notices: Notices
) -> DecodeOptions:
    """For the command line of a published script: options that do nothing here are warned about and dropped.

    Our own spellings are left alone: there such an option is an error, said by the profile itself.
    """
    if not args.published:
        return options
    from unmask.engine.profiles import ignored, kind_of

    like = ", as in the published script" if kind_of(model.traits) == "canvas" else ""
    names = ignored(options, model.traits, model.kind.model_type, tokens or 128)
    for name in names:
        notices.warn(f"{args.spelled.get(name) or name} has no effect with the other options{like}")
    nothing: dict[str, Any] = dict.fromkeys(names)
    return dataclasses.replace(options, **nothing)


def say_settings(prepared: Sequence[Prepared], notices: Notices) -> None:
    """What the answers are decoded with and who decided it, once per different set."""
    lines = (", ".join(f"{name} {value}" for name, value in p.settings.table.items()) for p in prepared)
    for line in dict.fromkeys(lines):
        notices.say(f"settings: {line}")


def drawing(args: argparse.Namespace, model: Model) -> list[Sink]:
    """The canvas on stderr, if --show asks for it."""
    if not args.show:
        return []
    from unmask.cli.pictures import terminal
    from unmask.pipeline.record import piece_of
    from unmask.sinks.console import canvas_sink

    delay, (theme, palette) = DELAY if args.delay is None else args.delay, terminal(args)
    return [canvas_sink(piece_of(model), sys.stderr, delay=delay, theme=theme, palette=palette)]


def watched(events: Iterator[Event], sinks: Sequence[Sink]) -> closing[Generator[Event, None, None]]:
    """The events through the sinks, for a `with`: however it is left, the model stops and every sink is closed."""
    return closing(cast("Generator[Event, None, None]", tee(events, *sinks)))
