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


def require() -> str:
    """The version of the installed lm-eval.

    Raises:
        ConfigError: there is none, or it is too old.
    """
    oldest = ".".join(map(str, OLDEST))
    remedy = "pip install 'unmask[harness]'"
    try:
        found = version("lm-eval")
    except PackageNotFoundError:
        raise ConfigError("lm-eval", expected=f"version {oldest} or later", got="none here", remedy=remedy) from None
    if tuple(int(n) for n in found.split(".")[:3] if n.isdigit()) < OLDEST:
        raise ConfigError("lm-eval", expected=f"version {oldest} or later", got=found, remedy=remedy)
    return found


def wrap(model: Model, **given: Any) -> HarnessModel:
    """A model for `lm_eval.simple_evaluate(model=wrap(model), tasks=...)`; keywords are the fields of `Bridge`."""
    require()
    from unmask.evals.harness.bridge import Bridge
    from unmask.evals.harness.model import HarnessModel

    return HarnessModel(model, Bridge(**given))
