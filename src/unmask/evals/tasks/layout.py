"""A question with its worked examples, as raw text and as a conversation, in lm-eval's layout.

Enters: questions and answers as text, and the items that examples may be taken from. Leaves: a `Question`. Needs no
torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Literal

from unmask.core.errors import ConfigError
from unmask.evals.task import Item, Kind, Message, Question, Verdict

Turns = Literal["multi", "single"]
"""How worked examples enter a conversation: one turn each (lm-eval's `--fewshot_as_multiturn`), or all in the one user
message, as Fast-dLLM's LLaDA adapter applies the template."""
Worked = Sequence[tuple[str, str]]
"""(question, answer) of each worked example."""
Pick = Literal["first", "lm_eval"]
"""Which worked examples: the first ones for every item, or those that lm-eval's default sampler draws for each."""
PICK_HELP = "which: the first ones for every item, or those that lm-eval draws for each item with its seed"
_FEWSHOT_SEED = 1234
"""lm-eval's default `fewshot_random_seed`."""


def needed(shots: int, pick: Pick) -> int | None:
    """How many items to load for worked examples; None: all, to draw from."""
    return None if pick == "lm_eval" and shots else shots


def worked(pool: Sequence[Item], shots: int, pick: Pick, item: Item) -> Sequence[Item]:
    """The worked examples of an item, whose "row" is its place in the data."""
    if pick == "first" or not shots:
        return pool[:shots]
    if len(pool) < shots:
        raise ConfigError("worked examples to draw from", expected=f"at least {shots}", got=str(len(pool)))
    row = int(item.fields["row"])
    return [pool[i] for i in draws(len(pool), shots, 1 << row.bit_length())[row]]


@cache
def draws(pool: int, shots: int, rows: int) -> list[list[int]]:
    """lm-eval's draws for the first `rows` items: one generator for the whole task, one draw an item in order."""
    rng = random.Random(_FEWSHOT_SEED)
    return [rng.sample(range(pool), shots) for _ in range(rows)]


def asked(
    question: str, worked: Worked = (), *, head: str = "", between: str = " ", turns: Turns = "multi"
) -> Question:
    """The question after its worked examples.

    Args:
        head: a description before everything; in a conversation it is the system message.
        between: what stands between a worked question and its answer in raw text.
    """
    body = "".join(f"{q}{between}{a}\n\n" for q, a in worked) + question
    system = [message("system", head)] if head else []
    if turns == "single":
        return Question(head + body, (*system, message("user", body)))
    pairs = [m for q, a in worked for m in (message("user", q), message("assistant", a))]
    return Question(head + body, (*system, *pairs, message("user", question)))


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


class Written:
    """What all tasks share whose answers are texts."""

    kind: ClassVar[Kind] = "generate"

    def judge_choice(self, item: Item, values: Sequence[float]) -> Verdict:
        raise TypeError(f"{self}: {item.id} is answered by a text, not by likelihoods")
