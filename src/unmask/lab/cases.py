"""What `unmask bench decode` compares: its strategies and their requests, from the command line's words.

Enters: the parsed arguments and the model. Leaves: one `Case` per strategy. Every cache is crossed with every policy
and, where a policy counts steps, with every number of tokens per step; baselines stand beside them once.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from unmask.core import catalog, spec
from unmask.core.errors import InputError
from unmask.core.types import BlockCausal, Request, Strategy, Traits
from unmask.engine.engine import sequence_of
from unmask.engine.options import DecodeOptions
from unmask.engine.profiles import answer_length, build, kind_of, part_of
from unmask.lab.decoding import Case, make_request, mixed_lengths
from unmask.lab.words import CACHES, listed
from unmask.models.backbone import AnyDenoiser, transformer_of
from unmask.models.denoiser import TransformerDenoiser
from unmask.pipeline.model import Model

BLOCK, SUB_BLOCK = 32, 8
AR = "ar"
BASELINES = {
    AR: "AR baseline: the same weights, causal, left to right",
    "fast-dllm-v2": "profile fast-dllm-v2 (our re-implementation of the published sampler)",
    "fast-dllm-v2-cached": "profile fast-dllm-v2, use_block_cache (our re-implementation of the published sampler)",
}


@dataclass(frozen=True)
class Line:
    """One strategy before it knows its answers' lengths. denoiser: the model as this strategy reads it."""

    denoiser: AnyDenoiser
    family: str
    options: DecodeOptions
    tokens_per_step: int | None = None
    baseline: str | None = None

    def strategy(self, answer: int, closed: bool) -> Strategy:
        """For an answer of so many places. closed: EOS can not be chosen, so that random ids do the same work."""
        traits, options = self.denoiser.traits, self.options
        if self.tokens_per_step is not None:
            options = replace(options, steps=-(-answer // self.tokens_per_step))
        made = build(options, traits, self.family, answer)
        if not closed:
            return made
        ids = traits.eos_ids
        if traits.mask_id is not None and not made.sampling.exclude_mask:
            ids = (*ids, traits.mask_id)
        return replace(made, sampling=replace(made.sampling, suppress=ids))


def prompt_of(args: argparse.Namespace, model: Model) -> list[int] | int:
    """The prompt's ids, or how many random ones to draw."""
    if args.prompt is None:
        return 128 if args.prompt_length is None else int(args.prompt_length)
    if model.codec is None:
        raise InputError("--prompt", expected="a model with a tokenizer", got=model.name, remedy="Use --prompt-length.")
    return model.codec.encode(args.prompt)


def block_of(args: argparse.Namespace, traits: Traits) -> int:
    """Places per block of the schedule: on a block-diffusion model a sub-block of its own blocks."""
    if args.block_length is not None:
        return int(args.block_length)
    return BLOCK if kind_of(traits) != "block" else part_of(_own_block(traits), SUB_BLOCK)


def _own_block(traits: Traits) -> int:
    return traits.attention.size if isinstance(traits.attention, BlockCausal) else 1


def cases(args: argparse.Namespace, model: Model) -> list[Case]:
    """The comparison, in the order of the command line.

    Raises:
        InputError: strategies or lengths that this model can not have.
    """
    found = []
    for line in (*_crossed(args, model), *_baselines(args, model)):
        requests = _requests(args, model, line)
        found.append(_case(line, requests))
        if args.crowd > 1:
            found.append(replace(found[-1], together=False))
    return found


def _case(line: Line, requests: tuple[Request, ...]) -> Case:
    made, options = requests[0].strategy, line.options
    name = "unmask, default profile" if line.baseline is None else BASELINES[line.baseline]
    cache = options.cache or _short(made.cache)
    policy = options.policy or _short(made.policy)
    return Case(name, cache, policy, line.denoiser, requests, True, line.tokens_per_step, line.baseline)


def _short(component: Any) -> str:
    """A spec without the fields that have their default."""
    fields = dataclasses.fields(component)
    said = {f.name: getattr(component, f.name) for f in fields if getattr(component, f.name) != f.default}
    name = repr(component).partition("(")[0]
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in said.items())})" if said else name


def _crossed(args: argparse.Namespace, model: Model) -> Iterator[Line]:
    counted = False
    for policy in listed(args.policy, "--policy"):
        counts = model.traits.mask_id is not None and _counts_steps(policy)
        counted |= counts
        for tokens in (args.tokens_per_step or [1]) if counts else [None]:
            for cache in listed(args.cache or CACHES[kind_of(model.traits)], "--cache"):
                yield line(args, model, cache, policy, tokens)
    if args.tokens_per_step and not counted:
        raise InputError("--tokens-per-step", expected="a policy that counts steps", got=f"--policy {args.policy}")


def line(args: argparse.Namespace, model: Model, cache: str, policy: str, tokens: int | None) -> Line:
    """One of our own strategies: default profile."""
    if model.traits.mask_id is None:
        options = DecodeOptions(cache=cache)
    else:
        options = DecodeOptions(policy=policy, cache=cache, block_length=block_of(args, model.traits))
    return Line(model.denoiser, model.family, options, tokens)


def _counts_steps(policy: str) -> bool:
    """Whether the policy has a number of steps that its spec leaves open."""
    name, given, named = spec.split(policy)
    counts = any(f.name == "steps" for f in dataclasses.fields(catalog.load("policy", name)))
    return counts and not given and "steps" not in named


def _baselines(args: argparse.Namespace, model: Model) -> Iterator[Line]:
    for name in listed(args.baseline, "--baseline") if args.baseline else []:
        if name == AR:
            yield _autoregressive(model)
        else:
            yield _published(args, model, name)


def _autoregressive(model: Model) -> Line:
    """The same weights as a parent would have them: causal, row p - 1 speaks for position p, no mask id."""
    if model.traits.mask_id is None:
        raise InputError("--baseline ar", expected="a diffusion model", got=f"{model.name}, which is autoregressive")
    traits = replace(model.traits, mask_id=None, shift=1, attention=BlockCausal(1), grid_origin="zero")
    options = DecodeOptions(cache="block")
    return Line(
        TransformerDenoiser(transformer_of(model.denoiser.model, "--baseline ar"), traits),
        "qwen2",
        options,
        baseline=AR,
    )


def _published(args: argparse.Namespace, model: Model, name: str) -> Line:
    own = _own_block(model.traits)
    options = DecodeOptions(
        profile="fast-dllm-v2",
        block_length=own,
        small_block_size=block_of(args, model.traits),
        threshold=1.0,
        dual_cache=True if name.endswith("-cached") else None,
    )
    return Line(model.denoiser, model.family, options, baseline=name)


def _requests(args: argparse.Namespace, model: Model, line: Line) -> tuple[Request, ...]:
    made, traits = [], line.denoiser.traits
    for i, (given, wanted) in enumerate(_lengths(args, model)):
        start = given if isinstance(given, int) else len(given)
        answer = answer_length(line.options, start, wanted)
        if start + answer > traits.max_len:
            expected = f"at most {traits.max_len} places (the model's context)"
            raise InputError("prompt and --gen-length", expected=expected, got=str(start + answer))
        strategy = line.strategy(answer, closed=args.prompt is None)
        made.append(make_request(str(i), strategy, model.traits, model.vocab_size, given, answer))
        sequence_of(made[-1], traits, layers=line.denoiser.layers)
    return tuple(made)


def _lengths(args: argparse.Namespace, model: Model) -> list[tuple[list[int] | int, int]]:
    prompt = prompt_of(args, model)
    if args.crowd == 1:
        return [(prompt, args.gen_length)]
    if not isinstance(prompt, int):
        raise InputError("--prompt", expected="--prompt-length with --crowd", got="a text")
    block = max(_own_block(model.traits), block_of(args, model.traits))
    return list(mixed_lengths(args.crowd, prompt, args.gen_length, block))
