"""From user options to a strategy: the default profile, and the profiles that reproduce published behaviour.

A profile is a coordinate on the axes plus the published precision and quirks. Each builder takes the options it can
honour; what it cannot is an error here (`ignored` lists it for adapters of other projects' command lines, which only
warn).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from unmask.core import catalog, spec
from unmask.core.errors import ConfigError
from unmask.core.types import BlockCausal, Recurrent, Sampling, Strategy, Traits
from unmask.engine.options import COLDEST, HOTTEST, STRONGEST, DecodeOptions

BLOCK, SUB_BLOCK, THRESHOLD = 32, 8, 0.9
SWITCHES: dict[str, dict[tuple[str, ...], str]] = {
    "canvas": {("use_cache", "dual_cache"): "dual", ("use_cache",): "prefix"},
    "block": {("dual_cache",): "sub_block", ("use_cache",): "block"},
    "autoregressive": {("use_cache",): "block"},
    "recurrent": {("dual_cache",): "boundary", ("use_cache",): "boundary"},
}
"""Published switches -> the cache they mean on a kind of model; the first line whose switches are all given counts."""
LATENT = ("ddpm", "ddim", "dpmpp")
"""Policies that denoise vectors: they have a number of steps of their own, and the whole answer is one block."""
V2_PARTS = {"schedule": "v2_blocks", "policy": "v2_threshold", "cache": "v2_cache"}
"""Fast-dLLM v2's sampler: each part relies on the other two."""


class Said:
    """The given options; what a builder reads is ticked off, the rest has no effect."""

    def __init__(self, options: DecodeOptions) -> None:
        self.values, self.profile = options.said(), options.profile
        self.left = set(self.values) - {"gen_length"}

    def take(self, name: str, default: Any = None) -> Any:
        self.left.discard(name)
        return self.values.get(name, default)

    def has(self, name: str) -> bool:
        return name in self.values


def build(options: DecodeOptions, traits: Traits, family: str, gen_length: int) -> Strategy:
    """The strategy of these options on a model.

    Args:
        traits: of the model; family: its catalog name ("llada", "Dream", "qwen2" ...).
        gen_length: positions to decode, in tokens.

    Raises:
        ConfigError: an option without effect, or a combination the profile's reference refuses.
        SpecError: a bad strategy spec.
    """
    strategy, left = _build(options, traits, family, gen_length)
    if left:
        flags = ", ".join("--" + n.replace("_", "-") for n in sorted(left))
        raise ConfigError(
            f"options without effect: {flags}",
            expected=f"options that profile {options.profile} uses together",
            got=str(strategy),
        )
    return strategy


def ignored(options: DecodeOptions, traits: Traits, family: str, gen_length: int) -> tuple[str, ...]:
    """Given options that the profile does not use."""
    return tuple(sorted(_build(options, traits, family, gen_length)[1]))


def lenient(options: DecodeOptions, traits: Traits, family: str, gen_length: int) -> Strategy:
    """Like `build`, but options without effect are dropped (adapters warn about `ignored`)."""
    return _build(options, traits, family, gen_length)[0]


def _build(options: DecodeOptions, traits: Traits, family: str, gen_length: int) -> tuple[Strategy, set[str]]:
    maker: Callable[[Said, Traits, str, int], Strategy] = catalog.load("profile", options.profile)
    said = Said(options)
    strategy = maker(said, traits, family, gen_length)
    _check_v2_parts(strategy, traits, family)
    return strategy, said.left


# ---- the default profile ---------------------------------------------------------------------------------------------


def default(said: Said, traits: Traits, family: str, gen_length: int) -> Strategy:
    """float32 confidences, the mask id excluded, no empty pass, stop as soon as the answer is settled."""
    if traits.mask_id is None:
        return _autoregressive(said, traits)
    name, given = _policy_name(said, traits)
    policy = _fill("policy", name, given, said, {} if name in LATENT else {"steps": gen_length})
    schedule = _schedule(said, traits, "whole" if name in LATENT and traits.latent is not None else "blocks")
    cache = catalog.parse("cache", _cache(said, traits, "none"))
    return Strategy(schedule, policy, cache, _guidance(said), _sampling(said, traits))


def _autoregressive(said: Said, traits: Traits) -> Strategy:
    """Left to right, one position at a time, with the exact cache."""
    growing, policy = catalog.parse("schedule", "growing(1)"), catalog.parse("policy", "left_to_right")
    cache = catalog.parse("cache", _cache(said, traits, "block"))
    sampling = Sampling(said.take("temperature", 0.0), said.take("top_p"), said.take("top_k"))
    return Strategy(growing, policy, cache, None, _checked(sampling))


def _policy_name(said: Said, traits: Traits) -> tuple[str, str | None]:
    """The policy the options ask for, and its full spec when one was given."""
    if said.has("policy"):
        given = str(said.take("policy"))
        return spec.split(given)[0], given
    if said.has("remasking"):
        name = str(said.take("remasking"))
        if name not in ("low_confidence", "random"):
            raise ConfigError("remasking", expected="low_confidence or random", got=name)
        return name, None
    if said.has("alg"):
        return (
            ("threshold", None)
            if said.values["alg"] == "confidence_threshold" and said.take("alg")
            else ("dream", None)
        )
    by_steps, otherwise = ("low_confidence", "threshold") if traits.fills_masks else ("ddpm", "ddpm")
    for option, name in (("factor", "factor"), ("threshold", "threshold"), ("steps", by_steps)):
        if said.has(option):
            return name, None
    return otherwise, None


def _fill(kind: str, name: str, given: str | None, said: Said, defaults: dict[str, Any]) -> Any:
    """The component, its fields from its spec, then from the options of the same name, then from `defaults`."""
    cls = catalog.load(kind, name)
    _, args, kwargs = spec.split(given) if given else (name, [], {})
    names = [f.name for f in dataclasses.fields(cls)]
    kwargs = {**dict(zip(names, args, strict=False)), **kwargs} if len(args) <= len(names) else kwargs
    for field in names:
        if field not in kwargs and said.has(field):
            kwargs[field] = said.take(field)
        elif field not in kwargs and field in defaults:
            kwargs[field] = defaults[field]
    return spec.build(cls, args if len(args) > len(names) else [], kwargs)


def kind_of(traits: Traits) -> str:
    """What a model of these traits decodes: a "canvas" (by attention, or "recurrent"), "block"s, or one token at a time
    ("autoregressive")."""
    if traits.mask_id is None:
        return "autoregressive"
    if isinstance(traits.attention, Recurrent):
        return "recurrent"
    return "block" if isinstance(traits.attention, BlockCausal) else "canvas"


def part_of(block: int, most: int) -> int:
    """The largest divisor of a model's block size that is at most `most`: parts of a block never straddle its edge."""
    return next(n for n in range(min(block, most), 0, -1) if block % n == 0)


def _cache(said: Said, traits: Traits, otherwise: str) -> str:
    """The spec of the cache: --cache, or what the published switches mean on this kind of model."""
    if said.has("cache"):
        return str(said.take("cache"))
    for switches, meaning in SWITCHES[kind_of(traits)].items():
        if all(said.values.get(s) for s in switches):
            for s in ("use_cache", *switches):
                said.take(s)
            return meaning
    return otherwise


def _schedule(said: Said, traits: Traits, otherwise: str = "blocks") -> Any:
    given = said.take("schedule")
    name = spec.split(given)[0] if given else "blocks" if said.has("block_length") else otherwise
    cls = catalog.load("schedule", name)
    takes_length = name != V2_PARTS["schedule"] and any(f.name == "length" for f in dataclasses.fields(cls))
    _, args, kwargs = spec.split(given) if given else (name, [], {})
    if takes_length and not args and "length" not in kwargs:
        kwargs["length"] = _length(said, traits)
    found = spec.build(cls, args, kwargs)
    if isinstance(traits.attention, BlockCausal):
        _check_inside(name, found, traits.attention.size)
    return found


def _length(said: Said, traits: Traits) -> int:
    """Positions per block; on a block-diffusion model the sub-block asked for, else a part of its own block."""
    own = traits.attention.size if isinstance(traits.attention, BlockCausal) else None
    if own is None or not said.has("small_block_size"):
        return int(said.take("block_length", BLOCK if own is None else part_of(own, BLOCK)))
    beside = said.take("block_length", own)
    if beside != own:
        raise ConfigError(
            "block-length beside small-block-size",
            expected=f"{own}, the model's block size",
            got=str(beside),
            remedy="Leave it out, or use --profile fast-dllm-v2, which honours another block size as published.",
        )
    return int(said.take("small_block_size"))


def _check_inside(name: str, schedule: Any, own: int) -> None:
    """A block of the schedule lies inside one of the model's: what it sees beyond its own block is not written yet."""
    remedy = f'Use --schedule "blocks({part_of(own, BLOCK)})", or leave it out.'
    if name == "whole":
        expected = f"blocks of at most {own}, the model's block size"
        raise ConfigError("schedule", expected=expected, got="whole", remedy=remedy)
    if name not in ("blocks", "growing", "pipelined"):
        return
    if schedule.length > own:
        expected = f"a length of at most {own}, the model's block size"
        raise ConfigError(f"schedule {name}", expected=expected, got=str(schedule.length), remedy=remedy)
    if own % schedule.length:
        expected = f"a divisor of {own}, the model's block size"
        raise ConfigError(f"schedule {name}", expected=expected, got=str(schedule.length), remedy=remedy)


def _guidance(said: Said) -> Any:
    cfg, scale = said.take("cfg_scale"), said.take("guidance_scale")
    if cfg is not None and scale is not None:
        raise ConfigError("guidance", expected="--cfg-scale or --guidance-scale (= cfg-scale + 1)", got="both")
    if cfg is not None and not 0 <= cfg < STRONGEST:
        raise ConfigError("cfg-scale", expected=f">= 0 (0 is off) and < {STRONGEST:g}", got=f"{cfg:g}")
    scale = cfg + 1 if cfg is not None else scale
    if scale is None or scale == 1:
        return None
    from unmask.decode.guidance import ClassifierFree

    return ClassifierFree(float(scale))


def _sampling(said: Said, traits: Traits) -> Sampling:
    suppress = traits.eos_ids[:1] if said.take("logits_eos_inf") else ()
    demote = traits.eos_ids if said.take("confidence_eos_eot_inf") else ()
    temperature = float(said.take("temperature", 0.0))
    return _checked(Sampling(temperature, said.take("top_p"), said.take("top_k"), suppress=suppress, demote=demote))


def _checked(s: Sampling) -> Sampling:
    if s.temperature != 0 and not COLDEST <= s.temperature <= HOTTEST:
        raise ConfigError("temperature", expected=f"0, or from {COLDEST:g} to {HOTTEST:g}", got=f"{s.temperature:g}")
    if s.top_p is not None and not 0 < s.top_p <= 1:
        raise ConfigError("top-p", expected="> 0 and <= 1", got=str(s.top_p))
    if s.top_k is not None and s.top_k < 1:
        raise ConfigError("top-k", expected=">= 1", got=str(s.top_k))
    if (s.top_p is not None or s.top_k is not None) and s.temperature == 0 and not s.filtered_confidence:
        raise ConfigError(
            "top-p / top-k", expected="a temperature above 0", got="temperature 0", remedy="add --temperature"
        )
    return s


# ---- profiles of published samplers ----------------------------------------------------------------------------------


def llada(said: Said, traits: Traits, family: str, gen_length: int) -> Strategy:
    """LLaDA generate.py: confidences in the model's dtype, all passes of every block, nothing stops early."""
    _whole_canvas(said, traits, family)
    block, steps = said.take("block_length", min(128, gen_length)), said.take("steps", gen_length)
    _divides(gen_length, block, steps)
    name = said.take("remasking", "low_confidence")
    policy = catalog.parse("policy", f"{name}(steps={steps}, all_passes=True)")
    sampling = dataclasses.replace(_sampling(said, traits), precision="model", exclude_mask=False, gumbel=True)
    return Strategy(_blocks(block), policy, catalog.parse("cache", "none"), _guidance(said), sampling, False, True)


def fast_dllm(said: Said, traits: Traits, family: str, gen_length: int) -> Strategy:
    """Fast-dLLM v1: float64 confidences on LLaDA, the model's dtype on Dream."""
    _whole_canvas(said, traits, family)
    if family == "Dream":
        return _fast_dream(said, traits, gen_length)
    block, steps = said.take("block_length", min(128, gen_length)), said.take("steps", gen_length)
    _divides(gen_length, block, steps)
    factor, threshold = said.take("factor"), said.take("threshold")
    if factor is not None:
        policy = catalog.parse("policy", f"factor({factor!r}, published=True)")
    elif threshold is not None:
        policy = catalog.parse("policy", f"threshold({threshold!r})")
    else:
        policy = catalog.parse("policy", f"{said.take('remasking', 'low_confidence')}(steps={steps})")
    sampling = Sampling(float(said.take("temperature", 0.0)), precision="float64", exclude_mask=False, gumbel=True)
    cache = catalog.parse("cache", _cache(said, traits, "none"))
    return Strategy(_blocks(block), policy, cache, None, _checked(sampling), False, True)


def _fast_dream(said: Said, traits: Traits, gen_length: int) -> Strategy:
    """Fast-dLLM on Dream: whole canvas without a cache, blocks with one."""
    cache_spec = _cache(said, traits, "none")
    alg = said.take("alg", "confidence_threshold")
    if cache_spec == "none" and alg != "confidence_threshold":
        said.left.add("alg")
        return dream(said, traits, "Dream", gen_length)
    steps, sampling = said.take("steps", gen_length), _dream_sampling(said)
    threshold = said.take("threshold", THRESHOLD)
    if cache_spec == "none":
        _divides(gen_length, gen_length, gen_length)
        if gen_length % steps:
            raise ConfigError("steps", expected=f"a divisor of the {gen_length} tokens to decode", got=str(steps))
        policy = catalog.parse("policy", f"dream_carry(steps={steps}, threshold={threshold!r})")
        return Strategy(
            catalog.parse("schedule", "whole"), policy, catalog.parse("cache", "none"), None, sampling, False, True
        )
    block = said.take("block_length", BLOCK)
    _divides(gen_length, block, steps)
    kept = "confidence_threshold" if alg == "confidence_threshold" else "entropy"
    eps, alg_temp = said.take("eps", 1e-3), said.take("alg_temp")
    text = f"dream_block(alg={kept!r}, threshold={threshold!r}, steps={steps}, eps={eps!r}, alg_temp={alg_temp!r})"
    policy, cache = catalog.parse("policy", text), catalog.parse("cache", cache_spec)
    return Strategy(_blocks(block), policy, cache, None, sampling, False, True)


def dream(said: Said, traits: Traits, family: str, gen_length: int) -> Strategy:
    """Dream's diffusion_generate: whole canvas, eps schedule, passes that settle nothing are kept."""
    _whole_canvas(said, traits, family)
    alg, steps, eps = said.take("alg", "entropy"), said.take("steps", gen_length), said.take("eps", 1e-3)
    text = f"dream(alg={alg!r}, steps={steps}, eps={eps!r}, alg_temp={said.take('alg_temp')!r}, empty_passes=True)"
    policy, whole = catalog.parse("policy", text), catalog.parse("schedule", "whole")
    return Strategy(whole, policy, catalog.parse("cache", "none"), None, _dream_sampling(said), False, True)


def fast_dllm_v2(said: Said, traits: Traits, family: str, gen_length: int) -> Strategy:
    """Fast-dLLM v2's `generate`: blocks of the call's size, > threshold in the model's dtype, forced bonus tokens.

    Prefill and commits are forwards of their own; it stops as soon as EOS is settled.
    """
    _check_v2_model("profile fast-dllm-v2", traits, family)
    block, length = said.take("block_length", BLOCK), said.take("small_block_size", SUB_BLOCK)
    threshold, cached = said.take("threshold", 1.0), bool(said.take("dual_cache"))
    said.take("use_cache")  # finished blocks are always kept
    temperature = float(said.take("temperature", 0.0))
    top_p = said.take("top_p", 0.95 if temperature else None)
    sampling = Sampling(temperature, top_p, precision="model", exclude_mask=False, filtered_confidence=True)
    return Strategy(
        catalog.parse("schedule", f"v2_blocks(length={length}, block={block})"),
        catalog.parse("policy", f"v2_threshold({threshold!r}, block={block})"),
        catalog.parse("cache", f"v2_cache(block={block}, length={length}, sub_blocks={cached})"),
        None,
        _checked(sampling),
    )


def _whole_canvas(said: Said, traits: Traits, family: str) -> None:
    """These samplers read the whole canvas; nobody published what they would do on block-diffusion models."""
    if kind_of(traits) == "block":
        raise ConfigError(
            f"profile {said.profile}",
            expected="a model that reads the whole canvas (LLaDA, Dream)",
            got=f"{family}, a block-diffusion model",
            remedy="Leave the profile out, or use --profile fast-dllm-v2 on a Fast-dLLM v2 model.",
        )


def _check_v2_model(what: str, traits: Traits, family: str) -> None:
    if kind_of(traits) != "block":
        raise ConfigError(
            what,
            expected="a block-diffusion model (Fast-dLLM v2)",
            got=family,
            remedy="Use profile fast-dllm for LLaDA and Dream.",
        )
    if traits.shift != 1:
        raise ConfigError(
            what,
            expected="a Fast-dLLM v2 model (shift 1: row p - 1 speaks for position p)",
            got=f"{family}, shift {traits.shift}",
            remedy="Leave it out: the default profile decodes this model in its own blocks.",
        )
    if isinstance(traits.attention, BlockCausal) and traits.attention.context != "block":
        raise ConfigError(
            what,
            expected="a Fast-dLLM v2 model (finished blocks are seen from both sides)",
            got=f"{family}, whose context is causal",
            remedy="Leave it out: the default profile decodes this model exactly.",
        )


def _check_v2_parts(strategy: Strategy, traits: Traits, family: str) -> None:
    """The published parts go together, with one block and sub-block size, on the model they were made for."""
    parts: dict[str, Any] = {name: getattr(strategy, kind) for kind, name in V2_PARTS.items()}
    found = [name for name, part in parts.items() if part.spec_name == name]
    if not found:
        return
    names = ", ".join(V2_PARTS.values())
    remedy = "Use --profile fast-dllm-v2; for new work schedule blocks, policy threshold and cache sub_block."
    if len(found) < len(parts):
        expected, got = f"{names} together", f"{strategy.schedule!r}, {strategy.policy!r}, {strategy.cache!r}"
        raise ConfigError(", ".join(found), expected=expected, got=got, remedy=remedy)
    _check_v2_model(names, traits, family)
    schedule, policy, cache = parts.values()
    if len({schedule.block, policy.block, cache.block}) > 1 or schedule.length != cache.length:
        got = f"{schedule!r}, {policy!r}, {cache!r}"
        raise ConfigError(names, expected="the same block (and length) in each of them", got=got, remedy=remedy)
    if strategy.guidance is not None:
        raise ConfigError(names, expected="no guidance", got=repr(strategy.guidance), remedy="Leave --cfg-scale out.")


def v2_batch(strategy: Strategy, prompts: tuple[int, ...]) -> Strategy:
    """Fast-dLLM v2's `batch_sample`: its `generate` strategy for one batch of prompts of these lengths.

    Every row ends with the block in which it committed EOS. Lengths decide who is prefilled and gets a bonus token.
    """
    shortest, longest = min(prompts), max(prompts)
    return dataclasses.replace(
        strategy,
        schedule=dataclasses.replace(strategy.schedule, shortest=shortest, longest=longest),  # type: ignore[type-var]
        policy=dataclasses.replace(strategy.policy, shortest=shortest, batch=True),  # type: ignore[type-var]
        cache=dataclasses.replace(strategy.cache, shortest=shortest),  # type: ignore[type-var]
        early_stop=False,
    )


def answer_length(options: DecodeOptions, prompt: int, tokens: int) -> int:
    """Positions of the answer for a prompt and an upper bound in tokens.

    Profile `fast-dllm-v2` counts the bound in blocks, from the block that holds the prompt's tail, and adds the bonus
    token of the last one, as its reference does.

    Raises:
        ConfigError: a bound below one block, with which the reference does nothing.
    """
    if options.profile != "fast-dllm-v2":
        return tokens
    block = options.block_length or BLOCK
    if tokens < block:
        raise ConfigError(
            "max tokens", expected=f"at least one block ({block}) with profile fast-dllm-v2", got=str(tokens)
        )
    return (prompt // block + tokens // block) * block + 1 - prompt


def _dream_sampling(said: Said) -> Sampling:
    return _checked(
        Sampling(
            float(said.take("temperature", 0.0)),
            said.take("top_p"),
            said.take("top_k"),
            precision="model",
            exclude_mask=False,
            filtered_confidence=True,
        )
    )


def _blocks(length: int) -> Any:
    return catalog.parse("schedule", f"blocks({length})")


def _divides(gen_length: int, block: int, steps: int) -> None:
    """What the references assert before they begin."""
    if block < 1 or gen_length % block:
        raise ConfigError("block-length", expected=f"a divisor of the {gen_length} tokens to decode", got=str(block))
    blocks = gen_length // block
    if steps < 1 or steps % blocks:
        raise ConfigError("steps", expected=f"a multiple of the {blocks} blocks", got=str(steps))
