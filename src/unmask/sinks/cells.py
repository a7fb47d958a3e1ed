"""How one token looks: its visible form, and the level its confidence belongs to. Shared by the terminal and the
pictures.

The colours of the levels are in `palettes`; every level has a shape as well, so that nothing depends on seeing colours.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Literal

Piece = Callable[[int], str]
Level = Literal["low", "middle", "high"]

LOW, HIGH = 0.3, 0.7
"""Bounds of the three confidence levels."""

BARS: dict[Level, str] = {"low": "▁", "middle": "▄", "high": "█"}
ASCII_BARS: dict[Level, str] = {"low": "-", "middle": "=", "high": "#"}

END = re.compile(r"<\|(eos|endoftext|end_of_text|eot_id|im_end)\|>|</s>")
"""Names of the tokens that end a text or a turn: long, frequent, and always the same."""

_SPECIAL = re.compile(r"<\|[^<>|]*\|>|</?s>|\[/?INST\]")
_ROLE = re.compile(r"(system|user|assistant)\s*(\n|$)")
"""What chat templates put around a message."""

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


def message(ids: Iterable[int], piece: Piece) -> str:
    """The last message of a prompt, on one line, without the chat template around it."""
    parts = [part.lstrip() for part in _SPECIAL.split("".join(piece(i) for i in ids if i >= 0))]
    lines = [" ".join(_ROLE.sub("", part, count=1).split() if _ROLE.match(part) else part.split()) for part in parts]
    line = next((line for line in reversed(lines) if line), "")
    return "".join(c for c in line if not unicodedata.category(c).startswith("C"))


def harmless(text: str) -> str:
    """A name or an error of a recording on one line, without signs that steer a terminal or turn its writing around."""
    line = " ".join(text.split())
    return "".join("?" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in line)


def joins(sign: str) -> bool:
    """Whether a sign is drawn over the one before it: accents, vowel signs, variation selectors."""
    return unicodedata.category(sign) in ("Mn", "Me")


def width(text: str) -> int:
    """Columns of a text in a terminal: wide signs take two, those that join the one before them none."""
    return sum(0 if joins(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


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
