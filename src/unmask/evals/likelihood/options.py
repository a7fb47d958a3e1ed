"""How a likelihood is made: the method, how much noise is drawn, and when to stop. Checked once, here."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from unmask.core.errors import ConfigError

METHODS = {
    "auto": "exact for autoregressive models, else bound",
    "exact": "autoregressive: the chain rule, one forward",
    "bound": "masked models: unbiased Monte-Carlo bound; block models: the sum over the blocks",
    "all_masks": "the same bound without noise: every set of masks; for answers (or blocks) of a few tokens",
    "left_to_right": "the chain rule of writing one token after the other from the left; no noise",
    "llada": "LLaDA's published estimate to the letter (its rounding prefers even counts)",
    "dream": "Dream's published estimate: levels instead of counts, EOS appended, the ends never masked",
    "strategy": "what a decoding strategy gives: its schedule, its order, its cache",
}
STILL = ("exact", "all_masks", "left_to_right", "strategy")
"""Methods that draw nothing."""
FEW = 12
"""Tokens of an answer, or of a block, up to which every set of masks may be computed (4095 of them)."""
MC_NUM, MOST = 128, 8192
"""Draws in all: the published number, and the most that a wanted error may cost unless `mc_num` says otherwise."""


@dataclass(frozen=True)
class Scoring:
    """Options of `log_likelihood`.

    Args:
        method: one of `METHODS`. What each value is:
            exact: log p of an autoregressive model. bound: a lower bound on log p in expectation: each draw masks k of
            the n answer tokens, k uniform in 1..n, and weighs the log-probabilities of the masked ones by n / k; on a
            block model per block, with the prompt and the earlier blocks clean, summed over the blocks. It is the mean
            of log p over all orders of writing, so it equals log p where the model's conditionals fit together.
            all_masks: the expectation of bound itself, from every set of masks.
            left_to_right: log p of one order of writing, each token with the ones after it masked; on a block model
            the open block only. Equal to exact at block size 1, and to Dream's `ar_ftb`.
        mc_num: draws in all, a multiple of `batch`; None is 128. With `error`, the most that may be drawn (8192).
        batch: draws of a round: they share one stratification.
        error: stop as soon as the standard error is at most this many nats.
        min_rounds: rounds before `error` may stop; an error estimated from fewer is not to be trusted.
        seed: of the noise, together with the ids: a pair gets the same draws in any company.
        cfg_scale: classifier-free guidance in LLaDA's scale, 0 is off; the other half has the prompt masked.
        greedy: also check whether greedy decoding writes this answer (masked models: the most confident token first,
            one forward per token).
        forward_tokens: rows of one forward, at most (one canvas always goes).
    """

    method: str = "auto"
    mc_num: int | None = None
    batch: int = 16
    error: float | None = None
    min_rounds: int = 8
    seed: int = 0
    cfg_scale: float = 0.0
    greedy: bool = False
    forward_tokens: int = 16384

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            near = difflib.get_close_matches(str(self.method), METHODS, n=1)
            remedy = f"Did you mean {near[0]}?" if near else ""
            raise ConfigError("method", expected=f"one of: {', '.join(METHODS)}", got=str(self.method), remedy=remedy)
        for name, low in (("batch", 1), ("min_rounds", 2), ("seed", 0), ("forward_tokens", 1)):
            _whole(name, getattr(self, name), low)
        if self.mc_num is not None:
            _whole("mc_num", self.mc_num, 1)
        if not _number(self.cfg_scale) or self.cfg_scale < 0:
            raise ConfigError("cfg_scale", expected="a number of at least 0", got=repr(self.cfg_scale))
        if self.error is not None and not (_number(self.error) and self.error > 0):
            raise ConfigError("error", expected="a number above 0, in nats", got=repr(self.error))
        if type(self.greedy) is not bool:
            raise ConfigError("greedy", expected="True or False", got=repr(self.greedy))
        if self.draws % self.batch and self.method != "dream":
            raise ConfigError("mc_num", expected=f"a multiple of batch ({self.batch})", got=str(self.draws))
        if self.error is not None and self.rounds < self.min_rounds:
            got = f"{self.draws} draws in rounds of {self.batch}"
            raise ConfigError("mc_num", expected=f"room for min_rounds ({self.min_rounds}) rounds", got=got)

    @property
    def draws(self) -> int:
        """Draws in all, or the most with a wanted error; the defaults are rounded up to whole rounds."""
        if self.mc_num is not None:
            return self.mc_num
        least = MC_NUM if self.error is None else max(MOST, self.min_rounds * self.batch)
        return math.ceil(least / self.batch) * self.batch

    @property
    def rounds(self) -> int:
        """Rounds in all, or the most."""
        return max(self.draws // self.batch, 1)

    @property
    def words(self) -> str:
        """The same for a reader; noise is named where there may be some."""
        said = [f"method {self.method}"]
        if self.method not in STILL:
            most = "" if self.error is None else f"an error of {self.error:g} nats, at most "
            said.append(f"{most}{self.draws} draws in rounds of {self.batch}")
        said += [f"guidance {self.cfg_scale:g}"] if self.cfg_scale else []
        return ", ".join(said + (["greedy check"] if self.greedy else []))

    @classmethod
    def of(cls, given: Mapping[str, Any], base: Scoring | None = None) -> Scoring:
        """From keyword arguments, the rest as in `base`.

        Raises:
            ConfigError: an unknown name, or a value out of range.
        """
        names = [f.name for f in fields(cls)]
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                remedy = f"Did you mean {near[0]}?" if near else ""
                raise ConfigError(f"option {name!r}", expected=f"one of: {', '.join(names)}", got=name, remedy=remedy)
        return cls(**given) if base is None else replace(base, **given)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(name: str, value: Any, low: int) -> None:
    if type(value) is not int or value < low:
        raise ConfigError(name, expected=f"an integer of at least {low}", got=repr(value))
