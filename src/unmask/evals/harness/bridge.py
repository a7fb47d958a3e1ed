"""How requests of lm-eval are answered: everything about it but the model. Needs no lm-eval.

Enters: options of a command line, of Python, or of a published script. Leaves: a frozen `Bridge`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from unmask.core.errors import ConfigError
from unmask.engine.options import DecodeOptions
from unmask.evals.likelihood import Scoring

DEFAULT_TOKENS = 256
"""Length of an answer where neither the user nor the task says one: lm-eval's own number."""


@dataclass(frozen=True)
class Bridge:
    """Options of a `HarnessModel`.

    Args:
        options: how answers are decoded. max_tokens: their length; None takes the task's `max_gen_toks`.
        scoring: how likelihoods are made.
        batch: answers decoded together. seed: every answer has its own, made from it, its task and its document.
        cut: end answers at the task's stop strings.
        bos: raw text begins with the tokenizer's first token.
        wrap: put a raw prompt as a whole into one user message of the chat template.
        boxed: ask for a boxed answer in GSM8K and MATH prompts, as Fast-dLLM v2's script does.
        whole_code: never cut the answers of HumanEval, as Fast-dLLM's script does for Instruct checkpoints.
        first_token: likelihood as in Fast-dLLM v2's script: of the first token alone, the others visible.
        max_length: longer prompts are cut on the left; None takes the model's own limit.
        published: named after a script: the task's sampling options are not followed, as there.
    """

    options: DecodeOptions = field(default_factory=DecodeOptions)
    max_tokens: int | None = None
    scoring: Scoring = field(default_factory=Scoring)
    batch: int = 8
    seed: int = 0
    cut: bool = True
    bos: bool = False
    wrap: bool = False
    boxed: bool = False
    whole_code: bool = False
    first_token: bool = False
    max_length: int | None = None
    published: str = ""

    def __post_init__(self) -> None:
        for name, low in (("max_tokens", 1), ("batch", 1), ("seed", 0), ("max_length", 2)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < low):
                raise ConfigError(name.replace("_", "-"), expected=f"an integer from {low}", got=repr(value))
