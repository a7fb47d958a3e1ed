"""Recommended settings of a checkpoint: the family's published guidance, or the checkpoint's own `unmask.json`.

`unmask.json` = {"recommended": {field of Recommended: value, ...}}; what it names wins over the family's word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from unmask.core import catalog
from unmask.core.errors import CheckpointError, SpecError
from unmask.core.spec import split
from unmask.models.family import Config, Family, Recommended
from unmask.models.weights import read_json

FILE = "unmask.json"
DEFAULT_TOKENS = 128
OWN_FIELDS = {f.name for f in fields(Recommended)} - {"alternatives"}


def recommended(
    family: Family, config: Config, *, chat: bool, max_tokens: int | None = None, directory: Path | None = None
) -> Recommended:
    """Settings for this checkpoint and answer length.

    Args:
        chat: the checkpoint has a chat template (Instruct); Base otherwise.
        max_tokens: answer tokens; None takes the checkpoint's own number, or 128.
        directory: where the checkpoint may carry `unmask.json`.

    Raises:
        CheckpointError: an `unmask.json` that names unknown fields, specs or wrong types.
    """
    own = read_own(directory) if directory is not None else {}
    wanted = max_tokens or own.get("gen_length") or DEFAULT_TOKENS
    paced = bool(own.keys() & {"policy", "steps"})
    if max_tokens is not None and not paced:
        own.pop("gen_length", None)  # the family knows the steps of every length
    settings = replace(family.recommended(config, chat, wanted), **own)
    if max_tokens is not None and paced and max_tokens != settings.gen_length:
        settings = _scaled(settings, max_tokens)
    return settings


def _scaled(own: Recommended, tokens: int) -> Recommended:
    """A checkpoint's own settings for another length: as many tokens per step as it asks for."""
    steps = max(1, round(own.steps * tokens / own.gen_length))
    name, args, options = split(own.policy)
    if "steps" not in options:
        return replace(own, gen_length=tokens, steps=steps)
    written = [repr(a) for a in args] + [f"{k}={v!r}" for k, v in (options | {"steps": steps}).items()]
    return replace(own, gen_length=tokens, steps=steps, policy=f"{name}({', '.join(written)})")


def read_own(directory: Path) -> dict[str, Any]:
    """The checked "recommended" table of a checkpoint's `unmask.json`; empty when there is none."""
    path = directory / FILE
    if not path.is_file():
        return {}
    return check_own(read_json(path).get("recommended", {}), f"{path}: recommended")


def check_own(table: Any, where: str) -> dict[str, Any]:
    """The checked values of a "recommended" table.

    Raises:
        CheckpointError: unknown fields, specs or wrong types; `where` says whose they are.
    """
    if not isinstance(table, Mapping):
        raise CheckpointError(where, expected="an object", got=type(table).__name__)
    unknown = sorted(set(table) - OWN_FIELDS)
    if unknown:
        raise CheckpointError(where, expected=f"keys of: {', '.join(sorted(OWN_FIELDS))}", got=", ".join(unknown))
    return {key: _checked(f"{where}.{key}", key, value) for key, value in table.items()}


def _checked(what: str, key: str, value: Any) -> Any:
    if key in {"gen_length", "steps", "block_length"}:
        if type(value) is not int or value < 1:
            raise CheckpointError(what, expected="an integer from 1", got=repr(value))
        return value
    if key == "sampling":
        if not isinstance(value, Mapping) or not all(v is None or isinstance(v, int | float) for v in value.values()):
            raise CheckpointError(what, expected="option names with numbers, true, false or null", got=repr(value))
        return value
    if key == "known_issues":
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise CheckpointError(what, expected="a list of sentences", got=repr(value))
        return tuple(value)
    if not isinstance(value, str):
        raise CheckpointError(what, expected="text", got=repr(value))
    return _spec(what, key, value)


def _spec(what: str, key: str, value: str) -> str:
    if key in {"schedule", "policy", "cache"}:
        try:
            catalog.find(key, split(value)[0])
        except SpecError as error:
            raise CheckpointError(
                what, expected=f"a {key} spec", got=f"{value!r} ({error})", remedy=error.remedy
            ) from error
    return value
