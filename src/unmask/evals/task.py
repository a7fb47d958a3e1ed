"""What a benchmark is: where its items come from, how one is asked, and how an answer is judged.

Enters: records of a data file, or a generator's. Leaves: `Question`s for the runner, and a `Verdict` for each answer. A
benchmark is one file in `evals/tasks/` and one catalog line (kind "task"): a frozen dataclass whose fields are its
configuration, so that `gsm8k(shots=5)` is a spec like any other. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Kind = Literal["generate", "code", "choice"]
"""generate: text is written and compared; code: text is written and run in the sandbox; choice: candidates are scored
by their likelihood."""

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}, as chat templates take it."""


@dataclass(frozen=True)
class Item:
    """One problem. id: unique and stable within the task and its data; fields: the record, as the file has it."""

    id: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Data:
    """Items with their source: where they came from, and a SHA-256 of the bytes (or of a generator's settings)."""

    items: tuple[Item, ...]
    source: str
    sha256: str
    shots: tuple[Item, ...] = ()
    """Items that worked examples may be taken from, never scored."""


@dataclass(frozen=True)
class Question:
    """How an item is put to a model.

    Args:
        messages: the conversation for a chat template, ending with a user message; empty when there is raw text only.
        text: the same as raw text for a base model.
        until: the answer is cut at the first of these strings.
        choices: continuations to be scored (kind "choice"), with the space that stands before them.
        contexts: what stands before each choice, if that differs (WinoGrande); else `text` stands before all.
        suffix: text that stands after the answer and is part of the canvas (infilling); the answer is then as long as
            `span` in tokens, which is all that `span` may be used for.
        begun: how the answer begins: it stands behind the prompt, in the assistant's turn of a conversation, and the
            judged answer is what comes after it.
    """

    text: str
    messages: tuple[Message, ...] = ()
    until: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    suffix: str = ""
    span: str = ""
    begun: str = ""

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(context, continuation) of each choice, as a likelihood scorer takes them."""
        before = self.contexts or (self.text,) * len(self.choices)
        return tuple(zip(before, self.choices, strict=True))


@dataclass(frozen=True)
class Verdict:
    """A judged answer.

    Args:
        scores: named numbers in [0, 1]; the task's `metric` is among them.
        extracted: what was read out of the answer, None if nothing was found.
        program: kind "code" only, the program that the sandbox must run; the score is then the sandbox's.
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    extracted: str | None = None
    program: str | None = None


class Task(Protocol):
    """A benchmark. All methods are pure: same arguments, same result. How many worked examples it shows is one of its
    own fields (`gsm8k(shots=5)`)."""

    @property
    def kind(self) -> Kind: ...

    @property
    def metric(self) -> str:
        """Name of the score that the task is known by."""
        ...

    @property
    def max_tokens(self) -> int:
        """Length of an answer as published."""
        ...

    @property
    def default_shots(self) -> int:
        """Worked examples as published."""
        ...

    def load(self, data: str | None, split: str) -> Data:
        """Items from a local file or directory, from the hub by the task's own name (None), or from a generator.

        Raises:
            InputError: a file that is missing, malformed (with its line) or of another benchmark.
        """
        ...

    def question(self, item: Item, shots: Sequence[Item]) -> Question:
        """An item as a question. shots: `Data.shots` as loaded, of which the task shows those it is configured to."""
        ...

    def judge(self, item: Item, answer: str) -> Verdict:
        """An answer text, already cut at `until`."""
        ...

    def judge_choice(self, item: Item, values: Sequence[float]) -> Verdict:
        """Kind "choice": log-likelihoods of `Question.choices` in nats, in their order."""
        ...
