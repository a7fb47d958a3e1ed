"""The `unmask` command: picks the command, runs it, and turns every expected failure into one line and an exit code.

Exit codes: 0 done, 1 a run failed, 2 bad input (nothing was written), 130 interrupted, 141 the reader of our output
went away, 143 terminated.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TextIO

from unmask import __version__
from unmask.cli.output import one_line
from unmask.cli.parsing import Parser
from unmask.core.errors import InputError, UnmaskError
from unmask.sinks.files import reason

COMMANDS: dict[str, str] = {
    "generate": "write text for a prompt, with the model inside or any checkpoint",
    "chat": "talk with a model",
    "demo": "a web page that shows a model write, live",
    "replay": "show a recorded run again, without a model",
    "verify": "replay recorded reference outputs and compare them token for token",
    "plan": "how much memory a model will take, before it is loaded",
    "train": "train a model from a recipe",
    "adapt": "turn an autoregressive checkpoint into a block-diffusion model",
    "data": "look at training data: `unmask data inspect`",
    "tokenizer": "train a tokenizer: `unmask tokenizer train`",
    "convert": "turn an old .pt or .bin file, or a GGUF file, into a safetensors checkpoint",
    "bench": "measure decoding: `unmask bench decode`",
    "eval": "score a model on a benchmark: `unmask eval run TASK`",
    "pareto": "quality beside speed: strategies of a model on a task, and the one to take",
    "score": "how likely a model finds an answer: log p, its error, bits per token",
    "ls": "list models, policies, caches, schedules, profiles and kernels",
    "env": "versions and hardware, for bug reports",
}

HEAVY = ("generate", "chat", "demo", "verify", "train", "adapt", "bench", "eval", "pareto", "score")
"""Commands that run models."""

EXAMPLES = """\
  unmask generate "Tell a story about Bob the rabbit, a kite and a farm." --show
  unmask generate --model GSAI-ML/LLaDA-8B-Instruct --cache dual --threshold 0.9 "Why is the sky blue?"
  unmask chat --model ./my-checkpoint
  unmask ls"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code and never raises for bad input."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words[: words.index("--")] if "--" in words else "--debug" in words
    if debug:
        words.remove("--debug")
    _tolerant(sys.stdout)
    _tolerant(sys.stderr)
    try:
        with _signals():
            code = _dispatch(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _abandon_stdout()
        return 141
    except (UnmaskError, OSError, KeyboardInterrupt, MemoryError) as error:
        if debug:
            raise
        return _report(error)
    except RuntimeError as error:
        if debug or not _no_memory(error):
            raise
        return _report(MemoryError())


def _no_memory(error: RuntimeError) -> bool:
    """Whether torch means by it that memory is short: it has a type of its own on GPUs only."""
    return any(words in str(error) for words in ("can't allocate memory", "out of memory", "not enough memory"))


def _report(error: BaseException) -> int:
    """One line for what went wrong, one for what to do; the exit code."""
    if isinstance(error, KeyboardInterrupt):
        _line("unmask: interrupted")
        return 130
    if isinstance(error, UnmaskError):
        _line(f"unmask: error: {'; '.join([str(error), *getattr(error, '__notes__', ())])}")
        if isinstance(error, InputError) and error.remedy:
            _line(f"hint: {error.remedy}")
        return error.exit_code
    if isinstance(error, MemoryError):
        _line("unmask: error: out of memory")
        _line("hint: `unmask plan MODEL` says how much a model takes; try a smaller one or --dtype bf16.")
        return 1
    return _report_system(error)


def _report_system(error: BaseException) -> int:
    """A file or stream that the system refused: missing, closed to us, or a full disk."""
    assert isinstance(error, OSError)
    name = error.filename if isinstance(error.filename, str) else ""
    _line(f"unmask: error: {f'{name}: ' if name else ''}{reason(error)}")
    if not name or error.errno == errno.ENOSPC:
        _line("hint: The output could not be written; is the disk full?")
    try:
        sys.stdout.flush()
    except OSError:
        _abandon_stdout()
    return 2


def _line(text: str) -> None:
    """One line on stderr: what a file or an argument put into a message may neither break it nor steer the terminal."""
    with contextlib.suppress(OSError, ValueError):  # nobody is left to hear it
        print(one_line(text), file=sys.stderr, flush=True)


def _dispatch(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("--version", "-V"):
        print(f"unmask {__version__}")
        return 0
    if name in ("--help", "-h", "help"):
        _overview().print_help()
        return 0
    if name not in COMMANDS:
        raise _unknown(name)
    module = importlib.import_module(f"unmask.cli.{name}")
    if name in HEAVY:
        from unmask.cli.memory import keep_freed_memory

        keep_freed_memory()
    try:
        code: int = module.main(words[1:])
    except SystemExit as stop:  # argparse leaves this way after --help, a signal with its own number
        return stop.code if isinstance(stop.code, int) else 0
    return code


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """A polite kill unwinds like an interrupt, so no half-written file stays; the exit code is 128 + its number."""
    names = [s for s in ("SIGTERM", "SIGHUP") if s in signal.Signals.__members__]
    if threading.current_thread() is not threading.main_thread():
        names = []
    before = {name: signal.signal(signal.Signals[name], _leave) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(signal.Signals[name], signal.SIG_DFL if handler is None else handler)


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _overview() -> Parser:
    parser = Parser("unmask", "Diffusion language models: load, decode fast, watch, verify and train them.", EXAMPLES)
    parser.usage = "unmask COMMAND [options]     (unmask COMMAND --help explains a command)"
    wide = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{wide}}  {meaning}" for name, meaning in COMMANDS.items())
    parser.description = f"{parser.description}\n\ncommands:\n{commands}"
    parser.add_argument("--version", "-V", action="store_true", help="print the version")
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error (any command)")
    return parser


def _unknown(name: str) -> InputError:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    what = "option" if name.startswith("-") else "command"
    return InputError(
        f"unknown {what} {name!r}", expected=f"one of: {', '.join(COMMANDS)}", remedy=f"{hint}See `unmask --help`."
    )


def _tolerant(stream: TextIO) -> None:
    """A terminal of another encoding shows "?" for a sign it lacks, instead of ending the run."""
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    if encoding not in ("utf8", "") and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")


def _abandon_stdout() -> None:
    """Python flushes stdout once more at exit; what cannot be written must not become a second error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
