"""Decoding options as a small TOML file, so that a tuned strategy can be kept, shared and used again.

Enters: `DecodeOptions`, or the text of a file. Leaves: the text, or the options; every name and type is checked.
"""

from __future__ import annotations

import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from unmask.core.errors import ConfigError
from unmask.engine.options import DecodeOptions

TABLE = "decoding"
"""The table of the file that counts; others are notes for people."""


def to_toml(options: DecodeOptions, comments: Sequence[str] = (), notes: Mapping[str, Any] | None = None) -> str:
    """A file with these options.

    Args:
        comments: lines at its head. notes: a second table for people (where the options come from); never read back.
    """
    said = {**({} if options.profile == "default" else {"profile": options.profile}), **options.said()}
    lines = [f"# {_flat(c)}".rstrip() for c in comments]
    lines += [f"[{TABLE}]", *(f"{name} = {_value(v)}" for name, v in said.items())]
    if notes:
        lines += ["", "[notes]", *(f"{name} = {_value(v)}" for name, v in notes.items())]
    return "\n".join(lines) + "\n"


def _flat(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _value(value: Any) -> str:
    """A TOML value; JSON writes strings, numbers and booleans in the same way (TOML wants DEL escaped too)."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_toml(path: str | Path) -> DecodeOptions:
    """The options of a file.

    Raises:
        ConfigError: a file that is missing, is not TOML, or names what is no decoding option.
    """
    try:
        found = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"settings file {path}", expected="a file", got=(error.strerror or "").lower()) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {path}", expected="TOML", got=str(error)) from None
    table = found.get(TABLE)
    if not isinstance(table, dict) or not table:
        raise ConfigError(
            f"settings file {path}", expected=f"a table [{TABLE}]", got=", ".join(found) or "an empty file"
        )
    return options_from(table, f"settings file {path}")


def options_from(table: Mapping[str, Any], where: str) -> DecodeOptions:
    """Checked options out of names and values.

    Raises:
        ConfigError: an unknown name, or a value of the wrong type; `where` says whose.
    """
    hints = _hints()
    for name, value in table.items():
        if name not in hints:
            raise ConfigError(f"{where}: {name}", expected=f"one of: {', '.join(hints)}", got=repr(name))
        if not _fits(value, hints[name]):
            words = " or ".join(t.__name__ for t in hints[name])
            raise ConfigError(f"{where}: {name}", expected=words, got=repr(value))
    return DecodeOptions(**table)


@cache
def _hints() -> dict[str, tuple[type, ...]]:
    """Option -> the types it may have."""
    found = {}
    for name, hint in typing.get_type_hints(DecodeOptions).items():
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        found[name] = tuple(k for k in kinds if k is not type(None))
    return found


def _fits(value: Any, kinds: tuple[type, ...]) -> bool:
    return type(value) in kinds or (float in kinds and type(value) is int)
