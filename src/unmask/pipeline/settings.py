"""From "nothing said" to a complete strategy: the user's word, then the checkpoint's, then the profile's default.

Enters: the user's options, the checkpoint's recommended settings, the answer length. Leaves: a `Strategy`, and a table
that says for every setting what it is and who decided it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from unmask.core import catalog, spec
from unmask.core.errors import CheckpointError, ConfigError
from unmask.engine.options import DecodeOptions
from unmask.engine.profiles import build

if TYPE_CHECKING:
    from unmask.core.types import Strategy, Traits
    from unmask.models.family import Recommended

GIVEN, CHECKPOINT, DEFAULT = "given", "checkpoint", "default"
SCHEDULE = ("schedule", "block_length", "small_block_size")
CACHE = ("cache", "use_cache", "dual_cache")
POLICY = ("policy", "steps", "threshold", "factor", "remasking", "alg", "alg_temp", "eps")
NUMBERS = ("steps", "threshold", "factor")
AXES = ("schedule", "policy")
SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class Settings:
    """A resolved strategy. table: setting -> "value (given | checkpoint | default)", ready to print."""

    strategy: Strategy
    gen_length: int
    table: dict[str, str]


def resolve(
    options: DecodeOptions, advice: Recommended, traits: Traits, family: str, gen_length: int, length_by: str
) -> Settings:
    """The strategy for one request.

    Args:
        advice: the checkpoint's recommended settings for this length; used by the default profile only.
        length_by: who decided the length: given, checkpoint or default.

    Raises:
        ConfigError, SpecError: options that are wrong or would have no effect.
    """
    said = set(options.said()) - {"gen_length"}
    if traits.mask_id is None:
        _refuse_for_autoregressive(options, said)
    merged, by_checkpoint = (
        (options, set()) if options.profile != "default" else _merge(options, advice, said, traits.mask_id is not None)
    )
    strategy = build(merged, traits, family, gen_length)
    who = dict.fromkeys(said, GIVEN) | dict.fromkeys(by_checkpoint - said, CHECKPOINT)
    return Settings(strategy, gen_length, _table(options, merged, strategy, who, f"{gen_length} ({length_by})"))


def _merge(options: DecodeOptions, advice: Recommended, said: set[str], paired: bool) -> tuple[DecodeOptions, set[str]]:
    """The user's options with the checkpoint's word where they are silent, and the names it decided.

    Schedule and policy are recommended as a pair. A number the pair has (steps, threshold, block length) is put into
    it; any other choice on these two axes replaces the pair. Not `paired`: the model leaves no choice on them.
    """
    pair = _pair(advice, options, said) if paired else {}
    found: dict[str, Any] = {**pair} if said & {*CACHE} else {**pair, "cache": advice.cache}
    unknown = sorted({*advice.sampling} - {f.name for f in fields(options)})
    if unknown:
        raise CheckpointError(
            "recommended.sampling of the checkpoint", expected="names of decoding options", got=", ".join(unknown)
        )
    sampling = {k: v for k, v in advice.sampling.items() if v is not None and k not in said and (pair or k in SAMPLING)}
    if options.temperature == 0:
        sampling = {k: v for k, v in sampling.items() if k not in SAMPLING}
    inside: dict[str, Any] = dict.fromkeys(("block_length", *NUMBERS)) if pair else {}
    decided = {*found, *sampling} | (set() if paired else {*AXES})
    return replace(options, **{**inside, **found, **sampling}), decided


def _pair(advice: Recommended, options: DecodeOptions, said: set[str]) -> dict[str, str]:
    """The recommended schedule and policy as specs with the user's numbers in them; {} if the user chose others."""
    schedule, policy = catalog.parse("schedule", advice.schedule), catalog.parse("policy", advice.policy)
    if said & ({*SCHEDULE, *POLICY} - {"block_length", *NUMBERS}):
        return {}
    in_schedule, in_policy = _names(schedule), _names(policy)
    if ("block_length" in said and "length" not in in_schedule) or not said & {*NUMBERS} <= in_policy:
        return {}
    sizes: dict[str, Any] = {}
    if "length" in in_schedule and ("block_length" in said or "(" not in advice.schedule):
        sizes["length"] = options.block_length if "block_length" in said else advice.block_length
    numbers = {n: getattr(options, n) for n in NUMBERS if n in said}
    if "steps" in in_policy - said and "(" not in advice.policy:
        numbers["steps"] = advice.steps
    return {"schedule": _with(advice.schedule, schedule, sizes), "policy": _with(advice.policy, policy, numbers)}


def _with(text: str, component: Any, changes: dict[str, Any]) -> str:
    """A spec with these arguments in it, also those that equal a default (what is not written is filled elsewhere)."""
    name, args, kwargs = spec.split(text)
    written = dict(zip((f.name for f in fields(component)), args, strict=False)) | kwargs | changes
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in written.items())})" if written else name


def spelled(component: Any) -> str:
    """The spec of a component with its arguments, defaults too unless they are "off"."""
    values = {f.name: getattr(component, f.name) for f in fields(component)}
    args = ", ".join(f"{name}={value!r}" for name, value in values.items() if value is not None and value is not False)
    return f"{component.spec_name}({args})" if args else str(component.spec_name)


def _names(component: Any) -> set[str]:
    return {f.name for f in fields(component)}


def _refuse_for_autoregressive(options: DecodeOptions, said: set[str]) -> None:
    chosen = sorted(said & {*SCHEDULE, *POLICY, "cfg_scale", "guidance_scale"})
    if chosen or options.profile != "default":
        got = ", ".join(chosen) or f"profile {options.profile}"
        raise ConfigError(
            "an autoregressive model",
            expected="no choice of schedule, policy or guidance",
            got=got,
            remedy="Leave it out: it writes left to right, one token per forward.",
        )


def _table(
    options: DecodeOptions, merged: DecodeOptions, strategy: Strategy, who: dict[str, str], length: str
) -> dict[str, str]:
    """Axis by axis: the component as its spec, and the strongest voice among the options that shaped it."""

    def source(*names: str) -> str:
        voices = {who.get(n, DEFAULT) for n in names}
        return next(v for v in (GIVEN, CHECKPOINT, DEFAULT) if v in voices)

    table = {
        "profile": f"{options.profile} ({DEFAULT if options.profile == 'default' else GIVEN})",
        "gen_length": length,
    }
    for axis, names in (("schedule", SCHEDULE), ("policy", POLICY), ("cache", CACHE)):
        table[axis] = f"{spelled(getattr(strategy, axis))} ({source(*names)})"
    if strategy.guidance is not None:
        table["guidance"] = f"{strategy.guidance!r} ({source('cfg_scale', 'guidance_scale')})"
    table["temperature"] = f"{strategy.sampling.temperature:g} ({source('temperature')})"
    rest = [n for n in who if n not in {*SCHEDULE, *POLICY, *CACHE, "cfg_scale", "guidance_scale", "temperature"}]
    table |= {n: f"{getattr(merged, n)} ({who[n]})" for n in rest}
    return table
