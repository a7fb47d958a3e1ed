"""Which strategies are compared: a grid per kind of model, specs of the user, or a file.

Enters: a model and the user's words. Leaves: `Candidate`s, the exact baseline first: one token per forward with a cache
that changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from unmask.core import catalog
from unmask.core.errors import ConfigError
from unmask.engine.options import DecodeOptions
from unmask.engine.options_file import options_from
from unmask.engine.profiles import kind_of
from unmask.evals.synthetic_eval import EXACT, ONE_PER_STEP
from unmask.evals.synthetic_eval import grid as synthetic_grid
from unmask.pipeline import Model

BASELINE = {
    "canvas": "1 token/step",
    "recurrent": "1 token/step",
    "block": "1 token/step",
    "autoregressive": "left to right",
}
"""The policy's name in the baseline's label, by the kind of model."""
WHOLE_PARTS = "blocks(32)"
"""Blocks beside a recommended whole canvas, on which a cache of blocks has nothing to keep."""


@dataclass(frozen=True)
class Candidate:
    """A strategy with its name. baseline: the exact one, with which the others are compared."""

    label: str
    options: DecodeOptions
    baseline: bool = False

    @property
    def key(self) -> str:
        """A folder name: the label in plain signs, and a hash of the options."""
        said = json.dumps({"profile": self.options.profile, **self.options.said()}, sort_keys=True)
        words = re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")[:40].strip("-")
        return f"{words or 'strategy'}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def own_schedule(model: Model, tokens: int) -> str | None:
    """The checkpoint's recommended schedule with its length; None where a model has no choice."""
    if model.traits.mask_id is None:
        return None
    advice = model.recommended(tokens)
    takes = {f.name for f in fields(catalog.parse("schedule", advice.schedule))}
    bare = "(" not in advice.schedule and "length" in takes
    return f"{advice.schedule}({advice.block_length})" if bare else advice.schedule


def baseline(model: Model, tokens: int) -> Candidate:
    """One token per forward on the checkpoint's schedule, with the cheapest cache that is exact."""
    kind, schedule = kind_of(model.traits), own_schedule(model, tokens)
    cache = EXACT[kind]
    if kind == "autoregressive":
        return Candidate(f"{BASELINE[kind]}, {cache}", DecodeOptions(cache=cache), True)
    options = DecodeOptions(schedule=schedule, cache=cache, policy=ONE_PER_STEP["policy"])
    return Candidate(f"{BASELINE[kind]}, {cache}", options, True)


def grid(model: Model, tokens: int) -> list[Candidate]:
    """The default, as in `unmask eval synthetic --grid`: thresholds and factors times the caches of this kind."""
    own, found = own_schedule(model, tokens), []
    for schedule in (own, WHOLE_PARTS) if own == "whole" else (own,):
        chosen = {} if schedule is None else {"schedule": schedule}
        shown = "" if schedule == own else f", {schedule}"
        for label, options in synthetic_grid(model).items():
            if schedule != "whole" or options["cache"] == "none":
                found.append(_of(label + shown, **chosen, **options))
    return with_baseline(model, tokens, found)


def combine(
    model: Model,
    tokens: int,
    policies: Sequence[str] = (),
    caches: Sequence[str] = (),
    schedules: Sequence[str] = (),
) -> list[Candidate]:
    """Every named policy with every cache and schedule; an axis without a name has one value: the checkpoint's own
    schedule, the exact cache; policies without a name are one token per step.

    Raises:
        SpecError, ConfigError: an unknown name, or a choice that the model does not have.
    """
    kind, own = kind_of(model.traits), own_schedule(model, tokens)
    for axis, given in (("policy", policies), ("cache", caches), ("schedule", schedules)):
        for text in given:
            catalog.parse(axis, text)
    if own is None and (policies or schedules):
        raise ConfigError(
            "--policy and --schedule on an autoregressive model", expected="--cache only",
            got=", ".join([*policies, *schedules]), remedy="It writes left to right, one token per forward.",
        )  # fmt: skip
    found: list[Candidate] = []
    nothing: list[str | None] = [None]
    for policy in [*policies] or nothing:
        for schedule in [*schedules] or nothing:
            for cache in caches or [EXACT[kind]]:
                chosen: dict[str, Any] = {"policy": policy or ONE_PER_STEP["policy"], "schedule": schedule or own}
                words = [policy or BASELINE[kind], cache, *([schedule] if schedule else [])]
                found.append(_of(", ".join(words), cache=cache, **({} if own is None else chosen)))
    return with_baseline(model, tokens, found)


def read_file(path: str | Path) -> list[Candidate]:
    """Strategies of a YAML or TOML file: name -> decoding options; without the baseline.

    Raises:
        ConfigError: a file that cannot be read, or a strategy that is none.
    """
    table = _table(Path(path))
    found = []
    for label, options in table.items():
        where = f"{path}: {label}"
        if not isinstance(options, Mapping) or not options:
            raise ConfigError(where, expected="decoding options, such as policy: threshold(0.9)", got=repr(options))
        if not isinstance(label, str) or not label.strip() or not label.isprintable():
            raise ConfigError(f"{path}", expected="a name of printable signs for every strategy", got=repr(label))
        found.append(Candidate(label, options_from(options, where)))
    if not found:
        raise ConfigError(f"{path}", expected="name -> options for at least one strategy", got="none")
    return found


def _table(path: Path) -> Mapping[Any, Any]:
    try:
        text = path.read_text("utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"--strategies {path}", expected="a file", got=(error.strerror or "").lower()) from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--strategies {path}", expected="YAML, or TOML in a .toml file", got=str(error)) from None
    if not isinstance(found, Mapping):
        raise ConfigError(f"--strategies {path}", expected="name -> options", got=type(found).__name__)
    return found


def _of(label: str, **options: Any) -> Candidate:
    return Candidate(label, DecodeOptions(**options))


def with_baseline(model: Model, tokens: int, found: Sequence[Candidate]) -> list[Candidate]:
    """The baseline first, every set of options once, every label once.

    Raises:
        ConfigError: one name for two strategies.
    """
    first = baseline(model, tokens)
    kept, labels = {first.options: first}, {first.label}
    for candidate in found:
        if candidate.options in kept:
            continue
        if candidate.label in labels:
            raise ConfigError("strategies", expected="every name once", got=f"{candidate.label!r} twice")
        kept[candidate.options] = replace(candidate, baseline=False)
        labels.add(candidate.label)
    return list(kept.values())
