"""`unmask train RECIPE`: trains a model; a killed run goes on where it stood with --resume. `unmask train birwkv` has a
command line of its own."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.inputs import need_file
from unmask.cli.output import Notices, print_json
from unmask.cli.parsing import Parser
from unmask.core.errors import InputError

if TYPE_CHECKING:
    from unmask.train.events import Done, TrainEvent
    from unmask.train.recipe import Recipe

EXAMPLES = """\
  unmask train recipes/nano_llada.yaml --out runs/nano-llada
  unmask train recipes/nano_llada.yaml run.steps=200 optim.lr=0.002 --out runs/try
  unmask train recipes/nano_llada.yaml --out runs/nano-llada --resume          after a crash or Ctrl-C
  unmask train birwkv --help                                                   a recurrent diffusion model from flags"""


def main(argv: Sequence[str]) -> int:
    """Prints the folder of the finished model on stdout; progress goes to stderr and to metrics.jsonl."""
    if argv and argv[0] == "birwkv":
        from unmask.cli.train_birwkv import main as birwkv

        return birwkv(argv[1:])
    parser = Parser(
        "unmask train",
        "Train a model from a recipe. Progress is on stderr, numbers are in OUT/metrics.jsonl.",
        EXAMPLES,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="values that win over the recipe: optim.lr=0.001"
    )
    parser.option(parser, "--out", "-o", metavar="DIR", help="folder of the run (default: runs/NAME of the recipe)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the folder")
    parser.add_argument("--json", action="store_true", help="print the last numbers as JSON instead of the folder")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    args = parser.parse(argv)
    check_overrides(args.overrides)
    need_file(args.recipe, "recipe ", "a YAML file", "See recipes/ for examples.")
    if args.out == "":
        raise InputError("--out", expected="a folder for the run", got="nothing")
    from unmask.train.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    out = Path(args.out or Path("runs") / recipe.name)
    check_folder(out, args.resume, out)
    try:
        return run_recipe(recipe, out, args.quiet, args.json)
    except KeyboardInterrupt:
        Notices(args.quiet).say(f"stopped; the last checkpoint is whole. Go on with --out {out} --resume")
        raise


def run_recipe(
    recipe: Recipe, out: Path, quiet: bool, as_json: bool, beside: Mapping[str, Mapping[str, Any]] | None = None
) -> int:
    """Trains and says how it goes. beside: JSON files written into the run's folder before the first step."""
    from unmask.train.trainer import Trainer

    with unmade(out):
        trainer = Trainer(recipe, out)
    return watch(_noted(trainer.fit(), out, beside or {}), quiet, _json if as_json else _folder)


def _noted(events: Iterator[TrainEvent], out: Path, beside: Mapping[str, Mapping[str, Any]]) -> Iterator[TrainEvent]:
    """Writes the files when the run has begun: one that refuses its checkpoint leaves those of the run before."""
    from unmask.sinks.files import write_text
    from unmask.train.events import Started

    for event in events:
        if isinstance(event, Started):
            for name, content in beside.items():
                write_text(out / name, json.dumps(content, indent=2) + "\n")
        yield event


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuses a word that is no key=value."""
    wrong = next((o for o in overrides if "=" not in o), None)
    if wrong is not None:
        raise InputError(f"override {wrong!r}", expected="key=value, such as optim.lr=0.001", got=wrong)


def check_folder(run: Path, resume: bool, out: Path, flag: str = "--out", again: str = "--resume") -> None:
    """A run never overwrites another one by accident.

    Args:
        run: where its checkpoints are. out: the user's word for it.
        flag, again: the options that name the folder and go on with the run in it.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{flag} {out}", expected="a folder", got="a file", remedy="Name another one.")
    begun = run.is_dir() and any((run / "checkpoints").glob("step-*"))
    if begun and not resume:
        raise InputError(
            f"{flag} {out}",
            expected="a new folder",
            got="a run that has begun",
            remedy=f"Add {again} to go on with it, or name another folder.",
        )
    if resume and not begun:
        raise InputError(
            again,
            expected=f"a run with a checkpoint in {out}",
            got="none",
            remedy=f"Leave {again} out to start it.",
        )


@contextmanager
def unmade(out: Path) -> Iterator[None]:
    """A run that is refused while it is set up leaves no folder that was not there."""
    new = [p for p in (out, *out.parents) if not p.exists()]
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(new[-1], ignore_errors=True)
        raise


def _json(event: Done, last: Mapping[str, float]) -> None:
    own = {"step": event.step, "tokens": event.tokens, "positions": event.positions}
    print_json({**last, **own, "model": str(event.path)})


def _folder(event: Done, last: Mapping[str, float]) -> None:
    print(event.path)


def watch(
    events: Iterator[TrainEvent], quiet: bool, finished: Callable[[Done, Mapping[str, float]], None] | None = None
) -> int:
    """Says what happens and returns when the run is done. finished: called with the last event and the last numbers."""
    from unmask.train.events import Done, Progress, Saved, Started, Validated

    notices, begun, first = Notices(quiet), time.perf_counter(), 0
    last: dict[str, float] = {}
    for event in events:
        if isinstance(event, Started):
            first = event.step
            words = f"from step {event.step}" if event.step else "from the start"
            if event.step >= event.steps:
                words = "all of them done before; ask for more to go on"
            notices.say(
                f"{event.name}: {event.parameters / 1e6:.2f} M parameters on {event.device}, "
                f"{event.steps} steps, {words}"
            )
        elif isinstance(event, Progress):
            last = {"step": event.step, "tokens": event.tokens, **event.metrics}
            left = (time.perf_counter() - begun) / max(event.step - first, 1) * (event.steps - event.step)
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
            notices.say(
                f"step {event.step:>6}/{event.steps}  {numbers}  lr {event.lr:.2e}  "
                f"{event.speed:,.0f} tokens/s  {_clock(left)} left"
            )
        elif isinstance(event, Validated):
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
            notices.say(f"step {event.step:>6}  held out: {numbers}{'  (best)' if event.best else ''}")
        elif isinstance(event, Saved):
            notices.say(f"step {event.step:>6}  saved {event.path}")
        elif isinstance(event, Done) and finished is not None:
            finished(event, last)
    sys.stdout.flush()
    return 0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
