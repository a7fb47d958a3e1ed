"""From YAML to typed dataclasses: one strict reader for every recipe.

Enters: plain dicts and lists as YAML gives them, and a dataclass. Leaves: an instance. Unknown keys, wrong types and
missing values are refused with their full name and near names; a section with a `kind` key picks its dataclass from a
table.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from unmask.core.errors import ConfigError

T = TypeVar("T")


def build(cls: type[T], raw: Any, where: str) -> T:
    """An instance of dataclass `cls` from the mapping `raw`; `where` is the section's name for messages."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where or 'the recipe'} is not a mapping", expected="key: value lines", got=_shown(raw))
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            raise unknown_key(_join(where, str(key)), list(fields))
    hints = typing.get_type_hints(cls)
    values = {key: convert(hints[key], value, _join(where, key)) for key, value in raw.items()}
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and name not in values:
            raise ConfigError(f"{_join(where, name)} is missing", expected=_type_name(hints[name]))
    return cls(**values)


def unknown_key(name: str, known: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=3)
    remedy = f"did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(f"unknown key {name}", expected="one of " + ", ".join(known), remedy=remedy)


def convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `kind`; whole numbers pass for floats, nothing else is bent."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        if value not in args:
            raise ConfigError(
                f"{where} has an unknown value", expected="one of " + ", ".join(map(str, args)), got=_shown(value)
            )
        return value
    if origin in (Union, types.UnionType):
        return _union(args, value, where)
    if origin is tuple:
        return _tuple(args, value, where)
    if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, int]):
        if not isinstance(value, Mapping):
            raise _wrong(kind, value, where)
        return {convert(args[0], k, where): convert(args[1], v, _join(where, str(k))) for k, v in value.items()}
    if _is_tagged(kind):
        return _tagged({kind.kind: kind}, value, where)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)  # type: ignore[arg-type]
    return _scalar(kind, value, where)


def _union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None:
        if type(None) in args:
            return None
        raise ConfigError(f"{where} is empty", expected=" or ".join(map(_type_name, args)))
    rest = [a for a in args if a is not type(None)]
    tagged: dict[str, Any] = {a.kind: a for a in rest if _is_tagged(a)}
    if tagged:
        return _tagged(tagged, value, where)
    if isinstance(value, Mapping):  # the dataclass that shares most keys is the one that was meant
        rest.sort(key=lambda a: -len(set(value) & set(getattr(a, "__dataclass_fields__", ()))))
        return convert(rest[0], value, where)
    errors = []
    for arg in rest:
        try:
            return convert(arg, value, where)
        except ConfigError as e:
            errors.append(e)
    raise errors[0]


def _is_tagged(kind: Any) -> bool:
    """A dataclass whose `kind` is a constant of the class, not one of its fields."""
    return (
        dataclasses.is_dataclass(kind)
        and hasattr(kind, "kind")
        and all(f.name != "kind" for f in dataclasses.fields(kind))
    )


def _tagged(tagged: Mapping[str, Any], value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is not a mapping", expected="a section with a `kind`", got=_shown(value))
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in tagged:
        raise ConfigError(f"{where}.kind is unknown", expected="one of " + ", ".join(tagged), got=_shown(kind))
    return build(tagged[kind], {k: v for k, v in value.items() if k != "kind"}, where)


def _tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} is not a list", expected="[a, b, ...]", got=_shown(value))
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(value) != len(args):
        raise ConfigError(f"{where} has {len(value)} entries", expected=str(len(args)))
    return tuple(convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        try:
            value = float(value)  # YAML 1.1 reads 4e-3 as text
        except ValueError:
            raise _wrong(kind, value, where) from None
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    if kind in (int, float, str, bool) and type(value) is kind and not (kind is float and not math.isfinite(value)):
        return value
    raise _wrong(kind, value, where)


def _wrong(kind: Any, value: Any, where: str) -> ConfigError:
    return ConfigError(f"{where} has the wrong type", expected=_type_name(kind), got=_shown(value))


def _type_name(kind: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        Path: "a path",
        type(None): "nothing",
    }
    if kind in names:
        return names[kind]
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_type_name, get_args(kind)))
    return getattr(kind, "__name__", None) or str(kind)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
