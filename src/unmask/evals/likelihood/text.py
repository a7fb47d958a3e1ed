"""Texts into the ids that are scored: where the prompt ends and the answer begins.

Enters: a model with a tokenizer and two texts. Leaves: prompt ids and answer ids. In the raw form the boundary is that
of the published harness adapters: spaces at the prompt's end go to the answer, both are encoded as one text, and the
answer is what lies behind the prompt's own ids.
"""

from __future__ import annotations

from unmask.core.errors import RequestError
from unmask.pipeline import Model
from unmask.pipeline.request import need_codec
from unmask.text.codec import Codec


def encode_pair(model: Model, prompt: str, answer: str, chat: bool = False) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the answer.

    Args:
        chat: the prompt is a user's turn in the checkpoint's template, and the answer follows the template's text.

    Raises:
        RequestError: no tokenizer, no template, or an answer that adds no token of its own.
    """
    codec = need_codec(model)
    if chat:
        return _split(codec, codec.render_chat([{"role": "user", "content": prompt}]), answer)
    bare = prompt.rstrip()
    return _split(codec, bare, prompt[len(bare) :] + answer)


def _split(codec: Codec, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    before = codec.encode(prompt)
    behind = codec.encode(prompt + answer)[len(before) :]
    if not behind:
        raise RequestError("answer", expected="at least one token behind the prompt's", got=repr(answer))
    return before, behind
