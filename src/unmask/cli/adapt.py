"""`unmask adapt PARENT --out DIR`: an autoregressive checkpoint becomes a block-diffusion model, beside its parent."""

from __future__ import annotations

import argparse
import gc
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.inputs import need_file
from unmask.cli.output import Notices, print_json
from unmask.cli.parsing import Parser, integer, number
from unmask.cli.train import check_folder, check_overrides, unmade, watch
from unmask.core.errors import InputError

if TYPE_CHECKING:
    import torch

    from unmask.evals.side_by_side import Question, Side
    from unmask.train.adapt import Start
    from unmask.train.batch import Batch
    from unmask.train.objectives.loss import Objective
    from unmask.train.recipe import Recipe
    from unmask.train.trainer import Trainer

EXAMPLES = """\
  unmask adapt Qwen/Qwen2.5-1.5B-Instruct --data chat.jsonl --tokens 1e9 --out my-diffusion-model
  unmask adapt ./smollm2 --data chat.jsonl --steps 2000 --lora 32 --out child
  unmask adapt ./parent --recipe recipes/nano_block.yaml --out child      data, optimiser and length from a file
  unmask adapt ./parent --recipe recipes/nano_block.yaml --out child --resume

DIR is an ordinary checkpoint when it is done (unmask generate --model DIR), in Fast-dLLM v2's format or, with --context
causal, in one of our own; the training's files are under DIR/run, the comparison with the parent in DIR/report.json."""
KIND = "block-diffusion"
OURS = ("start", "parent", "train.jsonl", "held_out.jsonl", "adapt.json")
"""What is made in DIR/run before the training begins."""


def main(argv: Sequence[str]) -> int:
    """Prints the comparison of child and parent on stdout; progress goes to stderr."""
    parser = _parser()
    args = parser.parse(argv)
    _check(args)
    from unmask.models.load import locate

    out = Path(args.out)
    run = out / "run"
    notices = Notices(args.quiet)
    with unmade(run):
        _begin(args, run)
        parent = _parent(args.parent, run) if args.parent.endswith(".gguf") else str(locate(args.parent, args.revision))
        recipe, start = _prepare(args, parent, run, notices)
        from unmask.train.trainer import Trainer

        trainer = Trainer(recipe, run, model_dir=out, validate_last=not _measured_here(recipe))
        held_out = _HeldOut(_batches(trainer), _questions(trainer, args, notices))
    notices.say(f"parent {args.parent}, mask token id {start.mask_id}, {recipe.run.steps} steps")
    try:
        code = watch(trainer.fit(), args.quiet)
    except KeyboardInterrupt:
        notices.say(f"stopped; the last checkpoint is whole. Go on with --out {out} --resume")
        raise
    ended = _Ended.of(trainer)
    del trainer
    _free()
    report = _report(args, parent, ended, held_out)
    print_json(report) if args.json else print(_readable(report, out))
    return code


def _parser() -> Parser:
    parser = Parser(
        "unmask adapt",
        "Turn an autoregressive checkpoint (Qwen2, Llama, SmolLM2; a .gguf file with the extra `gguf`) into a "
        "block-diffusion model:\nadds the mask token, trains with Fast-dLLM v2's objective, exports the published "
        "format, and compares child and parent.",
        EXAMPLES,
    )
    parser.add_argument("parent", metavar="PARENT", help="a directory, a hub id, nano-ar or a .gguf file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the recipe: optim.lr=0.0001")
    parser.option(parser, "--out", "-o", metavar="DIR", required=True, help="folder of the new checkpoint")
    parser.option(parser, "--revision", metavar="REV", help="branch, tag or commit of a hub id")
    g = parser.add_argument_group("data")
    parser.option(
        g, "--data", action="append", default=[], metavar="FILE", help="jsonl of {messages: [...]} or {prompt, answer}"
    )
    parser.option(g, "--held-out", metavar="FILE", help="the same for the comparison (default: every 50th record)")
    parser.option(g, "--recipe", metavar="FILE", help="a recipe without model: section instead of --data")
    parser.option(g, "--length", type=integer(8), help="longest row in tokens (default: 512)")
    parser.option(g, "--rows", type=integer(1), help="rows of a batch (default: 8)")
    g = parser.add_argument_group("training")
    parser.option(g, "--block", type=integer(1), help="positions per block (default: 32, or the recipe's)")
    parser.option(
        g,
        "--context",
        choices=["block", "causal"],
        help="what rows of finished blocks see: block, all of their block, as published (default); causal, only what "
        "comes before them, as in the parent: meant to keep more of its skill, but only unmask reads the format",
    )
    parser.option(
        g,
        "--ar-weight",
        type=number(low=0),
        metavar="W",
        help="weight of the parent's next-token loss on the clean text, with --context causal (default: 1)",
    )
    parser.option(g, "--steps", type=integer(1), help="optimiser steps")
    parser.option(g, "--tokens", type=number(above=0), help="data tokens instead of steps (1e9)")
    parser.option(g, "--lr", type=number(above=0), help="peak learning rate (default: 2e-5)")
    parser.option(g, "--lora", type=integer(1), metavar="RANK", help="train low-rank adapters, folded in at the end")
    parser.option(g, "--checkpointing", flag=True, help="recompute activations: less memory, about a third slower")
    parser.option(g, "--seed", type=integer(0), help="of data order and noise (default: 0)")
    parser.option(g, "--resume", flag=True, help="go on from the newest checkpoint in DIR")
    g = parser.add_argument_group("comparison")
    parser.option(g, "--count", type=integer(0), default=100, help="held-out prompts to answer (default: 100; 0: none)")
    parser.option(g, "--max-tokens", type=integer(1), help="room for an answer (default: the checkpoint's)")
    parser.add_argument("--json", action="store_true", help="the comparison as JSON on stdout")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress")
    return parser


def _check(args: argparse.Namespace) -> None:
    check_overrides(args.overrides)
    if bool(args.data) == bool(args.recipe):
        got = "both" if args.data else "neither"
        raise InputError("training data", expected="--data FILE or --recipe FILE, one of them", got=got)
    if args.recipe and (args.length or args.rows):
        raise InputError(
            "--length / --rows", expected="--data with them", got="--recipe", remedy="Say it in the recipe."
        )
    for name in args.data:
        need_file(name, "--data ", "a .jsonl file")
    if args.held_out is not None:
        if not args.data:
            raise InputError(
                "--held-out", expected="--data with it", got="--recipe", remedy="Use its validate: section."
            )
        need_file(args.held_out, "--held-out ", "a .jsonl file")
    if args.recipe:
        need_file(args.recipe, "--recipe ", "a YAML file", "See recipes/ for examples.")
    if args.steps is not None and args.tokens is not None:
        raise InputError("--steps / --tokens", expected="one of them", got="both")
    if args.out == "":
        raise InputError("--out", expected="a folder for the checkpoint", got="nothing")
    check_folder(Path(args.out) / "run", args.resume, Path(args.out))
    if not args.resume:
        _check_new(Path(args.out))


def _check_new(out: Path) -> None:
    """A folder that holds anything but a run without a checkpoint is left alone: it may be the parent's own."""
    others = sorted(p.name for p in out.iterdir() if p.name != "run") if out.is_dir() else []
    if others:
        got = "a checkpoint" if "config.json" in others else f"one with files ({', '.join(others[:3])})"
        raise InputError(f"--out {out}", expected="a new or empty folder", got=got, remedy="Name another folder.")


def _begin(args: argparse.Namespace, run: Path) -> None:
    """A new run forgets what an earlier one left before its first checkpoint; one that goes on must be the same."""
    said = {
        "parent": _place(args.parent),
        "revision": args.revision,
        "data": [_place(f) for f in args.data],
        "held-out": args.held_out and _place(args.held_out),
        "recipe": args.recipe and _place(args.recipe),
    }
    file = run / "adapt.json"
    if args.resume:
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else said
        for name, value in said.items():
            if before[name] != value:
                what = name if name == "parent" else f"--{name}"
                raise InputError(f"{what} with --resume", expected=f"{before[name]}, as it began", got=str(value))
        return
    from unmask.train.checkpoint import write_json

    for path in [p for name in OURS for p in (run / name, *run.glob(f".{name}.*"))]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    write_json(file, said)


def _place(name: str) -> str:
    """A file or folder from wherever the command is given, or a hub id."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _parent(file: str, run: Path) -> str:
    """A GGUF file as a checkpoint directory, made once."""
    need_file(file, "parent ", "a .gguf file")
    out = run / "parent"
    if not (out / "config.json").is_file():
        from unmask.pipeline.gguf import import_gguf

        import_gguf(file, out)
    return str(out)


def _prepare(args: argparse.Namespace, parent: str, run: Path, notices: Notices) -> tuple[Recipe, Start]:
    """The recipe out of file, flags and overrides, and the untrained child."""
    from unmask.train.adapt import make_start, recipe_of
    from unmask.train.config import build
    from unmask.train.objectives.block_diffusion import BlockDiffusion
    from unmask.train.recipe import override, read_raw

    raw = read_raw(Path(args.recipe)) if args.recipe else _raw(args, run, notices)
    flags = {
        "objective.block": args.block,
        "objective.context": args.context,
        "objective.ar_weight": args.ar_weight,
        "run.steps": args.steps,
        "optim.lr": args.lr,
        "lora.rank": args.lora,
        "run.checkpointing": args.checkpointing or None,
        "seed": args.seed,
    }
    for name, value in flags.items():
        if value is not None:
            override(raw, f"{name}={value!r}")
    for item in args.overrides:
        override(raw, item)
    if args.tokens is not None:
        raw.get("run", {}).pop("steps", None)
    raw["objective"] = {"kind": KIND, "block": 32, **raw.get("objective", {})}
    if raw["objective"].get("context") == "causal":
        raw["objective"] = {"ar_weight": 1.0, **raw["objective"]}
    objective = {k: v for k, v in raw["objective"].items() if k != "kind"}
    if raw["objective"]["kind"] != KIND:
        got = str(raw["objective"]["kind"])
        raise InputError("objective of an adaptation", expected=f"kind: {KIND}", got=got)
    made = build(BlockDiffusion, objective, "objective")
    start = make_start(parent, made, run / "start", None)
    return recipe_of(raw, start, None if args.tokens is None else round(args.tokens)), start


def _raw(args: argparse.Namespace, run: Path, notices: Notices) -> dict[str, Any]:
    """A recipe for local files, with some records held out of the training."""
    from unmask.train.held_out import found_apart, set_apart

    resumed = args.resume and (run / "held_out.jsonl").is_file()
    apart = found_apart(run) if resumed else set_apart(args.data, args.held_out, run)
    if apart.repeated:
        notices.say(f"{apart.repeated} records equal to held-out ones are left out of the training")
    section: dict[str, Any] = {"kind": apart.kind, "length": args.length or 512, "rows": args.rows or 8}
    if apart.kind == "pairs":
        section["pad_to_longest"] = False
    return {
        "name": "adapt",
        "data": {**section, "source": {"kind": "files", "paths": [str(apart.train)]}},
        "validate": {
            "every": 1_000_000_000,
            "data": {**section, "source": {"kind": "files", "paths": [str(apart.held_out)]}},
        },
    }


# ---- the comparison --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _HeldOut:
    """Drawn before the training, so that data which cannot be compared is refused then: batches for the likelihood,
    prompts to answer.
    """

    batches: list[Batch]
    questions: list[Question]


@dataclass(frozen=True)
class _Ended:
    """What the comparison needs of a training that is over: not its model, nor its optimiser."""

    recipe: Recipe
    objective: Objective
    ids: tuple[int | None, int]
    device: torch.device
    step: int
    tokens: int
    positions: float

    @classmethod
    def of(cls, t: Trainer) -> _Ended:
        return cls(t.recipe, t.objective, (t.mask_id, t.eos_id), t.device, t.step, t.tokens, t.positions)


def _measured_here(recipe: Recipe) -> bool:
    """Whether the report's held-out loss says all that a last validation of the trainer would."""
    check = recipe.validate
    return check is not None and check.data is not None and check.metric is None


def _free() -> None:
    """Gives the memory of a deleted model back before others are loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _report(args: argparse.Namespace, parent: str, ended: _Ended, held_out: _HeldOut) -> dict[str, Any]:
    """Quality beside speed for both, written to DIR/report.json."""
    from unmask.sinks.files import write_text

    out = Path(args.out)
    report: dict[str, Any] = {
        "parent": args.parent,
        "steps": ended.step,
        "tokens": ended.tokens,
        "positions": round(ended.positions),
        "block": ended.recipe.objective.block,  # type: ignore[union-attr]
        "context": ended.recipe.objective.context,  # type: ignore[union-attr]
        "held_out": _likelihoods(parent, out, ended, held_out.batches),
        "exact_match": _from_records(ended.recipe),
        "sides": [s.to_dict() for s in _sides(args, parent, out, held_out.questions)],
    }
    write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def _batches(trainer: Trainer) -> list[Batch]:
    """Held-out batches; the training data gives one as well, to see that it can."""
    check, recipe = trainer.recipe.validate, trainer.recipe
    if check is None or check.data is None:
        return []
    streams = [data.open(recipe.seed) for data in (check.data, recipe.data)]
    for stream in streams:
        stream.bind(trainer.codec)
    streams[1].next()
    return [streams[0].next().to(trainer.device) for _ in range(check.batches)]


def _likelihoods(parent: str, out: Path, ended: _Ended, batches: list[Batch]) -> dict[str, float] | None:
    """Nats per answer token on held-out data: the parent's exact likelihood and the bound of the child as written."""
    check, seed = ended.recipe.validate, ended.recipe.seed
    if check is None or not batches:
        return None
    import torch

    from unmask.models.load import load_model
    from unmask.train.forward import Net
    from unmask.train.objectives.autoregressive import Autoregressive
    from unmask.train.validate import nelbo

    def net(path: str | Path) -> Net:
        return Net(load_model(path, dtype=torch.float32, device=ended.device).model)

    exact = nelbo(Autoregressive(prompt_loss=False).bound(*ended.ids), net(parent), batches, 2, 0)
    bound = nelbo(ended.objective, net(out), batches, check.rounds, seed)
    return {"parent_nll": exact["nelbo"], "child_nelbo": bound["nelbo"], "child_nelbo_se": bound["nelbo_se"]}


def _sides(args: argparse.Namespace, parent: str, out: Path, questions: list[Question]) -> list[Side]:
    from unmask.evals.side_by_side import compare
    from unmask.pipeline import load

    if not questions:
        return []
    Notices(args.quiet).say(f"answering {len(questions)} held-out prompts with parent and child")
    return compare(load(parent, slots=32), load(out, slots=32), questions, args.max_tokens)


def _questions(trainer: Trainer, args: argparse.Namespace, notices: Notices) -> list[Question]:
    """Held-out prompts of the validation data that fit into the context, with their reference answers."""
    from unmask.train.data import ChatData, GeneratorData, PairData

    most, wanted = trainer.model.cfg.max_len, args.max_tokens or 1
    if wanted >= most:
        raise InputError("--max-tokens", expected=f"less than the context of {most}", got=str(wanted))
    data = trainer.recipe.validate.data if trainer.recipe.validate is not None else None
    if isinstance(data, GeneratorData):
        return _generated(data, trainer.recipe.seed, args.count)
    if not isinstance(data, ChatData | PairData):
        return []
    found = list(islice(_recorded(data), args.count))
    fitting = [q for q in found if _tokens(trainer, q.prompt) + wanted <= most]
    if len(fitting) < len(found):
        notices.say(f"{len(found) - len(fitting)} held-out prompts are too long for the context; they are not asked")
    return fitting


def _tokens(trainer: Trainer, prompt: Any) -> int:
    """Length of a prompt as decoding writes it."""
    codec = trainer.codec
    if isinstance(prompt, str) and not codec.has_template:
        return len(codec.encode(prompt))
    return len(codec.encode_chat([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt))


def _generated(data: Any, seed: int, count: int) -> list[Question]:
    """Items of the held-out generator; those of our own tasks are checked by their task, others by their text."""
    import random
    from functools import partial

    from unmask.evals.side_by_side import Question
    from unmask.evals.tasks.synthetic import TASKS, Item, task_named
    from unmask.train.data import load_function

    source = load_function(data.source)(random.Random(f"{seed}/questions"), data.stages[0].mix)
    out = []
    for item in islice(source, count):
        own = isinstance(item, Item) and item.task in TASKS
        check = partial(task_named(item.task).check, item) if own else partial(_same, item.answer)
        out.append(Question(item.prompt, item.answer, check))
    return out


def _recorded(data: Any) -> Iterator[Question]:
    from functools import partial

    from unmask.evals.side_by_side import Question
    from unmask.train.data import ChatData
    from unmask.train.records import messages_field, text_field

    source = data.source.open()
    for record in (r for shard in range(source.shards()) for r in source.read(shard, 0)):
        if isinstance(data, ChatData):
            messages = messages_field(record, data.messages)
            last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
            if last == 0:
                raise InputError("a held-out record", expected="an answer of the assistant", got=repr(messages)[:80])
            prompt: Any = messages[:last]
            answer = messages[last]["content"]
        else:
            prompt, answer = text_field(record, data.prompt), text_field(record, data.answer)
        yield Question(prompt, answer, partial(_same, answer))


def _from_records(recipe: Recipe) -> bool:
    """Whether the questions are recorded texts, whose answers only count when they match exactly."""
    from unmask.train.data import ChatData, PairData

    return recipe.validate is not None and isinstance(recipe.validate.data, ChatData | PairData)


def _same(answer: str, text: str) -> bool:
    return text.strip() == answer.strip()


def _readable(report: dict[str, Any], out: Path) -> str:
    from unmask.evals.side_by_side import Side, table

    lines = []
    held = report["held_out"]
    if held is not None:
        lines.append(
            f"held out, nats per answer token: parent {held['parent_nll']:.3f}, "
            f"child at most {held['child_nelbo']:.3f} "
            f"(+- {held['child_nelbo_se']:.3f})"
        )
    lines.append(f"{out}: {report['tokens']:,} data tokens, {report['positions']:,} positions, {report['steps']} steps")
    if report["sides"] and report["exact_match"]:
        lines.append("accuracy counts answers equal to the recorded text: of free text it says little, the loss more")
    derived = {"tokens_per_forward", "tokens_per_s"}
    sides = [Side(**{k: v for k, v in s.items() if k not in derived}) for s in report["sides"]]
    return "\n".join([*lines, *([table(sides)] if sides else [])])
