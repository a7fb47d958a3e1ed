"""The bridge to lm-evaluation-harness: our models as its model object, and the launch lines of published scripts.

Enters: a model, and how it is to decode and score. Leaves: an object for `lm_eval.simple_evaluate`, or finished
results. lm-eval is an optional package (extra `harness`) and is imported in this folder only, when it is asked for.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from unmask.core.errors import ConfigError

if TYPE_CHECKING:
    from unmask.evals.harness.model import HarnessModel
    from unmask.pipeline import Model

OLDEST = (0, 4, 8)
"""The oldest lm-eval with which this works."""
OLDEST_WITH_5 = (0, 4, 10)
"""The oldest that transformers 5 can be beside: earlier ones import names that it no longer has."""
BROKEN = ("0.4.9.2",)
"""Versions that fail on every task file outside their own folder."""


def require() -> str:
    """The version of the installed lm-eval.

    Raises:
        ConfigError: there is none, or it is too old, here or for the installed transformers.
    """
    expected = f"version {_text(OLDEST)} or later, but not {', '.join(BROKEN)}"
    remedy = "pip install 'unmask[harness]'"
    try:
        found = version("lm-eval")
    except PackageNotFoundError:
        raise ConfigError("lm-eval", expected=expected, got="none here", remedy=remedy) from None
    if _numbers(found) < OLDEST or found in BROKEN:
        raise ConfigError("lm-eval", expected=expected, got=found, remedy=remedy)
    beside = version("transformers")
    if _numbers(found) < OLDEST_WITH_5 and _numbers(beside) >= (5,):
        raise ConfigError(
            "lm-eval", expected=f"version {_text(OLDEST_WITH_5)} or later beside transformers {beside}", got=found,
            remedy="pip install -U lm-eval, or pip install 'transformers<5'",
        )  # fmt: skip
    return found


def _numbers(found: str) -> tuple[int, ...]:
    return tuple(int(n) for n in found.split(".")[:3] if n.isdigit())


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def wrap(model: Model, **given: Any) -> HarnessModel:
    """A model for `lm_eval.simple_evaluate(model=wrap(model), tasks=...)`; keywords are the fields of `Bridge`."""
    require()
    from unmask.evals.harness.bridge import Bridge
    from unmask.evals.harness.model import HarnessModel

    return HarnessModel(model, Bridge(**given))
