"""Parent and child on the same held-out prompts: what an adaptation kept, and what it bought.

Enters: two loaded models and prompts with known answers. Leaves: one `Side` per model and strategy and the paired
difference of each child from its parent. The models take turns chunk by chunk: their clocks see the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from unmask.core.errors import ConfigError
from unmask.evals.intervals import paired_difference, wilson
from unmask.pipeline import Model
from unmask.pipeline.ask import Prompt

CHUNK = 64
CHILD = {"threshold 0.9": {"policy": "threshold(0.9)"}, "1 per forward": {"policy": "low_confidence(steps=100000)"}}


@dataclass(frozen=True)
class Question:
    """A prompt (text or chat messages), its reference answer, and the test an answer must pass."""

    prompt: Prompt
    answer: str
    check: Callable[[str], bool]


@dataclass
class Side:
    """One model under one strategy.

    Args:
        accuracy: share of the answers that pass; low, high: its 95 % Wilson interval.
        same: share of the answers that equal the parent's text.
        tokens: visible tokens in all; forwards: of all answers (prefill included); seconds: wall time of all.
        difference: accuracy minus the parent's; least: its lower one-sided 95 % bound on the same prompts.
    """

    label: str
    n: int
    accuracy: float
    low: float
    high: float
    same: float
    tokens: int
    forwards: int
    seconds: float
    difference: float | None = None
    least: float | None = None

    @property
    def tokens_per_forward(self) -> float:
        return self.tokens / max(1, self.forwards)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / max(1e-9, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"tokens_per_forward": self.tokens_per_forward, "tokens_per_s": self.tokens_per_s}


@dataclass
class _Tally:
    texts: list[str] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    tokens: int = 0
    forwards: int = 0
    seconds: float = 0.0

    def add(self, model: Model, questions: Sequence[Question], options: Mapping[str, Any]) -> None:
        begun = time.perf_counter()
        answers = model.generate([q.prompt for q in questions], **options)
        self.seconds += time.perf_counter() - begun
        for question, answer in zip(questions, answers if isinstance(answers, list) else [answers], strict=True):
            self.texts.append(answer.text)
            self.right.append(question.check(answer.text))
            self.tokens += answer.completion_tokens
            self.forwards += answer.nfe


def compare(
    parent: Model,
    child: Model,
    questions: Sequence[Question],
    max_tokens: int | None = None,
    strategies: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Side]:
    """The parent first (left to right if it is autoregressive, else its recommended settings), then the child.

    Args:
        max_tokens: room for an answer; None takes each checkpoint's own.
        strategies: label -> keywords of `Model.generate` for the child; None takes threshold 0.9 and one token per
            forward.

    Raises:
        ConfigError: no questions.
    """
    if not questions:
        raise ConfigError("side by side", expected="at least one held-out prompt", got="none")
    room = {} if max_tokens is None else {"gen_length": max_tokens}
    ways = {"parent": (parent, room)} | {
        f"child, {name}": (child, {**room, **options}) for name, options in (strategies or CHILD).items()
    }
    tallies = {label: _Tally() for label in ways}
    for at in range(0, len(questions), CHUNK):
        for label, (model, options) in ways.items():
            tallies[label].add(model, questions[at : at + CHUNK], options)
    return [_side(label, tally, tallies["parent"]) for label, tally in tallies.items()]


def _side(label: str, tally: _Tally, parent: _Tally) -> Side:
    n, correct = len(tally.right), sum(tally.right)
    low, high = wilson(correct, n)
    same = sum(a == b for a, b in zip(tally.texts, parent.texts, strict=True)) / n
    side = Side(label, n, correct / n, low, high, same, tally.tokens, tally.forwards, tally.seconds)
    if tally is not parent:
        side.difference, side.least, _ = paired_difference(parent.right, tally.right)
    return side


def table(sides: Sequence[Side]) -> str:
    """Markdown: quality beside speed."""
    lines = [
        "| | prompts | accuracy | 95 % interval | against the parent (95 % at least) | same text "
        "| tokens per forward | tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for s in sides:
        against = "" if s.difference is None else f"{100 * s.difference:+.1f} points ({100 * (s.least or 0.0):+.1f})"
        lines.append(
            f"| {s.label} | {s.n} | {s.accuracy:.1%} | {s.low:.1%} to {s.high:.1%} | {against} | {s.same:.1%} "
            f"| {s.tokens_per_forward:.2f} | {s.tokens_per_s:.0f} |"
        )
    return "\n".join(lines)
