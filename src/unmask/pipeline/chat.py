"""A conversation: messages in, answers out, one history rule per profile.

Default: every turn writes the whole message list through the template anew. `llada`, as the published chat keeps it: a
turn templates only the new message, drops its first id (BOS) after the first turn and appends to the running ids; after
the answer the history is the whole canvas without any EOS id, also inside the user's own text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, Literal

from unmask.core.errors import ConfigError, RequestError
from unmask.core.events import Event
from unmask.pipeline.ask import Ask, Prompt
from unmask.pipeline.generation import Generation, settled
from unmask.pipeline.model import Model
from unmask.pipeline.request import Prepared, need_codec, prepare_one

Rule = Literal["default", "llada"]


class ChatSession:
    """One conversation with one model.

    Args:
        system: a system message at its start.
        history_rule: how past turns reach the model, "default" or "llada".

    A turn that is cancelled (its iterator closed) leaves no trace: neither its question nor half an answer.
    """

    def __init__(self, model: Model, system: str | None = None, history_rule: Rule = "default") -> None:
        if history_rule not in ("default", "llada"):
            raise ConfigError("history rule", expected="default or llada", got=repr(history_rule))
        self.model, self.system, self.rule = model, system, history_rule
        self.messages: list[dict[str, str]] = []
        self.ids: list[int] = []
        self.last: Generation | None = None
        need_codec(model)

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        self.messages, self.ids, self.last = [], [], None

    def ask(self, text: str, **given: Any) -> Generation:
        """The answer to a message; keywords as in `Model.generate`."""
        for _ in self.stream(text, **given):
            pass
        assert self.last is not None
        return self.last

    def stream(self, text: str, **given: Any) -> Iterator[Event]:
        """Events of one turn; afterwards `last` is its answer. Input is checked before the first event."""
        if not isinstance(text, str):
            raise RequestError("message", expected="a text", got=repr(text)[:80])
        if not text.strip():
            raise RequestError("message", expected="a text", got="an empty one")
        ask = Ask.of(given)
        if ask.samples != 1 or ask.chat is False:
            got = "chat=False" if ask.chat is False else f"samples={ask.samples}"
            raise RequestError("message", expected="one answer, written by the chat template", got=got)
        prepared = prepare_one(self.model, *self._prompt(text, ask), f"turn-{len(self.messages) // 2}")
        return self._turn(text, prepared)

    def _turn(self, text: str, prepared: Prepared) -> Iterator[Event]:
        collect = self.model.collector([prepared])
        with closing(self.model.events([prepared])) as events:
            for event in events:
                collect(event)
                yield event
        self._keep(text, collect.generations[prepared.request.id])

    # ---- history -----------------------------------------------------------------------------------------------------

    def _prompt(self, text: str, ask: Ask) -> tuple[Prompt, Ask]:
        """The prompt of this turn, and the ask that goes with it."""
        system = self.system if ask.system is None else ask.system
        if self.rule == "llada":
            return self._running_ids(text, system), replace(ask, system=None)
        messages = [*self.messages, _message("user", text)]
        return messages, replace(ask, system=system, chat=True)

    def _running_ids(self, text: str, system: str | None) -> list[int]:
        first = not self.ids
        messages = [_message("system", system)] if first and system is not None else []
        new = need_codec(self.model).encode_chat([*messages, _message("user", text)])
        bos = need_codec(self.model).named("bos_token")
        return new if first else self.ids + (new[1:] if new[0] == bos else new)

    def _keep(self, text: str, answer: Generation) -> None:
        if self.rule == "llada":
            canvas = settled(answer.canvas.ids)
            shown = need_codec(self.model).decode(canvas[answer.prompt_tokens :])
            answer = replace(answer, text=shown)
            self.ids = [t for t in canvas if t not in self.model.traits.eos_ids[:1]]
        self.messages += [_message("user", text), _message("assistant", answer.text)]
        self.last = answer


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
