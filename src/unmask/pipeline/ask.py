"""What a user asks for besides the prompt, checked once, and the forms a prompt may have.

Enters: keyword arguments. Leaves: a frozen `Ask` (length, template, seeds, stops, constraints, decoding options) and
the prompts as a list.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any, get_args, get_type_hints

from unmask.core.errors import ConfigError, RequestError
from unmask.engine.options import DecodeOptions

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""A text, ids, or chat messages."""

SEED_LIMIT = 1 << 63
BYTES = (bytes, bytearray, memoryview)
"""Sequences of integers that are no ids."""


@dataclass(frozen=True)
class Ask:
    """Everything about a request but its prompt.

    Args:
        chat: use the chat template (True), or not (False); None follows the checkpoint.
        system: a system message before the prompt; needs the template.
        max_tokens: answer tokens; None takes the checkpoint's own number, or 128.
        seed: of the first sample; sample k has seed + k, whatever the other prompts are.
        samples: answers per prompt.
        stop: texts that end an answer and are not part of it.
        constraints: words fixed in the answer, "3:apple, 7:pear" or {3: "apple"}.
        template: the answer's text with free spans, "The[[4]] sat on the[[3]]."; its length is the answer's.
        options: how to decode; None everywhere follows the checkpoint.
    """

    chat: bool | None = None
    system: str | None = None
    max_tokens: int | None = None
    seed: int = 0
    samples: int = 1
    stop: str | Sequence[str] = ()
    constraints: str | Mapping[int, str] = ""
    template: str | None = None
    options: DecodeOptions = field(default_factory=DecodeOptions)

    def __post_init__(self) -> None:
        self._check_types()
        if self.max_tokens is not None:
            whole("max_tokens", self.max_tokens, 1)
        if self.options.gen_length is not None:
            whole("gen_length", self.options.gen_length, 1)
        whole("samples", self.samples, 1)
        whole("seed", self.seed, 0, SEED_LIMIT - self.samples)
        if self.system is not None and self.chat is False:
            raise RequestError("system", expected="a chat template to put it in", got="the raw form")
        if self.template is not None and self.constraints:
            raise RequestError(
                "constraints",
                expected="a template or constraints",
                got="both",
                remedy="Write the words into the template.",
            )
        _check_kinds(self.options)
        length = self.options.gen_length
        if None not in (self.max_tokens, length) and self.max_tokens != length:
            raise RequestError(
                "answer length", expected="max_tokens or gen_length", got=f"{self.max_tokens} and {length}"
            )

    def _check_types(self) -> None:
        """Refuses arguments of a type that would fail, or mean nothing, later on."""
        words: list[tuple[str, Any, tuple[type, ...], str]] = [
            ("options", self.options, (DecodeOptions,), "DecodeOptions"),
            ("profile", getattr(self.options, "profile", ""), (str,), "the name of a profile"),
            ("chat", self.chat, (bool, NoneType), "True, False or None"),
            ("system", self.system, (str, NoneType), "a text"),
            ("stop", self.stop, (str, list, tuple, set), "a text or a list of texts"),
            ("constraints", self.constraints, (str, Mapping), '"3:apple, 7:pear" or {3: "apple"}'),
            ("template", self.template, (str, NoneType), "a text with free spans"),
        ]
        for name, value, kinds, expected in words:
            if not isinstance(value, kinds):
                raise RequestError(name, expected=expected, got=repr(value)[:80])

    @property
    def length(self) -> int | None:
        """The answer length asked for, None if nothing was said."""
        return self.max_tokens if self.max_tokens is not None else self.options.gen_length

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings; a single text is one of them."""
        return (self.stop,) if isinstance(self.stop, str) and self.stop else tuple(self.stop)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Ask:
        """From keyword arguments: fields of `Ask` and, beside them, fields of `DecodeOptions` by name.

        Raises:
            ConfigError: an unknown name.
        """
        own, decode = {f.name for f in fields(cls)}, {f.name for f in fields(DecodeOptions)}
        for name in given:
            if name not in own | decode:
                near = difflib.get_close_matches(name, own | decode, n=2)
                remedy = f"Did you mean {' or '.join(near)}?" if near else ""
                raise ConfigError(
                    f"option {name!r}", expected=f"one of: {', '.join(sorted(own | decode))}", got=name, remedy=remedy
                )
        ask = cls(**{k: v for k, v in given.items() if k in own})
        options = replace(ask.options, **{k: v for k, v in given.items() if k in decode})
        return replace(ask, options=options)


def _check_kinds(options: DecodeOptions) -> None:
    """Refuses options of the wrong type, and numbers that are no numbers."""
    hints = get_type_hints(DecodeOptions)
    for name, value in options.said().items():
        kind = next(k for k in get_args(hints[name]) if k is not NoneType)
        if not (_is_number(value) if kind is float else type(value) is kind):
            wanted = {float: "a number", int: "an integer", bool: "True or False", str: "text"}[kind]
            raise ConfigError(name.replace("_", "-"), expected=wanted, got=repr(value)[:80])


def _is_number(value: Any) -> bool:
    """A finite number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An integer of at least `low`, or a RequestError."""
    if type(value) is not int or value < low or (high is not None and value > high):
        limit = "" if high is None else f" to {high}"
        raise RequestError(name, expected=f"an integer from {low}{limit}", got=repr(value))
    return value


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """Prompts as a list, and whether one was given. A list of texts is many, a list of ids or messages is one.

    Raises:
        RequestError: neither a text nor a list, an empty list, or a list of something else.
    """
    form = "a text, ids, chat messages, or a list of them"
    if isinstance(prompts, str):
        return [prompts], True
    if not isinstance(prompts, Sequence) or isinstance(prompts, BYTES):
        raise RequestError("prompt", expected=form, got=f"{type(prompts).__name__} {str(prompts)[:60]!r}")
    if not prompts:
        raise RequestError("prompt", expected=form, got="an empty list")
    if isinstance(prompts[0], int | Mapping):
        return [prompts], True  # type: ignore[list-item]
    for index, one in enumerate(prompts):
        if not isinstance(one, Sequence) or isinstance(one, BYTES):
            raise RequestError(f"prompt {index}", expected=form, got=f"{type(one).__name__} {str(one)[:60]!r}")
    return list(prompts), False  # type: ignore[arg-type]
