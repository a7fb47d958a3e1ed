"""`unmask adapt PARENT --out DIR`: an autoregressive checkpoint becomes a block-diffusion model, beside its parent."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.cli.inputs import need_file
from unmask.cli.output import Notices, print_json
from unmask.cli.parsing import Parser, integer, number
from unmask.cli.train import check_folder, check_overrides, unmade, watch
from unmask.core.errors import InputError

if TYPE_CHECKING:
    from unmask.evals.side_by_side import Question, Side
    from unmask.train.adapt import Start
    from unmask.train.recipe import Recipe
    from unmask.train.trainer import Trainer

EXAMPLES = """\
  unmask adapt Qwen/Qwen2.5-1.5B-Instruct --data chat.jsonl --tokens 1e9 --out my-diffusion-model
  unmask adapt ./smollm2 --data chat.jsonl --steps 2000 --lora 32 --out child
  unmask adapt ./parent --recipe recipes/nano_block.yaml --out child      data, optimiser and length from a file
  unmask adapt ./parent --recipe recipes/nano_block.yaml --out child --resume

DIR is an ordinary checkpoint in Fast-dLLM v2's format when it is done (unmask generate --model DIR), with the
training's own files under DIR/run and the comparison with the parent in DIR/report.json."""
KIND = "block-diffusion"
HELD_OUT = 50  # every so many-th record of a local file is kept for the comparison
MOST_HELD_OUT = 500


def main(argv: Sequence[str]) -> int:
    """Prints the comparison of child and parent on stdout; progress goes to stderr."""
    parser = _parser()
    args = parser.parse(argv)
    _check(args)
    from unmask.models.load import locate

    out = Path(args.out)
    run = out / "run"
    with unmade(out):
        parent = _parent(args.parent, run) if args.parent.endswith(".gguf") else str(locate(args.parent, args.revision))
        recipe, start = _prepare(args, parent, run)
        from unmask.train.trainer import Trainer

        trainer = Trainer(recipe, run, model_dir=out)
    notices = Notices(args.quiet)
    notices.say(f"parent {args.parent}, mask token id {start.mask_id}, {recipe.run.steps} steps")
    try:
        code = watch(trainer.fit(), args.quiet)
    except KeyboardInterrupt:
        notices.say(f"stopped; the last checkpoint is whole. Go on with --out {out} --resume")
        raise
    report = _report(args, parent, trainer, out)
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
    parser.add_argument("parent", metavar="PARENT", help="a directory, a hub id or a .gguf file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the recipe: optim.lr=0.0001")
    parser.option(parser, "--out", "-o", metavar="DIR", required=True, help="folder of the new checkpoint")
    parser.option(parser, "--revision", metavar="REV", help="branch, tag or commit of a hub id")
    g = parser.add_argument_group("data")
    parser.option(
        g, "--data", action="append", default=[], metavar="FILE", help="jsonl of {messages: [...]} or {prompt, answer}"
    )
    parser.option(
        g, "--held-out", metavar="FILE", help=f"the same for the comparison (default: every {HELD_OUT}th record)"
    )
    parser.option(g, "--recipe", metavar="FILE", help="a recipe without model: section instead of --data")
    parser.option(g, "--length", type=integer(8), help="longest row in tokens (default: 512)")
    parser.option(g, "--rows", type=integer(1), help="rows of a batch (default: 8)")
    g = parser.add_argument_group("training")
    parser.option(g, "--block", type=integer(1), help="positions per block (default: 32, or the recipe's)")
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


def _parent(file: str, run: Path) -> str:
    """A GGUF file as a checkpoint directory, made once."""
    need_file(file, "parent ", "a .gguf file")
    out = run / "parent"
    if not (out / "config.json").is_file():
        from unmask.pipeline.gguf import import_gguf

        import_gguf(file, out)
    return str(out)


def _prepare(args: argparse.Namespace, parent: str, run: Path) -> tuple[Recipe, Start]:
    """The recipe out of file, flags and overrides, and the untrained child."""
    from unmask.train.adapt import make_start, recipe_of
    from unmask.train.config import build
    from unmask.train.objectives.block_diffusion import BlockDiffusion
    from unmask.train.recipe import override, read_raw

    raw = read_raw(Path(args.recipe)) if args.recipe else _raw(args, run)
    flags = {
        "objective.block": args.block,
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
    objective = {k: v for k, v in raw["objective"].items() if k != "kind"}
    if raw["objective"]["kind"] != KIND:
        got = str(raw["objective"]["kind"])
        raise InputError("objective of an adaptation", expected=f"kind: {KIND}", got=got)
    made = build(BlockDiffusion, objective, "objective")
    start = make_start(parent, made, run / "start", None)
    return recipe_of(raw, start, None if args.tokens is None else round(args.tokens)), start


def _raw(args: argparse.Namespace, run: Path) -> dict[str, Any]:
    """A recipe for local files; unless held-out records are given, some are set apart first."""
    train, held = args.data, args.held_out
    if held is None:
        train, held = _split(args.data, run)
    kind = _kind(Path(train[0]))
    section: dict[str, Any] = {"kind": kind, "length": args.length or 512, "rows": args.rows or 8}
    if kind == "pairs":
        section["pad_to_longest"] = False
    return {
        "name": "adapt",
        "data": {**section, "source": {"kind": "files", "paths": [str(p) for p in train]}},
        "validate": {
            "every": 1_000_000_000,
            "data": {**section, "source": {"kind": "files", "paths": [str(held)]}},
        },
    }


def _kind(file: Path) -> str:
    """What the records hold: conversations or pairs."""
    first = _record(next((line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()), ""), file)
    if "messages" in first:
        return "chat"
    if {"prompt", "answer"} <= set(first):
        return "pairs"
    got = ", ".join(first) or "nothing"
    raise InputError(f"{file}: first record", expected="messages, or prompt and answer", got=got)


def _record(line: str, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}", expected="one JSON object a line", got=error.msg) from None
    if not isinstance(value, dict):
        raise InputError(f"{file}", expected="one JSON object a line", got=type(value).__name__)
    return value


def _split(files: Sequence[str], run: Path) -> tuple[list[str], str]:
    """Every HELD_OUT-th record (at most MOST_HELD_OUT) into held_out.jsonl, the rest into train.jsonl; made once."""
    from unmask.sinks.files import write_text

    train, held = run / "train.jsonl", run / "held_out.jsonl"
    if not held.is_file():
        lines = [x for f in files for x in Path(f).read_text(encoding="utf-8").splitlines() if x.strip()]
        apart = set(range(0, len(lines), HELD_OUT)[:MOST_HELD_OUT])
        if len(lines) < 2:
            raise InputError("--data", expected="at least two records", got=str(len(lines)))
        run.mkdir(parents=True, exist_ok=True)
        write_text(train, "".join(x + "\n" for i, x in enumerate(lines) if i not in apart))
        write_text(held, "".join(lines[i] + "\n" for i in sorted(apart)))
    return [str(train)], str(held)


# ---- the comparison --------------------------------------------------------------------------------------------------


def _report(args: argparse.Namespace, parent: str, trainer: Trainer, out: Path) -> dict[str, Any]:
    """Quality beside speed for both, written to DIR/report.json."""
    from unmask.sinks.files import write_text

    report: dict[str, Any] = {
        "parent": args.parent,
        "steps": trainer.step,
        "tokens": trainer.tokens,
        "positions": round(trainer.positions),
        "block": trainer.recipe.objective.block,  # type: ignore[union-attr]
        "held_out": _likelihoods(parent, trainer),
        "sides": [s.to_dict() for s in _sides(args, parent, trainer, out)],
    }
    write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def _likelihoods(parent: str, trainer: Trainer) -> dict[str, float] | None:
    """Nats per answer token on held-out data: the parent's exact likelihood and the child's bound."""
    check = trainer.recipe.validate
    if check is None or check.data is None:
        return None
    import torch

    from unmask.models.load import load_model
    from unmask.train.forward import Net
    from unmask.train.objectives.autoregressive import Autoregressive
    from unmask.train.validate import nelbo

    stream = check.data.open(trainer.recipe.seed)
    stream.bind(trainer.codec)
    batches = [stream.next().to(trainer.device) for _ in range(check.batches)]
    ids = (trainer.mask_id, trainer.eos_id)
    before = load_model(parent, dtype=torch.float32, device=trainer.device).model
    exact = nelbo(Autoregressive(prompt_loss=False).bound(*ids), Net(before), batches, 2, 0)
    bound = nelbo(trainer.objective, trainer.net, batches, check.rounds, trainer.recipe.seed)
    return {"parent_nll": exact["nelbo"], "child_nelbo": bound["nelbo"], "child_nelbo_se": bound["nelbo_se"]}


def _sides(args: argparse.Namespace, parent: str, trainer: Trainer, out: Path) -> list[Side]:
    from unmask.evals.side_by_side import compare
    from unmask.pipeline import load

    questions = _questions(trainer.recipe, args.count) if args.count else []
    if not questions:
        return []
    Notices(args.quiet).say(f"answering {len(questions)} held-out prompts with parent and child")
    return compare(load(parent, slots=32), load(out, slots=32), questions, args.max_tokens)


def _questions(recipe: Recipe, count: int) -> list[Question]:
    """Held-out prompts of the validation data, with their reference answers."""
    from unmask.train.data import ChatData, GeneratorData, PairData

    data = recipe.validate.data if recipe.validate is not None else None
    if isinstance(data, GeneratorData):
        return _generated(data, recipe.seed, count)
    if isinstance(data, ChatData | PairData):
        return _recorded(data, count)
    return []


def _generated(data: Any, seed: int, count: int) -> list[Question]:
    """Items of the held-out generator; those of our own tasks are checked by their task, others by their text."""
    import random
    from functools import partial
    from itertools import islice

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


def _recorded(data: Any, count: int) -> list[Question]:
    from functools import partial
    from itertools import islice

    from unmask.evals.side_by_side import Question
    from unmask.train.data import ChatData
    from unmask.train.records import messages_field, text_field

    source, out = data.source.open(), []
    for record in islice((r for shard in range(source.shards()) for r in source.read(shard, 0)), count):
        if isinstance(data, ChatData):
            messages = messages_field(record, data.messages)
            last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
            prompt: Any = list(messages[:last])
            answer = messages[last]["content"]
        else:
            prompt, answer = text_field(record, data.prompt), text_field(record, data.answer)
        out.append(Question(prompt, answer, partial(_same, answer)))
    return out


def _same(answer: str, text: str) -> bool:
    return text.strip() == answer.strip()


def _readable(report: dict[str, Any], out: Path) -> str:
    from unmask.evals.side_by_side import Side, table

    lines = [f"{out}: {report['tokens']:,} data tokens, {report['positions']:,} positions, {report['steps']} steps"]
    held = report["held_out"]
    if held is not None:
        lines.append(
            f"held out, nats per answer token: parent {held['parent_nll']:.3f}, "
            f"child at most {held['child_nelbo']:.3f} "
            f"(+- {held['child_nelbo_se']:.3f})"
        )
    derived = {"tokens_per_forward", "tokens_per_s"}
    sides = [Side(**{k: v for k, v in s.items() if k not in derived}) for s in report["sides"]]
    return "\n".join([*lines, *([table(sides)] if sides else [])])
