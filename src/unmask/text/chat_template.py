"""Chat templates of checkpoints, rendered as transformers renders them, in jinja's immutable sandbox.

Enters: a template's source, messages `{"role", "content"}`, the named special tokens. Leaves: the text to encode.
A template is a program from a stranger: it sees the messages and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from unmask.core.errors import CheckpointError, RequestError

Message = Mapping[str, str]


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_show"), [], [], body).set_lineno(line)

    def _show(self, caller: Any) -> Any:
        return caller()


def render(
    source: str, messages: Sequence[Message], special: Mapping[str, Any], add_generation_prompt: bool = True
) -> str:
    """The text of a conversation, ready for the assistant's turn.

    Raises:
        RequestError: messages that are malformed, or that the template refuses.
        CheckpointError: a template that does not parse.
    """
    check_messages(messages)
    template = _compile(source)
    known = {"tools": None, "documents": None, **special}
    try:
        return template.render(
            messages=[dict(m) for m in messages], add_generation_prompt=add_generation_prompt, **known
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise RequestError("the chat template refused the messages", got=str(error) or type(error).__name__) from None


def check_messages(messages: Sequence[Message]) -> None:
    """Refuses an empty list and anything that is not a role with a text."""
    form = 'messages as {"role": "user", "content": "..."}'
    if not messages:
        raise RequestError("chat", expected=form, got="no message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise RequestError(f"chat message {i}", expected=form, got=repr(message)[:80])


@lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = _to_json
    env.globals["raise_exception"] = _refuse
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return env.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(
            "chat template", expected="valid jinja", got=f"line {error.lineno}: {error.message}"
        ) from None


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja's own filter escapes for HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
