"""A conversation: messages in, answers out, one history rule per profile.

Default: every turn writes the whole message list through the template anew. `llada`, as the published chat keeps it: a
turn templates only the new message, drops its first id (BOS) after the first turn and appends to the running ids; after
the answer the history is the whole canvas without any EOS id, also inside the user's own text.

Where a cache keeps final rows (`block`, `sub_block` on block-causal models), a turn begins with those of the turn
before, as far as both begin with the same ids; answers are what they would be without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, Literal

from unmask.core.errors import ConfigError, RequestError
from unmask.core.events import Event
from unmask.engine.engine import Engine
from unmask.pipeline.ask import Ask, Prompt
from unmask.pipeline.generation import Generation, settled
from unmask.pipeline.model import Model
from unmask.pipeline.request import Prepared, need_codec, prepare_one

Rule = Literal["default", "llada"]
SESSION = "chat"
"""The only session of its engine."""


class ChatSession:
    """One conversation with one model.

    Args:
        system: a system message at its start.
        history_rule: how past turns reach the model, "default" or "llada".

    A turn that is cancelled (its iterator closed) leaves no trace: neither its question nor half an answer.

    Attributes:
        messages: the conversation; it may be edited between turns. last: the answer of the last turn.
        reused: leading tokens of the last turn that were not computed again.
    """

    def __init__(self, model: Model, system: str | None = None, history_rule: Rule = "default") -> None:
        if history_rule not in ("default", "llada"):
            raise ConfigError("history rule", expected="default or llada", got=repr(history_rule))
        self.model, self.system, self.rule = model, system, history_rule
        self.messages: list[dict[str, str]] = []
        self.ids: list[int] = []
        self.last: Generation | None = None
        self.reused = 0
        self._engine: Engine | None = None
        need_codec(model)

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        self.messages, self.ids, self.last, self._engine = [], [], None, None

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
        return self._turn(text, replace(prepared, request=replace(prepared.request, session=SESSION)))

    def _turn(self, text: str, prepared: Prepared) -> Iterator[Event]:
        collect, engine = self.model.collector([prepared]), self._take_engine(prepared)
        before = engine.stats.reused
        try:
            with closing(self.model.events([prepared], engine)) as events:
                for event in events:
                    self.reused = engine.stats.reused - before
                    collect(event)
                    yield event
        except GeneratorExit:  # closed between two forwards: what is stored is whole
            for _ in engine.run():  # the end of the cancelled turn is nobody's event
                pass
            self._put_engine(engine)
            raise
        self._put_engine(engine)
        self._keep(text, collect.generations[prepared.request.id])

    # ---- the engine between two turns --------------------------------------------------------------------------------

    def _take_engine(self, prepared: Prepared) -> Engine:
        """The engine of the turn before, or a new one. It is put back only after a turn that was not torn: an error or
        an interrupt within a forward may leave rows half written.
        """
        guidance = prepared.request.strategy.guidance
        lanes = 1 if guidance is None else guidance.lanes
        engine, self._engine = self._engine, None
        if engine is None or engine.slots != lanes or engine.denoiser is not self.model.denoiser:
            return Engine(self.model.denoiser, lanes)
        return engine

    def _put_engine(self, engine: Engine) -> None:
        """Keep the engine for the next turn if it kept anything; else its store is given back to the system."""
        self._engine = engine if engine.kept(SESSION) else None

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
