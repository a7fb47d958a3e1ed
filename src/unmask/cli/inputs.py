"""Prompts from the command line, files and stdin. Everything is read and checked before a model is loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from unmask.cli.parsing import Parser
from unmask.core.errors import InputError, RequestError
from unmask.sinks.files import reason


def add_prompts(parser: Parser) -> None:
    """PROMPT ..., --prompt, --prompt-file, --lines."""
    g = parser.add_argument_group("prompts (several are decoded together)")
    g.add_argument("prompts", nargs="*", metavar="PROMPT", help="the text; - reads stdin")
    g.add_argument(
        "--prompt", "-p", action="append", default=[], metavar="TEXT", help="the same as an option; may be repeated"
    )
    parser.option(
        g,
        "--prompt-file",
        "-f",
        action="append",
        default=[],
        metavar="FILE",
        help="a UTF-8 file holding one prompt; - is stdin; may be repeated",
    )
    g.add_argument("--lines", action="store_true", help="every line of a file or of stdin is a prompt of its own")


def read_prompts(args: argparse.Namespace, stdin: Any = None) -> list[str]:
    """All prompts of a command line, in the order positional, --prompt, --prompt-file; stdin if there is none.

    Raises:
        RequestError: no prompt, an empty one, a file that cannot be read, or bytes that are not UTF-8.
    """
    stdin = sys.stdin if stdin is None else stdin
    texts: list[str] = []
    for text in [*args.prompts, *args.prompt]:
        texts += _split(read_stdin(stdin), args.lines) if text == "-" else [_valid(text)]
    for name in args.prompt_file:
        texts += _split(read_stdin(stdin) if name == "-" else read_text(name, "prompt file"), args.lines)
    if not texts and not (args.prompts or args.prompt or args.prompt_file) and stdin is not None and not stdin.isatty():
        texts = _split(read_stdin(stdin), args.lines)
    if not texts:
        remedy = f'Give a text: {args.prog} "..."; or a file with --prompt-file FILE; or pipe one in.'
        raise RequestError("prompt", expected="some text", got="none", remedy=remedy)
    for text in texts:
        if not text.strip():
            raise RequestError("prompt", expected="some text", got="an empty one" if not text else "only white space")
    return texts


def read_text(name: str, what: str) -> str:
    """A UTF-8 file (a byte order mark is dropped), without the line break at its end.

    Raises:
        RequestError: missing, unreadable, a folder, or another encoding.
    """
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise RequestError(f"{what} {name}", expected="a file that can be read", got=reason(error)) from None
    return _decode(data, f"{what} {name}")


def need_file(name: str, what: str, expected: str, remedy: str = "") -> None:
    """Refuses a file that is not there, or that is a folder, before anything heavy is imported.

    Raises:
        InputError: with the name under which the user knows it.
    """
    path = Path(name)
    if not name or not path.is_file():
        got = "nothing" if not name else "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{what}{name}", expected=expected, got=got, remedy=remedy)


def read_stdin(stdin: Any) -> str:
    """All of stdin as text, under the rules of `read_text`."""
    if stdin is None:
        raise RequestError("stdin", expected="some text", got="a closed stream")
    data = stdin.buffer.read() if hasattr(stdin, "buffer") else stdin.read().encode()
    return _decode(data, "stdin")


def _decode(data: bytes, what: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = "Convert it first, for example: iconv -f latin1 -t utf-8"
        raise RequestError(
            what, expected="text in UTF-8", got=f"byte 0x{data[error.start]:02x} at offset {error.start}", remedy=remedy
        ) from None
    return _valid(text.replace("\r\n", "\n").rstrip("\n"), what)


def _valid(text: str, what: str = "prompt") -> str:
    """Refuses what no text holds: NUL, and bytes of another encoding smuggled in as surrogates."""
    if "\0" in text:
        raise RequestError(what, expected="text", got="a NUL byte (a binary file?)")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise RequestError(what, expected="text in UTF-8", got="bytes of another encoding")
    return text


def _split(text: str, lines: bool) -> list[str]:
    return [line for line in text.split("\n") if line.strip()] if lines else [text]
