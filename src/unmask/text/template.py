r"""Infilling: a text with free spans. "The [[4]] sat on the [[3]]." leaves 4 and 3 tokens to the model.

Enters: the template. Leaves: its parts, then ids with None at holes. The fixed text stands exactly as written, spaces
included; tokenizers that join a space to the next word do best when a span directly follows the word before it
("The[[4]] sat"), so that the model writes that space itself. `\[[` is a literal `[[`.
"""

from __future__ import annotations

import re

from unmask.core.errors import RequestError
from unmask.text.codec import Codec

FORM = "[[n]] with the number of free tokens, such as [[4]]"
MARK = re.compile(r"\\\[\[|\[\[(?P<inside>[^\]]*)(?P<close>\]\])?")


def parse(text: str) -> list[str | int]:
    """Fixed texts and lengths of free spans, in order.

    Raises:
        RequestError: a span that is not closed, has no number from 1 on, or no span at all.
    """
    parts: list[str | int] = []
    at, fixed = 0, ""
    for found in MARK.finditer(text):
        fixed += text[at : found.start()]
        at = found.end()
        if found["inside"] is None:
            fixed += "[["
            continue
        parts += [fixed, _length(found)] if fixed else [_length(found)]
        fixed = ""
    fixed += text[at:]
    parts += [fixed] if fixed else []
    if not any(isinstance(p, int) for p in parts):
        raise RequestError("template", expected=f"at least one free span, {FORM}", got="a text without holes")
    return parts


def fill(text: str, codec: Codec) -> list[int | None]:
    """The template as ids, None for every free token."""
    ids: list[int | None] = []
    for part in parse(text):
        ids.extend([None] * part if isinstance(part, int) else codec.encode(part))
    return ids


def _length(found: re.Match[str]) -> int:
    if found["close"] is None:
        raise RequestError(
            f"template, character {found.start()}", expected=FORM, got="[[ that is not closed (a literal one is \\[[)"
        )
    inside = found["inside"].strip()
    if not re.fullmatch(r"[0-9]{1,6}", inside) or int(inside) == 0:
        raise RequestError(
            f"template span [[{inside}]]",
            expected=FORM,
            got=inside or "nothing",
            remedy="A literal [[ is written \\[[.",
        )
    return int(inside)
