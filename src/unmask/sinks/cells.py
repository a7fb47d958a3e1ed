"""How one token looks: its visible form, and the level its confidence belongs to. Shared by the terminal and the
pictures.

Colours follow the LLaDA demo: masked grey, newly revealed red, orange or green by confidence (below 0.3, below 0.7,
else), earlier tokens blue. Every level has a shape as well, so that nothing depends on seeing colours.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from typing import Literal

Piece = Callable[[int], str]
Level = Literal["low", "middle", "high"]

LOW, HIGH = 0.3, 0.7
"""Bounds of the three confidence levels."""

EARLIER = "#6699CC"
COLOURS: dict[Level, str] = {"low": "#FF6666", "middle": "#FFAA33", "high": "#66CC66"}
BARS: dict[Level, str] = {"low": "▁", "middle": "▄", "high": "█"}
ASCII_BARS: dict[Level, str] = {"low": "-", "middle": "=", "high": "#"}

END = re.compile(r"<\|(eos|endoftext|end_of_text|eot_id|im_end)\|>|</s>")
"""Names of the tokens that end a text or a turn: long, frequent, and always the same."""

_VISIBLE = {"\n": "↵", "\r": "←", "\t": "⇥", " ": "␣"}
_ASCII = {"\n": "\\n", "\r": "\\r", "\t": "\\t", " ": "_"}


def share(confidence: float) -> float:
    """A confidence as a number from 0 to 1: a negative one is a negative entropy, its exponential 1 / choices left."""
    if math.isnan(confidence):
        return 0.0
    return math.exp(confidence) if confidence < 0 else min(confidence, 1.0)


def level(confidence: float) -> Level:
    """The level of a confidence."""
    value = share(confidence)
    return "low" if value < LOW else "middle" if value < HIGH else "high"


def label(piece: str, ascii_only: bool = False) -> str:
    """A token as one visible word: the space before a word is dropped, other white space and control signs drawn."""
    if END.fullmatch(piece):
        return "$" if ascii_only else "∎"
    word = piece[1:] if piece.startswith(" ") and piece.strip() else piece
    table = _ASCII if ascii_only else _VISIBLE
    word = "".join(table.get(c, c) for c in word)
    word = "".join("?" if unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") else c for c in word)
    word = "".join(c for c in word if unicodedata.category(c) not in ("Cf", "Zl", "Zp"))
    if ascii_only:
        word = word.encode("ascii", "replace").decode()
    return word or ("-" if ascii_only else "∅")


def width(text: str) -> int:
    """Columns of a text in a terminal: wide signs take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, columns: int, more: str = "…") -> str:
    """The text cut or filled to exactly so many columns."""
    if width(text) > columns:
        kept = ""
        for c in text:
            if width(kept + c) > columns - len(more):
                break
            kept += c
        text = kept + more
    return text + " " * (columns - width(text))
