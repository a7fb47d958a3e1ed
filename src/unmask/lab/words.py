"""Lists on the command line of the benchmark; read before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.core.errors import InputError

CACHES = {
    "canvas": "none,prefix,dual",
    "block": "none,block,sub_block",
    "autoregressive": "block",
    "recurrent": "none,boundary",
}
"""Caches compared when none is named, by the kind of model."""


def listed(text: str, what: str) -> list[str]:
    """Specs between commas; commas inside parentheses belong to a spec.

    Raises:
        InputError: an empty name, or one twice.
    """
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    found = [p.strip() for p in parts]
    if not all(found):
        raise InputError(what, expected="names between commas, such as none,dual(refresh=4)", got=repr(text))
    once(found, what)
    return found


def once(found: Sequence[object], what: str) -> None:
    """Refuses a list with a repetition."""
    if len(set(found)) < len(found):
        raise InputError(what, expected="each one once", got=", ".join(map(str, found)))
