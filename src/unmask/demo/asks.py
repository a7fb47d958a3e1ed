"""What a page asks for: JSON in, a checked request out.

Enters: the body of a POST. Leaves: `Asked` (the prepared request, whose it is, whether it wants to be alone), or an
`InputError` that names the field. Nothing here runs the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unmask.core.errors import RequestError
from unmask.engine.options import DecodeOptions
from unmask.pipeline.ask import Ask, Prompt, whole
from unmask.pipeline.model import Model
from unmask.pipeline.request import Prepared, prepare_one

FIELDS = ("messages", "prompt", "template", "constraints", "max_tokens", "seed", "stop", "settings", "client", "alone")
ROLES = ("system", "user", "assistant")
SETTABLE = frozenset(f.name for f in dataclasses.fields(DecodeOptions)) - {"gen_length", "profile"}
"""Settings a page may send; published profiles are for the command line, where their quirks can be compared."""
TURNS = 1000
DIGITS = 9
"""Of a position; more than any canvas has places."""
CLIENT = 64
"""The longest name of a client."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. tokens: positions of the answer; forwards: of a policy that counts its steps;
    body: bytes of a POST."""

    tokens: int
    forwards: int
    body: int

    @classmethod
    def of(cls, model: Model, tokens: int | None = None) -> Limits:
        """The model's own limits, or fewer tokens."""
        most = max(model.traits.max_len - 1, 1)
        tokens = most if tokens is None else min(tokens, most)
        return cls(tokens, max(4 * tokens, 256), (1 << 16) + 32 * model.traits.max_len)


@dataclass(frozen=True)
class Asked:
    """A checked request of a page."""

    prepared: Prepared
    client: str
    alone: bool


def read(body: Any, model: Model, limits: Limits, id: str) -> Asked:
    """The request of this body.

    Raises:
        InputError: an unknown field, a wrong type, or anything that the model cannot decode.
    """
    if not isinstance(body, Mapping):
        raise RequestError("body", expected="a JSON object", got=type(body).__name__)
    unknown = sorted(set(body) - set(FIELDS))
    if unknown:
        raise RequestError(
            f"field {unknown[0]!r}", expected=f"one of: {', '.join(FIELDS)}", got=", ".join(map(str, unknown))[:200]
        )
    prompt, chat = _prompt(body, model)
    settings = _settings(body.get("settings"))
    asked = {name: body[name] for name in ("max_tokens", "seed", "template", "stop") if body.get(name) is not None}
    for name in ("max_tokens", "seed"):  # a form has them among its settings
        if name in settings:
            asked.setdefault(name, settings.pop(name))
    if "max_tokens" in asked:
        whole("max_tokens", asked["max_tokens"], 1, limits.tokens)
    ask = Ask.of({**asked, "chat": chat, "constraints": _constraints(body.get("constraints")), **settings})
    prepared = prepare_one(model, prompt, ask, id)
    _check_size(prepared, limits)
    return Asked(prepared, _client(body.get("client")), _flag("alone", body.get("alone", False)))


def _prompt(body: Mapping[str, Any], model: Model) -> tuple[Prompt, bool]:
    """The prompt, and whether it goes through the chat template."""
    messages, prompt = body.get("messages"), body.get("prompt")
    if messages is not None and prompt is not None:
        raise RequestError("prompt", expected="messages or prompt", got="both")
    if messages is not None:
        return _messages(messages), True
    if prompt is None and body.get("template") is None:
        raise RequestError("prompt", expected="messages, prompt or template", got="none of them")
    if not isinstance(prompt, str | None):
        raise RequestError("prompt", expected="a text", got=type(prompt).__name__)
    return prompt or "", False


def _messages(messages: Any) -> list[Mapping[str, str]]:
    if not isinstance(messages, list) or not messages or len(messages) > TURNS:
        got = f"{len(messages)} of them" if isinstance(messages, list) else type(messages).__name__
        raise RequestError("messages", expected=f"a list of 1 to {TURNS} messages", got=got)
    for n, message in enumerate(messages):
        what = f"message {n + 1}"
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise RequestError(what, expected="an object with role and content", got=repr(message)[:80])
        if message["role"] not in ROLES:
            raise RequestError(f"{what}: role", expected=f"one of: {', '.join(ROLES)}", got=repr(message["role"])[:80])
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise RequestError(f"{what}: content", expected="a text", got=repr(message["content"])[:80])
    if messages[-1]["role"] != "user":
        raise RequestError("messages", expected="a last message of the user", got=f"one of the {messages[-1]['role']}")
    return messages


def _settings(settings: Any) -> dict[str, Any]:
    """Settings that were said: empty ones follow the checkpoint."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise RequestError("settings", expected="an object of names and values", got=type(settings).__name__)
    unknown = sorted(str(name) for name in settings if name not in SETTABLE | {"max_tokens", "seed"})
    if unknown:
        known = ", ".join(sorted(SETTABLE | {"max_tokens", "seed"}))
        raise RequestError(f"setting {unknown[0]!r}", expected=f"one of: {known}", got=", ".join(unknown)[:200])
    return {name: value for name, value in settings.items() if value is not None and value != ""}


def _constraints(given: Any) -> str | dict[int, str]:
    if given is None:
        return ""
    if isinstance(given, str):
        return given
    if not isinstance(given, Mapping):
        raise RequestError("constraints", expected='"3:apple, 7:pear" or {"3": "apple"}', got=type(given).__name__)
    for position in given:
        if not isinstance(position, str) or not (position.isascii() and position.isdigit() and len(position) <= DIGITS):
            raise RequestError("constraints", expected="positions from 0 on", got=repr(position)[:80])
    found = {int(position): word for position, word in given.items()}
    if len(found) < len(given):
        raise RequestError("constraints", expected="one word at a position", got=", ".join(given)[:80])
    return found


def _check_size(prepared: Prepared, limits: Limits) -> None:
    request = prepared.request
    tokens = len(request.canvas) - request.prompt_len
    if tokens > limits.tokens:
        raise RequestError("answer length", expected=f"at most {limits.tokens} tokens here", got=str(tokens))
    steps = {f.name: getattr(request.strategy.policy, f.name) for f in dataclasses.fields(request.strategy.policy)}  # type: ignore[arg-type]
    if isinstance(steps.get("steps"), int) and steps["steps"] > limits.forwards:
        raise RequestError("steps", expected=f"at most {limits.forwards} here", got=str(steps["steps"]))


def _client(name: Any) -> str:
    if name is None:
        return ""
    if not isinstance(name, str) or len(name) > CLIENT:
        raise RequestError("client", expected=f"a text of at most {CLIENT} signs", got=repr(name)[:80])
    return name


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise RequestError(name, expected="true or false", got=repr(value)[:80])
    return value
