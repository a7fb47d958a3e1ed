"""Stop strings: where an answer ends because of what it says.

Enters: the settled prefix of an answer (ids). Leaves: how many of its tokens hold the first stop string completely, or
None. The text itself is cut exactly before the stop string with `cut`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from unmask.core.errors import RequestError
from unmask.text.codec import Codec


class StopStrings:
    """Looks for stop strings in decoded text and for stop tokens by id. Holds no state between calls.

    Args:
        strings: texts that end an answer; one that is a special token's name stops at that token.
        ids: tokens that end an answer (a turn's end).
        floor: such a token before this answer position ends nothing: given text still follows there.
    """

    def __init__(self, codec: Codec, strings: Iterable[str] = (), ids: Iterable[int] = (), floor: int = 0) -> None:
        self._codec, self._floor = codec, floor
        texts, tokens = [], set(ids)
        for text in strings:
            if not isinstance(text, str) or not text:
                raise RequestError("stop string", expected="a text of at least one character", got=repr(text))
            token = codec.token_id(text)
            if token is not None and token in codec.special_ids:
                tokens.add(token)
            else:
                texts.append(text)
        self.strings, self.ids = tuple(texts), frozenset(tokens)

    def __bool__(self) -> bool:
        return bool(self.strings or self.ids)

    def __call__(self, settled: Sequence[int]) -> int | None:
        """The number of tokens up to the end of the answer: a stop token is left out, a stop string is inside."""
        by_id = next((i for i, t in enumerate(settled) if t in self.ids and i >= self._floor), None)
        ids = settled if by_id is None else settled[:by_id]
        if not self._found(self._codec.decode(ids)):
            return by_id
        return bisect_left(range(len(ids) + 1), True, key=lambda n: self._found(self._codec.decode(ids[:n])))

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        ends = [at for s in self.strings if (at := text.find(s)) >= 0]
        return text[: min(ends)] if ends else text

    def visible(self, ids: Sequence[int]) -> int:
        """How many of the tokens carry the text before the stop string."""
        whole = self._codec.decode(ids)
        text = self.cut(whole)
        if len(text) == len(whole):
            return len(ids)
        return bisect_left(range(len(ids) + 1), True, key=lambda n: len(self._codec.decode(ids[:n])) >= len(text))

    def _found(self, text: str) -> bool:
        return any(s in text for s in self.strings)
