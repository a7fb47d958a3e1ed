"""argparse as this command line wants it: errors are our own, numbers have ranges, published spellings are hidden
aliases.

Every option with a dash inside its name also answers to the underscore form; which spelling was used is kept in
`args.spelled`, because command lines copied from published scripts are treated more leniently than our own.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from unmask.core.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser that raises `InputError` and never abbreviates."""

    def __init__(self, prog: str, description: str, examples: str = "", usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=f"examples:\n{examples.rstrip()}" if examples else None,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30),
            allow_abbrev=False,
        )
        self.hidden: set[str] = set()
        self._given: list[str] = []
        self.set_defaults(spelled={})

    def error(self, message: str) -> NoReturn:
        found = re.match(r"argument ([^:]+): (.*)", message, re.S)
        if found:
            names = found[1].split("/")  # of an option with several: the long one that was typed
            typed = (n for n in names if n.startswith("--") and any(w.split("=")[0] == n for w in self._given))
            message = f"{next(typed, found[1])}: {found[2]}"
        raise InputError(message, remedy=f"See `{self.prog} --help`.")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The parsed arguments, positional ones anywhere between the options.

        Raises:
            InputError: anything that does not fit; an unknown option gets the near names.
        """
        self._given = list(argv)
        args, extra = self.parse_known_intermixed_args(list(argv))
        if extra:
            raise self._unknown(extra[0])
        args.published = sorted(set(args.spelled.values()) & self.hidden)
        return args

    def option(self, group: Any, *flags: str, hidden: Sequence[str] = (), **rest: Any) -> None:
        """Adds an option, its underscore forms and its published names; the latter two stay out of the help.

        Args:
            group: where it is listed.
            flags: the names shown.
            hidden: names of published scripts.
            rest: as for `add_argument`; `flag=True` makes it a switch.
        """
        switch = rest.pop("flag", False)
        rest = {"action": _Switch, "nargs": 0, **rest} if switch else {"action": _Store, **rest}
        dest = rest.setdefault("dest", next(f for f in flags if f.startswith("--"))[2:].replace("-", "_"))
        group.add_argument(*flags, **rest)
        names = [f"--{f[2:].replace('-', '_')}" for f in flags if f.startswith("--") and "-" in f[2:]] + list(hidden)
        if names:
            self.hidden.update(names)
            # the visible form of a published name leads the error message, not the alias list
            group.add_argument(*names, **{**rest, "dest": dest, "help": argparse.SUPPRESS, "required": False})

    def _unknown(self, given: str) -> InputError:
        if not given.startswith("-"):
            return InputError(f"unexpected argument {given!r}", remedy=f"See `{self.prog} --help`.")
        name = given.split("=")[0]
        shown = [f for f in self._option_string_actions if f not in self.hidden]
        near = difflib.get_close_matches(name, shown, n=2, cutoff=0.6)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        return InputError(f"unknown option {name}", remedy=f"{hint}See `{self.prog} --help`.")


class _Store(argparse.Action):
    """Keeps the value and the spelling."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.spelled[self.dest] = option_string


class _Switch(argparse.Action):
    """True, and the spelling."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, True)
        namespace.spelled[self.dest] = option_string


def integer(low: int | None = None, high: int | None = None) -> Callable[[str], int]:
    """A converter for whole numbers in a range."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or (low is not None and value < low) or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"expected an integer{_bounds(low, high, None)}, got {text!r}")
        return value

    return convert


def number(low: float | None = None, high: float | None = None, above: float | None = None) -> Callable[[str], float]:
    """A converter for finite numbers in a range; `above` excludes its end."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)
        if not inside or (above is not None and value <= above):
            raise argparse.ArgumentTypeError(f"expected a number{_bounds(low, high, above)}, got {text!r}")
        return value

    return convert


def _bounds(low: float | None, high: float | None, above: float | None) -> str:
    words = []
    if above is not None:
        words.append(f"above {above:g}")
    if low is not None and high is not None:
        words.append(f"from {_plain(low)} to {_plain(high)}")
    elif low is not None:
        words.append(f"of at least {_plain(low)}")
    elif high is not None:
        words.append(f"at most {high:g}" if not words else f"and at most {high:g}")
    return f" {' '.join(words)}" if words else ""


def _plain(value: float) -> str:
    """Whole numbers in full: 1048576, not 1.04858e+06."""
    return str(value) if isinstance(value, int) else f"{value:g}"
