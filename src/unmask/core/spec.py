"""Strategies as values: frozen dataclasses that validate themselves and are written as specs, "threshold(0.9)".

`@component(name)` makes such a dataclass, `option` declares a field with its default, range and one line of help, and
`parse` turns a spec string into the registered object (literal arguments only, nothing is evaluated).
"""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, TypeVar, dataclass_transform

from unmask.core.errors import SpecError

T = TypeVar("T")
MOST = 1 << 20
"""A longer answer, or more steps, is a slip of the finger; no model reaches it."""


def option(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    help: str = "",
) -> Any:
    """A field of a component. `low` and `high` are inclusive bounds, `above` an exclusive lower one."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "above": above, "help": help})


@dataclass_transform(frozen_default=True, field_specifiers=(option,))
def component(name: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: a frozen, validated dataclass whose repr is its spec."""

    def wrap(cls: type[T]) -> type[T]:
        own = cls.__dict__.get("__post_init__")

        def __post_init__(self: Any) -> None:
            check(self)
            if own is not None:
                own(self)

        cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
        cls.__repr__ = describe  # type: ignore[method-assign]
        cls.spec_name = name  # type: ignore[attr-defined]
        return dataclasses.dataclass(frozen=True, repr=False)(cls)

    return wrap


def describe(obj: Any) -> str:
    """The spec of a component: its name and the arguments that differ from the defaults."""
    args = [
        f"{f.name}={getattr(obj, f.name)!r}"
        for f in dataclasses.fields(obj)
        if f.default is dataclasses.MISSING or getattr(obj, f.name) != f.default
    ]
    return f"{obj.spec_name}({', '.join(args)})" if args else str(obj.spec_name)


def check(obj: Any) -> None:
    """Types and ranges of every field, as declared; whole numbers are accepted for floats."""
    kind: Any = type(obj)
    hints = _hints(kind)
    for f in dataclasses.fields(obj):
        value, where = getattr(obj, f.name), f"{obj.spec_name}: {f.name}"
        value = _checked(value, hints[f.name], where)
        object.__setattr__(obj, f.name, value)
        _check_range(value, f, where)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _check_range(value: Any, f: dataclasses.Field[Any], where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    low, high, above = (f.metadata.get(k) for k in ("low", "high", "above"))
    wrong = value != value or (low is not None and value < low) or (high is not None and value > high)
    if wrong or (above is not None and value <= above):
        raise SpecError(
            where, expected=range_words(f) or "a number", got=repr(value), remedy=f.metadata.get("help", "")
        )


def range_words(f: dataclasses.Field[Any]) -> str:
    """The allowed range of a field in words, "" when it has none."""
    low, high, above = (f.metadata.get(k) for k in ("low", "high", "above"))
    words = [f"> {above:g}" if above is not None else "", f">= {low:g}" if low is not None else ""]
    words.append(f"<= {high:g}" if high is not None else "")
    return " and ".join(w for w in words if w)


def _checked(value: Any, hint: Any, where: str) -> Any:
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    for kind in options:
        if kind is type(None) and value is None:
            return None
        if typing.get_origin(kind) is Literal and value in typing.get_args(kind):
            return value
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if kind in (int, str, bool) and type(value) is kind:
            return value
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(value)
    raise SpecError(where, expected=_words(options), got=repr(value))


def _words(options: tuple[Any, ...]) -> str:
    words: list[str] = []
    for kind in options:
        if typing.get_origin(kind) is Literal:
            words += [repr(v) for v in typing.get_args(kind)]
        else:
            words.append("None" if kind is type(None) else getattr(kind, "__name__", str(kind)))
    return " or ".join(words)


def split(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """ "dual(refresh=4)" -> ("dual", [], {"refresh": 4}); literals only.

    Raises:
        SpecError: the text is not a name or a call with literal arguments.
    """
    form = "a name or name(arguments), such as threshold(0.9) or blocks(length=32)"
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise SpecError(f"strategy {text!r}", expected=form, got="text that does not parse") from None
    if isinstance(node, ast.Name):
        return node.id, [], {}
    if (
        not isinstance(node, ast.Call)
        or not isinstance(node.func, ast.Name)
        or any(k.arg is None for k in node.keywords)
    ):
        raise SpecError(f"strategy {text!r}", expected=form)
    try:
        args = [ast.literal_eval(a) for a in node.args]
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (ValueError, TypeError, SyntaxError):
        raise SpecError(
            f"strategy {text!r}", expected="literal arguments (numbers, strings, True, False, None)"
        ) from None
    return node.func.id, args, kwargs


def build(cls: type[T], args: list[Any], kwargs: dict[str, Any]) -> T:
    """The component from parsed arguments; unknown or doubled ones are refused with the list of fields."""
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    spec_name = str(cls.spec_name)  # type: ignore[attr-defined]
    if len(args) > len(names):
        raise SpecError(spec_name, expected=f"at most {len(names)} arguments", got=str(len(args)))
    bound = dict(zip(names, args, strict=False))
    for key, value in kwargs.items():
        if key not in names:
            known = ", ".join(names) or "none"
            raise SpecError(f"{spec_name}: argument {key!r} is unknown", expected=f"one of: {known}", got=key)
        if key in bound:
            raise SpecError(f"{spec_name}: argument {key!r} is given twice")
        bound[key] = value
    needed = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in bound
    ]
    if needed:
        raise SpecError(f"{spec_name}: missing argument", expected=", ".join(needed), got="nothing")
    return cls(**bound)
