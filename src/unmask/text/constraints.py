"""Words fixed in the answer: "3:apple, 7:pear" puts the tokens of " apple" at answer position 3 and on.

Enters: the text (or a mapping position -> word), the codec, the answer's length. Leaves: {answer position: id}. Each
word is encoded with a leading space, as in the published demo; a bad part, which that demo skips silently, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from unmask.core.errors import RequestError
from unmask.text.codec import Codec

FORM = "position:word parts separated by commas, such as 3:apple, 7:pear (a comma inside a word is \\,)"
COMMA = re.compile(r"(?<!\\),")


def parse(text: str) -> list[tuple[int, str]]:
    """The parts of a constraint text, in order; "" has none.

    Raises:
        RequestError: a part without a colon, with a position that is no integer >= 0, or with an empty word.
    """
    if not text.strip():
        return []
    return [_part(part.replace("\\,", ",")) for part in COMMA.split(text)]


def place(constraints: str | Mapping[int, str], codec: Codec, gen_length: int) -> dict[int, int]:
    """Ids by answer position.

    Raises:
        RequestError: a bad part, a word that leaves the answer, or two words at one position.
    """
    parts = parse(constraints) if isinstance(constraints, str) else [_checked(p, w) for p, w in constraints.items()]
    taken: dict[int, int] = {}
    owner: dict[int, str] = {}
    for position, word in parts:
        ids = codec.encode(f" {word}")
        name = f"constraint {position}:{word}"
        if position + len(ids) > gen_length:
            expected = f"positions 0 to {gen_length - 1} (the word takes {len(ids)})"
            raise RequestError(
                name,
                expected=expected,
                got=f"{position} to {position + len(ids) - 1}",
                remedy="Ask for a longer answer.",
            )
        for i, token in enumerate(ids, start=position):
            if i in taken:
                raise RequestError(name, expected="a free position", got=f"position {i}, taken by {owner[i]!r}")
            taken[i], owner[i] = token, word
    return taken


def _part(part: str) -> tuple[int, str]:
    position, colon, word = part.partition(":")
    if not colon:
        raise RequestError(f"constraint {part.strip()!r}", expected=FORM, got="no colon")
    if not re.fullmatch(r"[0-9]{1,9}", position.strip()):
        raise RequestError(
            f"constraint {part.strip()!r}",
            expected="a position of at least 0 before the colon",
            got=position.strip()[:80] or "nothing",
        )
    return _checked(int(position), word)


def _checked(position: int, word: str) -> tuple[int, str]:
    if type(position) is not int or position < 0:
        raise RequestError(
            f"constraint {position!r}:{word}", expected="an integer position of at least 0", got=repr(position)
        )
    if not isinstance(word, str) or not word.strip():
        raise RequestError(f"constraint {position}:", expected="a word after the colon", got="nothing")
    return position, word.strip()
