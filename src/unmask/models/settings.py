"""Typed reading of a published config: every value is checked for type and range, and refused by its key.

Enters: the dict of config.json and the class defaults of the published config class (a key that is absent has the
default of that class, not of the 8B checkpoint). Leaves: plain Python values or a `CheckpointError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unmask.core.errors import CheckpointError

SIZE_LIMIT = 1 << 24
"""No published model has a dimension above this; a larger number is a damaged config."""


class ConfigReader:
    """Reads keys of one config. `defaults` are the published class's own."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.config, self.defaults = config, defaults

    def value(self, key: str) -> Any:
        return self.config[key] if key in self.config else self.defaults.get(key)

    def refuse(self, key: str, expected: str, remedy: str = "") -> CheckpointError:
        got = repr(self.value(key))
        if key not in self.config:
            got = f"no such key (the class default is {got})"
        return CheckpointError(f"config.json: {key}", expected=expected, got=got, remedy=remedy)

    def count(self, key: str, low: int = 1, high: int = SIZE_LIMIT) -> int:
        value = self.value(key)
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(key, f"an integer from {low} to {high}")
        return value

    def count_or_none(self, key: str, low: int = 1, high: int = SIZE_LIMIT) -> int | None:
        return None if self.value(key) is None else self.count(key, low, high)

    def positive(self, key: str, high: float = math.inf) -> float:
        value = self.value(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 < value <= high:
            raise self.refuse(key, "a number above 0" + ("" if high == math.inf else f", at most {high:g}"))
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.value(key)
        if type(value) is not bool:
            raise self.refuse(key, "true or false")
        return value

    def flag_or_none(self, key: str) -> bool | None:
        return None if self.value(key) is None else self.flag(key)

    def must(self, key: str, *allowed: Any, why: str = "") -> None:
        """Refuses any other value: this format's other variants are not implemented."""
        value = self.value(key)
        if not any(type(value) is type(a) and value == a for a in allowed):
            words = {True: "true", False: "false", None: "null"}
            expected = " or ".join(words[a] if a is None or isinstance(a, bool) else repr(a) for a in allowed)
            raise self.refuse(key, expected, why)

    def token(self, key: str, vocab: int) -> int:
        return self.count(key, 0, vocab - 1)

    def token_or_none(self, key: str, vocab: int) -> int | None:
        return None if self.value(key) is None else self.token(key, vocab)

    def tokens(self, key: str, vocab: int) -> tuple[int, ...]:
        """An id, a list of ids, or null."""
        value = self.value(key)
        ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
        if not all(type(i) is int and 0 <= i < vocab for i in ids):
            raise self.refuse(key, f"an id, or a list of ids, from 0 to {vocab - 1}")
        return tuple(dict.fromkeys(ids))

    def divides(self, small: str, small_value: int, big: str, big_value: int) -> None:
        if big_value % small_value:
            raise CheckpointError(
                f"config.json: {big}", expected=f"a multiple of {small} = {small_value}", got=str(big_value)
            )


def refuse_common(reader: ConfigReader) -> None:
    """Keys that change the numbers in any family and are not implemented."""
    reader.must("quantization_config", None, why="Quantised checkpoints are not read; use the bf16, fp16 or fp32 one.")
    reader.must("clip_qkv", None)


def rope_theta(reader: ConfigReader) -> float:
    """The base of plain RoPE, from `rope_theta` or transformers 5's `rope_parameters`; any scaling is refused."""
    theta = reader.positive("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        table = reader.value(key)
        if table is None:
            continue
        if not isinstance(table, dict) or table.get("rope_type", table.get("type", "default")) != "default":
            raise reader.refuse(key, "null or rope_type 'default'", "RoPE scaling is not implemented.")
        unknown = sorted(set(table) - {"rope_type", "type", "rope_theta"})
        if unknown:
            raise reader.refuse(key, f"rope_type and rope_theta only (not {', '.join(unknown)})")
        if "rope_theta" in table:
            inner = ConfigReader(table, {}).positive("rope_theta")
            if "rope_theta" in reader.config and inner != theta:
                raise reader.refuse(key, f"the same rope_theta as the top level ({theta:g})")
            theta = inner
    return theta
