"""`unmask chat`: a conversation in the terminal, or line by line from a pipe."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from unmask.cli.decoding import add_decoding, add_model, check_specs, resolve, warn
from unmask.cli.output import Notices, print_text
from unmask.cli.parsing import Parser, number
from unmask.cli.pictures import add_colours, check_colours
from unmask.core.errors import InputError, RequestError, RunError
from unmask.core.events import Canvas, fold
from unmask.sinks.files import check_writable, write_text

if TYPE_CHECKING:
    from unmask.core.events import Event
    from unmask.engine.options import DecodeOptions
    from unmask.pipeline import ChatSession, Model

DESCRIPTION = """\
Talk with a model. Each line is a message (end a line with \\ to go on); /help lists the commands. Ctrl-C cancels one
answer, Ctrl-D ends the talk. From a pipe every line is a message or a command, and only answers are printed."""
EXAMPLES = """\
  unmask chat
  unmask chat --model ./LLaDA-8B-Instruct --profile llada          the published history rule, 128/128/32
  unmask chat --gen_length 128 --steps 128 --block_size 32 --use_cache --if_cache_position --threshold 0.9"""
HELP = """\
/help              this list
/clear             forget the conversation
/system TEXT       set the system message and start anew (without TEXT: show it)
/undo              take the last question and answer back
/retry             ask the last question again with the next seed
/settings          show how answers are decoded
/settings a=b ...  change it: /settings temperature=0.7 threshold=0.8 (a=none: as the checkpoint says)
/save FILE         write the conversation as JSON
/exit              leave (also /quit, Ctrl-D)"""
LEAVE = ("exit", "quit")
COMMANDS = ("help", "clear", "system", "undo", "retry", "settings", "save", *LEAVE)
LLADA_BLOCK = 32
"""Block length of LLaDA's published chat; its other numbers are the profile's own defaults."""


def main(argv: Sequence[str]) -> int:
    """Talks until the input ends."""
    parser = Parser("unmask chat", DESCRIPTION, EXAMPLES, usage="unmask chat [options]")
    parser.option(parser, "--system", "--system-prompt", metavar="TEXT", help="a system message at the start")
    parser.add_argument("--show", action="store_true", help="draw the canvas as it settles (on stderr)")
    parser.option(
        parser, "--delay", type=number(0, 10), metavar="S", help="seconds between two drawings (default: 0.03)"
    )
    add_colours(parser, parser)
    parser.add_argument("--quiet", "-q", action="store_true", help="say nothing but the answers")
    add_model(parser)
    add_decoding(parser)
    args = parser.parse(argv)
    notices = Notices(args.quiet)
    options, tokens, warnings = resolve(args)
    if args.delay is not None and not args.show:
        raise RequestError("--delay", expected="--show beside it", got="no drawing to delay")
    check_colours(args, ("show",))
    warn(notices, warnings)
    from unmask.cli.session import load_model, without_effectless

    model = load_model(args, options, notices)
    if not model.has_chat:
        remedy = "Use `unmask generate`, which also takes plain text."
        raise RequestError("chat", expected="a model with a chat template", got=f"none in {model.name}", remedy=remedy)
    options = without_effectless(args, options, model, tokens, notices)
    talk = Talk(model, args, options, tokens, notices)
    if sys.stdin.isatty():
        return _interactive(talk, notices)
    return _from_pipe(talk)


class Talk:
    """A conversation and its commands. Holds what /undo, /retry and /settings need; the history is the session's."""

    def __init__(
        self, model: Model, args: argparse.Namespace, options: DecodeOptions, tokens: int | None, notices: Notices
    ) -> None:
        self.model, self.args, self.tokens, self.notices = model, args, tokens, notices
        self.options = _published_chat(options)
        self.seed = args.seed
        self.past: list[tuple[list[dict[str, str]], list[int]]] = []
        self.asked: list[str] = []
        self.session = self._new_session(args.system)

    def _new_session(self, system: str | None) -> ChatSession:
        from unmask.pipeline import ChatSession

        return ChatSession(self.model, system, "llada" if self.options.profile == "llada" else "default")

    # ---- a message ---------------------------------------------------------------------------------------------------

    def turn(self, text: str) -> None:
        """Asks and prints. An interrupt while the answer is written cancels it and leaves the history as it was.

        Raises:
            InputError: a message that cannot be decoded (too long, empty ...).
            RunError: the decoding failed.
        """
        from unmask.cli.session import drawing, watched
        from unmask.sinks.metrics import Metrics

        before = ([dict(m) for m in self.session.messages], list(self.session.ids))
        events = self.session.stream(text, max_tokens=self.tokens, seed=self.seed, options=self.options)
        metrics, sinks = Metrics(), drawing(self.args, self.model)
        try:
            with watched(events, [metrics, *sinks]) as seen:
                printed = self._print(seen, live=not self.args.show and sys.stdout.isatty())
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print("\n(cancelled)", flush=True)
            return
        answer = self.session.last
        assert answer is not None
        print_text(answer.text[len(printed) :] if answer.text.startswith(printed) else f"\n{answer.text}")
        self.past.append(before)
        self.asked.append(text)
        self.seed += 1
        reused = (
            f", {self.session.reused} of {answer.prompt_tokens} prompt tokens reused" if self.session.reused else ""
        )
        self.notices.say(f"({dataclasses.replace(metrics.total(), tokens=answer.completion_tokens)}{reused})")

    def _print(self, events: Iterator[Event], live: bool) -> str:
        """Runs the turn; on a terminal the settled beginning of the answer is printed as it grows. What was printed."""
        if not live or self.model.codec is None:
            for _ in events:
                pass
            return ""
        from unmask.text.detokenize import Detokenizer

        words, printed, canvases = Detokenizer(self.model.codec), "", dict[str, Canvas]()
        ends = () if self.session.rule == "llada" else (*self.model.traits.eos_ids, *self.model.turn_ends)
        for event in events:
            canvases.update(fold([event]))
            canvas = canvases[event.id]
            canvas.apply(event)
            new = words.push(_settled(canvas, ends))
            printed += new
            print_text(new, end="")
        return printed

    # ---- commands ----------------------------------------------------------------------------------------------------

    def command(self, line: str) -> bool:
        """Runs a /command; False when it ends the talk.

        Raises:
            InputError: an unknown command or a wrong argument.
        """
        name, _, rest = line[1:].partition(" ")
        actions: dict[str, Callable[[str], None]] = {
            "help": lambda _: print(HELP),
            "clear": self._clear,
            "system": self._system,
            "undo": self._undo,
            "retry": self._retry,
            "settings": self._settings,
            "save": self._save,
        }
        if name in LEAVE:
            return False
        if name not in actions:
            known = ", ".join(f"/{a}" for a in COMMANDS)
            raise InputError(f"unknown command /{name}", expected=f"one of: {known}")
        actions[name](rest.strip())
        return True

    def _clear(self, _: str) -> None:
        self.session.reset()
        self.past, self.asked = [], []
        self.notices.say("(the conversation is forgotten)")

    def _system(self, text: str) -> None:
        if not text:
            print(self.session.system or "(no system message)")
            return
        self.session = self._new_session(text)
        self._clear("")

    def _undo(self, _: str) -> None:
        if not self.past:
            raise InputError("/undo", expected="an answer to take back", got="an empty conversation")
        self.session.messages, self.session.ids = self.past.pop()
        self.asked.pop()
        self.session.last = None
        self.notices.say("(the last question and answer are taken back)")

    def _retry(self, _: str) -> None:
        if not self.asked:
            raise InputError("/retry", expected="a question to ask again", got="an empty conversation")
        text = self.asked[-1]
        kept = (self.session.messages, self.session.ids, self.session.last, self.past[-1])
        self._undo("")
        count = len(self.past)
        self.turn(text)
        if len(self.past) == count:  # cancelled: the old answer stays
            self.session.messages, self.session.ids, self.session.last = kept[0], kept[1], kept[2]
            self.past.append(kept[3])
            self.asked.append(text)

    def _settings(self, text: str) -> None:
        if text:
            self._change(text)
        table = self.model.prepare([[{"role": "user", "content": "x"}]], max_tokens=self.tokens, options=self.options)[
            0
        ]
        for name, value in table.settings.table.items():
            print(f"{name}: {value}")

    def _change(self, text: str) -> None:
        """`temperature=0.7` goes through the parser of the command line, so it is checked the same way."""
        parser = Parser("/settings", "")
        add_decoding(parser)
        fields = {f.name for f in dataclasses.fields(self.options)} | {"seed", "max_tokens"}
        changed = dataclasses.asdict(self.options)
        for item in text.split():
            name, sign, value = item.partition("=")
            name = name.replace("-", "_")
            if not sign or name not in fields:
                raise InputError(
                    f"/settings {item}", expected="name=value", remedy=f"Names: {', '.join(sorted(fields))}"
                )
            if name == "profile" and value != self.options.profile:
                raise InputError(
                    "/settings profile",
                    expected="the profile the talk began with",
                    remedy="Start again with --profile.",
                )
            changed.update(self._changed(parser, name, value))
        tokens = changed.pop("max_tokens", self.tokens)
        self.seed = changed.pop("seed", self.seed)
        options = dataclasses.replace(self.options, **{**changed, "gen_length": tokens})
        check_specs(options)
        self.model.prepare([[{"role": "user", "content": "x"}]], max_tokens=tokens, options=options)
        self.options, self.tokens = options, tokens

    def _changed(self, parser: Parser, name: str, value: str) -> dict[str, Any]:
        if value.lower() == "none":
            return {"max_tokens" if name == "gen_length" else name: 0 if name == "seed" else None}
        flag = name in ("logits_eos_inf", "confidence_eos_eot_inf")
        words = [f"--{name.replace('_', '-')}"] + ([] if flag else [value])
        found = getattr(parser.parse(words), name)
        return {"max_tokens" if name == "gen_length" else name: found}

    def _save(self, name: str) -> None:
        check_writable(name, "/save")
        table = {"model": self.model.name, "system": self.session.system, "messages": self.session.messages}
        write_text(name, json.dumps(table, ensure_ascii=False, indent=2) + "\n")
        self.notices.say(f"(saved to {name})")


def _published_chat(options: DecodeOptions) -> DecodeOptions:
    """LLaDA's chat decodes in blocks of 32, not of the whole answer."""
    length = options.gen_length or 128
    if options.profile != "llada" or options.block_length is not None or length % LLADA_BLOCK:
        return options
    return dataclasses.replace(options, block_length=LLADA_BLOCK)


def _settled(canvas: Canvas, ends: tuple[int, ...]) -> list[int]:
    """The settled beginning of the answer, up to its first end token."""
    found: list[int] = []
    for token in canvas.ids[canvas.prompt_len : canvas.end]:
        if token < 0 or token in ends:
            break
        found.append(token)
    return found


def _interactive(talk: Talk, notices: Notices) -> int:
    """The loop at a terminal: errors are said and the talk goes on."""
    with contextlib.suppress(ImportError):  # no line editing on this system
        import readline  # noqa: F401

    notices.say(f"{talk.model.name} ({talk.model.family}) - /help for commands, Ctrl-D to leave")
    while True:
        try:
            line = _ask()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D to leave)")
            continue
        try:
            if line.startswith("/"):
                if not talk.command(line):
                    return 0
            elif line.strip():
                talk.turn(line)
        except (InputError, RunError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            if isinstance(error, InputError) and error.remedy:
                print(f"hint: {error.remedy}", file=sys.stderr)


def _from_pipe(talk: Talk) -> int:
    """Every line is a message, or one of the commands; the first error ends the run."""
    for line in _piped():
        if line.startswith("/") and line[1:].partition(" ")[0] in COMMANDS:
            if not talk.command(line):
                return 0
        else:
            talk.turn(line)
    return 0


def _ask() -> str:
    """A message; a line that ends with a backslash goes on in the next."""
    line = input("> ")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + input("  ")
    return line


def _piped() -> Iterator[str]:
    """The lines of a pipe, checked to be text."""
    from unmask.cli.inputs import read_stdin

    for line in read_stdin(sys.stdin).split("\n"):
        if line.strip():
            yield line
