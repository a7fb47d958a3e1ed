"""Commands of two words: `unmask data inspect`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

from unmask.cli.output import columns
from unmask.core.errors import InputError

Action = Callable[[Sequence[str]], int]


def choose(prog: str, argv: Sequence[str], actions: Mapping[str, tuple[str, Action]]) -> int:
    """Runs the named action; without one, or with --help, lists them.

    Raises:
        InputError: an unknown action.
    """
    name = argv[0] if argv else "--help"
    if name in ("--help", "-h"):
        print(f"usage: {prog} ACTION [options]     ({prog} ACTION --help explains one)\n\nactions:")
        print(columns([(action, meaning) for action, (meaning, _) in actions.items()]))
        return 0
    if name not in actions:
        near = difflib.get_close_matches(name, actions, n=1)
        hint = f"Did you mean `{prog} {near[0]}`?" if near else f"See `{prog} --help`."
        raise InputError(f"{prog} {name}", expected=f"one of: {', '.join(actions)}", got=name, remedy=hint)
    return actions[name][1](argv[1:])
