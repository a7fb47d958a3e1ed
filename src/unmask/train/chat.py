"""Conversations as training rows: the tokenizer's own chat template writes them, the answers are found in the result.

Enters: messages `{"role", "content"}` and a codec. Leaves: ids, and the spans of what the assistant says, each with its
end-of-turn token. The ids before an answer are exactly those that decoding would start from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from unmask.core.errors import ConfigError, RequestError
from unmask.text.codec import Codec
from unmask.train.batch import Span

Message = Mapping[str, str]
_TOKEN = 64  # characters in which a special token's name fits


@dataclass(frozen=True)
class Conversation:
    """ids, and where in them the assistant speaks."""

    ids: tuple[int, ...]
    answers: tuple[Span, ...]


def encode_conversation(codec: Codec, messages: Sequence[Message], eos: int) -> Conversation:
    """The conversation up to the end of the assistant's last turn; what follows it is dropped.

    Args:
        eos: ends the last turn of a template that writes no end-of-turn token.

    Raises:
        ConfigError: no assistant in it, or a template under which a turn cannot be found; quotes the record.
    """
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if not turns:
        raise _refused(messages, "at least one message of the role assistant", "none")
    if turns[0] == 0:
        raise _refused(messages, "a message before the assistant's first", "an assistant that begins")
    try:
        whole = codec.render_chat(messages[: turns[-1] + 1], add_generation_prompt=False)
        heads = [codec.render_chat(messages[:i]) for i in turns]
    except RequestError as error:
        raise _refused(messages, "messages that the chat template takes", str(error)) from None
    cuts: list[int] = []
    closed = True
    for i, head in zip(turns, heads, strict=True):
        stop, closed = _turn(codec, whole, head, messages, i)
        cuts += [len(head), stop]
    ids, places = encode_at(codec, whole[: cuts[-1]], cuts)
    if not closed:
        ids.append(eos)
        places[-1] = len(ids)
    return Conversation(tuple(ids), tuple(zip(places[::2], places[1::2], strict=True)))


def encode_at(codec: Codec, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Ids of a text, and where in them each cut (a character, ascending) falls. No token spans a cut."""
    pieces = [codec.encode(text[a:b]) for a, b in pairwise((0, *cuts, len(text)))]
    ids = [i for piece in pieces for i in piece]
    if ids == codec.encode(text):
        return ids, list(accumulate(len(piece) for piece in pieces[:-1]))
    return _encode_by_heads(codec, text, cuts)


def _encode_by_heads(codec: Codec, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int]]:
    """The same, slower, where a piece on its own has other ids than inside the text."""
    ids: list[int] = []
    places: list[int] = []
    start, rest = 0, codec.encode(text)
    for cut in cuts:
        head = codec.encode(text[start:cut])
        if rest[: len(head)] == head:
            places.append(len(ids) + len(head))
            continue
        # a token would span the cut: both sides on their own, as they are when the prompt is encoded without the answer
        ids += head
        places.append(len(ids))
        start, rest = cut, codec.encode(text[cut:])
    return ids + rest, places


def _turn(codec: Codec, whole: str, head: str, messages: Sequence[Message], i: int) -> tuple[int, bool]:
    """Where turn `i` ends in `whole`, and whether a special token ends it."""
    if not whole.startswith(head):
        what = f"a chat template that writes message {i} behind the prompt it ends with when the assistant is to answer"
        raise _refused(messages, what, "another text there")
    rest, content = whole[len(head) :], messages[i]["content"]
    if rest.startswith(content):
        stop = len(content)
    else:  # templates trim
        stop = _blank(rest) + len(content.strip())
        if rest[_blank(rest) : stop] != content.strip():
            raise _refused(messages, f"a chat template that writes message {i} as it is", f"{rest[:40]!r}")
    after = rest[stop:]
    blank = _blank(after)
    first = codec.encode(after[blank : blank + _TOKEN])[:1]
    if first and first[0] in codec.special_ids:
        return len(head) + stop + blank + len(codec.decode(first, skip_special=False)), True
    return len(head) + stop, False


def _blank(text: str) -> int:
    """White space in front."""
    return len(text) - len(text.lstrip())


def _refused(messages: Sequence[Message], expected: str, got: str) -> ConfigError:
    first = messages[0]
    said = first["content"] if len(first["content"]) <= 60 else first["content"][:57] + "..."
    remedy = "correct or remove the record, or use kind: pairs"
    return ConfigError(
        f"the record that begins with {first['role']}: {said!r}", expected=expected, got=got, remedy=remedy
    )
