"""Text of a growing settled prefix, piece by piece, never half a character.

Enters: the whole settled prefix, as often as it grows. Leaves: the text that is new and will not change any more.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.text.codec import Codec

BROKEN = "\ufffd"


class Detokenizer:
    """For one answer. `push(ids)` takes the settled prefix so far; `finish()` gives what was held back.

    Only a short window is decoded again: from the start of the last tokens that gave text, so that the words before
    decide about a leading space as they do in the whole text.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._window = 0
        self._read = 0

    def push(self, settled: Sequence[int]) -> str:
        """New text; "" while the last character is incomplete."""
        self._ids.extend(settled[len(self._ids) :])
        new = self._new()
        if new.endswith(BROKEN):
            return ""
        self._advance(new)
        return new

    def finish(self) -> str:
        """What is left, a broken last character shown as U+FFFD."""
        new = self._new()
        self._advance(new)
        return new

    def _new(self) -> str:
        before = self._codec.decode(self._ids[self._window : self._read])
        return self._codec.decode(self._ids[self._window :])[len(before) :]

    def _advance(self, new: str) -> None:
        if new:
            self._window = self._read
        self._read = len(self._ids)
