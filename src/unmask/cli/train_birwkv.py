"""`unmask train birwkv`: a recurrent diffusion model from flags, by the names of the published training script."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.inputs import need_file
from unmask.cli.output import Notices
from unmask.cli.parsing import Parser, integer, number
from unmask.core.errors import InputError

if TYPE_CHECKING:
    from unmask.train.recipe import Recipe

EXAMPLES = """\
  unmask train birwkv --d-model 128 --n-layers 2 --seq-len 128 --max-steps 300      on generated stories; no data needed
  unmask train birwkv --data notes.jsonl --d-model 256 --n-layers 6 --embedding-dim 16 --output-dir runs/notes
  unmask train birwkv --output-dir runs/notes --resume-from-checkpoint runs/notes   after a crash or Ctrl-C
  unmask generate --model runs/notes/model --sampler ddpm --num-steps 64 "Once"      and then"""
KEPT = "birwkv.json"
"""The settings of a run, beside its checkpoints: `--resume-from-checkpoint` needs nothing else."""
STORIES = {
    "kind": "generator",
    "source": "unmask.evals.tasks.synthetic:stream",
    "stages": [{"start": 0, "mix": {"story": 1}}],
}
CANVAS = 64
"""Positions of a story's answer when it is asked for: the stories are shorter, and EOS fills the rest."""


def build_parser() -> Parser:
    """All flags, in the groups of their help."""
    parser = Parser(
        "unmask train birwkv",
        "Train a bidirectional recurrent diffusion model (BiRWKV-LLaDA): masks, continuous diffusion, or both. "
        "Everything else about training (validation, LoRA, hub data) is in recipes: `unmask train RECIPE`.",
        EXAMPLES,
    )
    _add_model(parser)
    _add_diffusion(parser)
    _add_run(parser)
    return parser


def _add_model(parser: Parser) -> None:
    g, count = parser.add_argument_group("model"), integer(1)
    parser.option(g, "--d-model", type=count, default=1024, metavar="N", help="width (default: 1024)")
    parser.option(g, "--n-layers", type=count, default=24, metavar="N", help="layers (default: 24)")
    parser.option(
        g, "--mlp-ratio", type=number(above=0), default=2.5, metavar="R", help="feed-forward width / width (2.5)"
    )
    parser.option(
        g, "--embedding-dim", type=count, metavar="E", help="size of a token's vector (default: 16 at most the width)"
    )
    parser.option(g, "--mixer", choices=("biwkv", "attention"), default="biwkv", help="attention is the baseline")
    parser.option(
        g,
        "--attention-every",
        type=integer(0),
        default=0,
        metavar="K",
        help="attention in every K-th layer (default: 0, none)",
    )
    parser.option(
        g, "--conditioning", choices=("adaln", "origin"), default="adaln", help="origin has the published parameters"
    )
    parser.option(g, "--untied", flag=True, help="an output matrix of its own instead of the token table")


def _add_diffusion(parser: Parser) -> None:
    g, share = parser.add_argument_group("diffusion"), number(0, 1)
    parser.option(
        g,
        "--diffusion-mode",
        choices=("mixed", "diffusion", "token"),
        default="mixed",
        help="both objectives, continuous diffusion alone, or masks alone (default: mixed)",
    )
    parser.option(
        g, "--diffusion-steps", type=integer(3), default=1000, metavar="N", help="steps of a published schedule (1000)"
    )
    parser.option(
        g,
        "--beta-schedule",
        default="logsnr_linear",
        metavar="SPEC",
        help="linear, cosine, sigmoid, logsnr_linear, logit_normal, or a spec of `unmask ls noises` (logsnr_linear)",
    )
    parser.option(
        g,
        "--prediction-type",
        choices=("sample", "epsilon", "v_prediction"),
        default="sample",
        help="what the diffusion head says (default: sample, through the tokens)",
    )
    parser.option(
        g,
        "--token-loss-weight",
        type=number(0),
        metavar="W",
        help="of the tokens' cross-entropy under diffusion (default: 1 for sample, else 0.1)",
    )
    parser.option(
        g, "--token-share", type=share, default=0.3, metavar="P", help="rows of mode token in mixed (default: 0.3)"
    )
    parser.option(
        g,
        "--self-conditioning",
        type=share,
        default=0.5,
        metavar="P",
        help="rows that first see their own estimate (0.5)",
    )
    parser.option(
        g,
        "--prompt-dropout",
        type=share,
        default=0.1,
        metavar="P",
        help="rows without their prompt, for guidance (0.1)",
    )
    parser.option(
        g,
        "--prefix",
        type=share,
        default=0.3,
        metavar="P",
        help="rows of plain text whose beginning is kept clean, as a prompt (0.3)",
    )
    parser.option(
        g,
        "--hybrid",
        type=share,
        default=0.0,
        metavar="P",
        help="diffusion rows with some masks, for decoding by blocks (0)",
    )


def _add_run(parser: Parser) -> None:
    g, count = parser.add_argument_group("data and run"), integer(1)
    parser.option(
        g,
        "--data",
        nargs="+",
        metavar="FILE",
        help="text (.txt) or records with a field `text` (.jsonl, .parquet); default: the project's generated stories",
    )
    parser.option(g, "--tokenizer", metavar="DIR", help="default: one trained on the data")
    parser.option(
        g, "--vocab-size", type=integer(272), default=1024, metavar="N", help="of the tokenizer to train (1024)"
    )
    parser.option(g, "--seq-len", type=integer(2), default=512, metavar="N", help="tokens of a row (default: 512)")
    parser.option(g, "--batch-size", type=count, default=4, metavar="N", help="rows (default: 4)")
    parser.option(
        g,
        "--gradient-accumulation-steps",
        type=count,
        default=1,
        metavar="N",
        help="batches summed into one step (default: 1)",
    )
    parser.option(
        g, "--optimizer", choices=("adamw", "muon"), default="adamw", help="muon learns faster in small models"
    )
    parser.option(
        g, "--learning-rate", type=number(above=0), default=3e-4, metavar="R", help="of AdamW at its peak (3e-4)"
    )
    parser.option(g, "--weight-decay", type=number(0), default=0.1, metavar="W", help="default: 0.1")
    parser.option(g, "--warmup-steps", type=integer(0), default=1000, metavar="N", help="default: 1000")
    parser.option(g, "--max-steps", type=count, default=100_000, metavar="N", help="default: 100000")
    parser.option(g, "--save-interval", type=count, default=5000, metavar="N", help="steps between checkpoints (5000)")
    parser.option(g, "--precision", choices=("bf16", "fp32"), default="fp32", help="bf16 is autocast (default: fp32)")
    parser.option(
        g, "--ema", type=number(0, 0.99999), default=0.0, metavar="D", help="decay of the weights' moving average (0)"
    )
    parser.option(g, "--device", default="auto", metavar="D", help="auto, cuda, mps or cpu")
    parser.option(g, "--threads", type=integer(0), default=0, metavar="N", help="CPU threads (default: torch's choice)")
    parser.option(g, "--seed", type=integer(0), default=0, metavar="N", help="default: 0")
    parser.option(g, "--output-dir", "-o", default="runs/birwkv", metavar="DIR", help="folder of the run (runs/birwkv)")
    parser.option(
        g,
        "--resume-from-checkpoint",
        metavar="DIR",
        help="go on with the run in this folder (or name its newest checkpoint); all its settings come from there, "
        "flags given beside it win",
    )
    parser.add_argument("--json", action="store_true", help="print the last numbers as JSON instead of the folder")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")


def main(argv: Sequence[str]) -> int:
    """Prints the folder of the finished model; progress goes to stderr and to metrics.jsonl."""
    from unmask.cli.train import check_folder, run_recipe

    parser = build_parser()
    args = parser.parse(argv)
    said = set(args.spelled)
    resume = args.resume_from_checkpoint is not None
    if resume:
        args = _resumed(parser, args)
    for name in args.data or ():
        need_file(name, "--data ", "a text or jsonl file")
    _check_effect(args, said)
    if args.output_dir == "":
        raise InputError("--output-dir", expected="a folder for the run", got="nothing")
    out = Path(args.output_dir)
    check_folder(out, resume, out, "--output-dir", f"--resume-from-checkpoint {out}")
    recipe = recipe_of(args)
    kept = {
        k: v
        for k, v in vars(args).items()
        if k not in ("spelled", "published", "json", "quiet", "resume_from_checkpoint")
    }
    try:
        return run_recipe(recipe, out, args.quiet, args.json, beside={KEPT: kept})
    except KeyboardInterrupt:
        Notices(args.quiet).say(f"stopped; the last checkpoint is whole. Go on with --resume-from-checkpoint {out}")
        raise


def _resumed(parser: Parser, given: argparse.Namespace) -> argparse.Namespace:
    """The run's own settings with what was spelled now."""
    import json

    named = Path(given.resume_from_checkpoint)
    run = named.parent.parent if named.parent.name == "checkpoints" else named
    if not (run / KEPT).is_file():
        expected = f"a folder with {KEPT}, as `unmask train birwkv` leaves it"
        raise InputError(f"--resume-from-checkpoint {named}", expected=expected, got="none there")
    if run != named:
        newest = max((run / "checkpoints").glob("step-*"), default=None, key=lambda p: p.name)
        if newest is None or newest.name != named.name:
            got = f"{named.name}; the newest is {newest.name if newest else 'none'}"
            raise InputError("--resume-from-checkpoint", expected="the run's newest checkpoint", got=got)
    if "output_dir" in given.spelled and Path(given.output_dir).resolve() != run.resolve():
        raise InputError("--output-dir", expected=f"{run}, the run that goes on, or none", got=given.output_dir)
    try:
        kept = dict(json.loads((run / KEPT).read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        remedy = "The file is damaged; give all flags of the run with --output-dir and a new folder."
        raise InputError(str(run / KEPT), expected="the settings of a run", got="no JSON", remedy=remedy) from None
    own = {name: getattr(given, name) for name in given.spelled}
    return argparse.Namespace(
        **{**vars(given), **kept, **own, "output_dir": str(run), "resume_from_checkpoint": str(named)}
    )


def _check_effect(args: argparse.Namespace, said: set[str]) -> None:
    """Refuses what was given now and changes nothing beside the other settings."""
    idle = {"vocab_size": "--tokenizer"} if args.tokenizer is not None else {}
    if args.resume_from_checkpoint is not None:
        idle["vocab_size"] = "--resume-from-checkpoint (the run has its tokenizer)"
    if args.data is None:
        idle["prefix"] = "the generated stories (they have prompts)"
    if args.diffusion_mode != "mixed":
        idle["token_share"] = f"--diffusion-mode {args.diffusion_mode}"
    if args.diffusion_mode == "token":
        idle |= dict.fromkeys(("token_loss_weight", "self_conditioning", "hybrid"), "--diffusion-mode token")
    for name, beside in idle.items():
        if name in said:
            flag = "--" + name.replace("_", "-")
            raise InputError(flag, expected=f"no such option beside {beside}, where it has no effect", got=flag)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that the flags mean."""
    from unmask.models.recommend import DEFAULT_TOKENS
    from unmask.train.config import build
    from unmask.train.recipe import Recipe

    schedule = args.beta_schedule
    if schedule in ("linear", "cosine", "sigmoid"):
        schedule = f"{schedule}(steps={args.diffusion_steps})"
    data: dict[str, Any] = (
        {**STORIES, "batch_tokens": args.batch_size * args.seq_len, "gen_lengths": _canvases(args.seq_len)}
        if args.data is None
        else {
            "kind": "text",
            "source": {"kind": "files", "paths": list(args.data)},
            "length": args.seq_len,
            "rows": args.batch_size,
        }
    )
    tokenizer = {"vocab_size": args.vocab_size} if args.tokenizer is None else {"path": args.tokenizer}
    raw = {
        "name": Path(args.output_dir).name or "birwkv",
        "seed": args.seed,
        "tokenizer": tokenizer,
        "model": {
            "d_model": args.d_model,
            "n_layers": args.n_layers,
            "mlp_ratio": args.mlp_ratio,
            "embedding_dim": _vector(args),
            "max_sequence_length": max(args.seq_len, 1024 if args.data is None else 0),
            "prediction_type": args.prediction_type,
            "num_diffusion_steps": args.diffusion_steps,
            "mixer": args.mixer,
            "attention_every": args.attention_every,
            "conditioning": args.conditioning,
            "weight_tying": not args.untied,
            "position_embedding": args.conditioning == "origin",
            "training_noise": args.conditioning == "origin",
        },
        "objective": {
            "kind": "embedding-diffusion",
            "mode": args.diffusion_mode,
            "schedule": schedule,
            "token_loss_weight": args.token_loss_weight,
            "token_share": args.token_share,
            "self_conditioning": args.self_conditioning,
            "prompt_dropout": args.prompt_dropout,
            "prefix": args.prefix,
            "hybrid": args.hybrid,
        },
        "data": data,
        "optim": {
            "kind": args.optimizer,
            "lr": args.learning_rate,
            "weight_decay": args.weight_decay,
            "warmup": args.warmup_steps,
            "schedule": "wsd",
            "decay": 1.0,
        },
        "run": {
            "steps": args.max_steps,
            "accumulate": args.gradient_accumulation_steps,
            "precision": args.precision,
            "ema": args.ema,
            "device": args.device,
            "threads": args.threads,
            "save_every": args.save_interval,
            "skip_bad": 10,
        },
        "recommended": {"gen_length": min(args.seq_len, CANVAS if args.data is None else DEFAULT_TOKENS)},
    }
    return build(Recipe, raw, "")


def _canvases(longest: int) -> list[int]:
    """Lengths of answers in training, EOS included: the model meets every canvas it is going to be asked for."""
    return [n for n in (32, 48, 64, 96, 128) if n <= longest] or [longest]


def _vector(args: argparse.Namespace) -> int | None:
    if args.embedding_dim is not None:
        return int(args.embedding_dim)
    return None if args.conditioning == "origin" else min(16, args.d_model)
