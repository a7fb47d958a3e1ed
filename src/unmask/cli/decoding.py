"""Decoding options of the command line: their help, their published aliases, and the `DecodeOptions` they mean.

Enters: a parser, later its arguments. Leaves: `DecodeOptions` and warnings. A command line in the spelling of a
published script (`--gen_length 128 --block_size 32 --use_cache`) is accepted as it stands; what has no effect there
is a warning, not an error.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from unmask.cli.parsing import Parser, integer, number
from unmask.core import catalog, spec
from unmask.core.errors import InputError
from unmask.core.spec import MOST
from unmask.engine.options import HOTTEST, STRONGEST, DecodeOptions

if TYPE_CHECKING:
    from unmask.cli.output import Notices

ALGS = ("origin", "maskgit_plus", "topk_margin", "entropy", "confidence_threshold")

IGNORED = {
    "mask_id": "the mask id comes from the checkpoint",
    "show_speed": "speed is always printed",
    "trust_remote_code": "no code of a checkpoint is ever run",
}
"""Switches of published scripts that need no counterpart, and why."""
SAMPLERS = {"ddpm": "ddpm", "ddim": "ddim", "dpmpp": "dpmpp", "masked": "dream(alg='origin')"}
"""Samplers of BiRWKV by their usual names, and the policies they are."""
DUAL_CACHE = ("--dual_cache", "--if_cache_position", "--use_block_cache")
"""One switch in its published spellings: Fast-dLLM's scripts, and Fast-dLLM v2's."""


def add_model(parser: Parser) -> None:
    """Which model, and where it runs."""
    g = parser.add_argument_group("model")
    names = ("--model_path", "--pretrained", "--model_name_or_path")
    parser.option(
        g,
        "--model",
        "-m",
        hidden=names,
        metavar="DIR|ID",
        help="checkpoint folder, hub id, model inside this package (nano, nano-ar, nano-llada, nano-birwkv), or "
        "random:SHAPE (default: nano)",
    )
    parser.option(g, "--revision", metavar="REV", help="branch, tag or commit of a hub id")
    parser.option(g, "--device", default="auto", metavar="D", help="auto, cuda, mps or cpu (default: auto)")
    parser.option(
        g,
        "--dtype",
        default="auto",
        choices=("auto", "bf16", "fp16", "fp32"),
        help="auto is bf16 where supported (default: auto)",
    )


def add_decoding(parser: Parser) -> None:
    """How an answer is decoded."""
    g = parser.add_argument_group("all of it at once")
    g.add_argument(
        "--settings",
        metavar="FILE",
        help="decoding options of a TOML file (`unmask pareto` writes one); options here win",
    )
    _add_length(parser)
    _add_strategy(parser)
    _add_sampling(parser)
    _add_dream(parser)
    for name in ("use_cache", "dual_cache", "show_speed", "trust_remote_code"):
        names = DUAL_CACHE if name == "dual_cache" else (f"--{name}",)
        parser.option(parser, *names, flag=True, dest=name, help=argparse.SUPPRESS)
        parser.hidden.update(names)
    parser.option(parser, "--mask_id", type=int, dest="mask_id", help=argparse.SUPPRESS)
    parser.hidden.add("--mask_id")


def _add_length(parser: Parser) -> None:
    g = parser.add_argument_group("length and speed")
    tokens = integer(1, MOST)
    parser.option(
        g,
        "--max-tokens",
        "-n",
        hidden=("--max_new_tokens", "--max-new-tokens"),
        type=tokens,
        metavar="N",
        help="tokens of the answer at most (default: 128)",
    )
    parser.option(
        g,
        "--gen-length",
        type=tokens,
        metavar="N",
        help="places on the answer's canvas; the same as --max-tokens (default: 128)",
    )
    parser.option(
        g,
        "--steps",
        hidden=("--diffusion_steps", "--diffusion-steps", "--gen_steps", "--num_steps", "--num-steps"),
        type=integer(1, MOST),
        metavar="N",
        help="forwards for the whole answer, for policies that count them (default: 128)",
    )
    parser.option(
        g,
        "--block-length",
        hidden=("--block_size", "--block-size", "--gen_blocksize"),
        type=tokens,
        metavar="N",
        help="places decoded together, left to right (default: 32, or a block model's own)",
    )
    parser.option(
        g,
        "--small-block-size",
        type=tokens,
        metavar="N",
        help="sub-block of a block-diffusion model: places decoded together inside its own blocks (published: 8)",
    )
    parser.option(
        g, "--threshold", type=number(0, 1), metavar="P", help="settle every token at least this sure (default: 0.9)"
    )
    parser.option(
        g,
        "--factor",
        type=number(above=0),
        metavar="F",
        help="Fast-dLLM's factor rule instead of a threshold (published: 1.0)",
    )


def _add_strategy(parser: Parser) -> None:
    g = parser.add_argument_group("strategy (names and arguments: `unmask ls`)")
    parser.option(
        g, "--policy", metavar="SPEC", help='which places settle: "threshold(0.9)", "low_confidence", "entropy" ...'
    )
    parser.option(
        g,
        "--sampler",
        choices=tuple(SAMPLERS),
        help="how a model that denoises vectors (BiRWKV) writes: by continuous diffusion, or by its masks",
    )
    parser.option(
        g, "--cache", metavar="SPEC", help="what is not recomputed: none, prefix, dual, block, sub_block, boundary"
    )
    parser.option(g, "--schedule", metavar="SPEC", help='"blocks(32)", "whole" or "growing(32)" (default: blocks)')
    parser.option(g, "--remasking", choices=("low_confidence", "random"), help="LLaDA's name for the policy")
    parser.option(
        g,
        "--profile",
        default="default",
        metavar="NAME",
        help="default, or published behaviour exactly: llada, fast-dllm, dream, fast-dllm-v2",
    )
    parser.option(
        g,
        "--cfg-scale",
        hidden=("--cfg",),
        type=number(0, STRONGEST - 1),
        metavar="W",
        help="classifier-free guidance as LLaDA counts it, 0 is off (default: 0)",
    )
    parser.option(
        g,
        "--guidance-scale",
        type=number(0, STRONGEST),
        metavar="S",
        help="the same as a factor, 1 is off: cfg-scale + 1",
    )


def _add_sampling(parser: Parser) -> None:
    g = parser.add_argument_group("sampling")
    parser.option(
        g,
        "--temperature",
        "--temp",
        type=number(0, HOTTEST),
        metavar="T",
        help="0 takes the best token, above it tokens are drawn (default: 0)",
    )
    parser.option(
        g, "--top-p", type=number(above=0, high=1), metavar="P", help="draw from the smallest set with this probability"
    )
    parser.option(g, "--top-k", type=integer(1), metavar="K", help="draw from the K best tokens")
    parser.option(
        g, "--seed", type=integer(0, 2**63 - 1), default=0, metavar="N", help="same seed, same answer (default: 0)"
    )
    parser.option(
        g,
        "--logits-eos-inf",
        hidden=("--eos_inf", "--diff_logits_eos_inf"),
        flag=True,
        help="never predict the end of the text (LLaDA)",
    )
    parser.option(
        g,
        "--confidence-eos-eot-inf",
        hidden=("--diff_confidence_eos_eot_inf",),
        flag=True,
        help="settle ends of text last (LLaDA)",
    )


def _add_dream(parser: Parser) -> None:
    g = parser.add_argument_group("Dream")
    parser.option(g, "--alg", choices=ALGS, help="Dream's decoding algorithm")
    parser.option(g, "--alg-temp", type=number(0), metavar="T", help="randomness of the order in which places settle")
    parser.option(
        g, "--eps", type=number(above=0, high=1), metavar="E", help="end of Dream's time schedule (published: 0.001)"
    )


def resolve(args: argparse.Namespace) -> tuple[DecodeOptions, int | None, list[str]]:
    """The options, the answer's greatest length, and what to warn about.

    Raises:
        InputError: options that contradict each other, or an unknown name in a spec.
    """
    warnings = [f"{args.spelled[n]} has no effect: {why}" for n, why in IGNORED.items() if args.spelled.get(n)]
    fields = {name: getattr(args, name) for name in DecodeOptions.__dataclass_fields__ if hasattr(args, name)}
    if args.settings is not None:
        fields |= _of_file(args)
    if args.sampler is not None:
        if args.policy is not None:
            raise InputError("--sampler and --policy", expected="one of them", got=f"{args.sampler}, {args.policy}")
        fields["policy"] = SAMPLERS[args.sampler]
    if args.cache is not None and (fields["use_cache"] or fields["dual_cache"]):
        raise InputError("--cache", expected="either --cache or the published --use_cache", got="both")
    if args.max_tokens is not None and args.gen_length is not None and args.max_tokens != args.gen_length:
        got = f"{args.max_tokens} and {args.gen_length}"
        raise InputError("--max-tokens and --gen-length", expected="one of them, or the same number", got=got)
    for kind in ("policy", "cache", "schedule"):
        if fields[kind] is not None:
            catalog.find(kind, spec.split(fields[kind])[0])
    catalog.find("profile", fields["profile"])
    tokens = args.max_tokens if args.max_tokens is not None else fields["gen_length"]
    return DecodeOptions(**{**fields, "gen_length": tokens}), tokens, warnings


def _of_file(args: argparse.Namespace) -> dict[str, object]:
    """What --settings says and the command line does not."""
    from unmask.engine.options_file import read_toml

    found = read_toml(args.settings)
    said = found.said() | ({} if found.profile == "default" else {"profile": found.profile})
    return {name: value for name, value in said.items() if name not in args.spelled}


def check_specs(options: DecodeOptions) -> None:
    """Reads every spec in full, arguments included (imports the strategies: after the cheap checks)."""
    for kind in ("policy", "cache", "schedule"):
        value = getattr(options, kind)
        if value is not None:
            catalog.parse(kind, value)


def warn(notices: Notices, warnings: list[str]) -> None:
    """Says each warning once."""
    for text in dict.fromkeys(warnings):
        notices.warn(text)
