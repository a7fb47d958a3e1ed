"""Measures strategies in turn, group by group, each in a folder of its own that a second start goes on with.

Enters: a model, a setup, candidates, a folder. Leaves: events, at the end a `Pareto`. Every strategy is an ordinary
run of `evals.runner`; a round decodes one group of items with each of them, beginning with another one every time, so
that their clocks see the same machine.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from unmask.core.errors import ConfigError, InputError, RecordingError
from unmask.evals import runner
from unmask.evals.pareto.result import FORMAT, Measured, Pareto, analyse, check_halves
from unmask.evals.pareto.strategies import Candidate
from unmask.evals.runner import Setup, evaluate
from unmask.evals.runner.answers import decode
from unmask.evals.runner.folder import claim, read_json, read_lines, write_json
from unmask.evals.runner.known import known_problems
from unmask.evals.runner.plan import Plan
from unmask.evals.synthetic_eval import ONE_PER_STEP
from unmask.pipeline import Model

RUNS, STARTS = "strategies", "starts.json"


@dataclass(frozen=True)
class Started:
    """Everything was checked. total, done: answers of all strategies together, and those that are there already."""

    strategies: int
    total: int
    done: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """A group was answered under one strategy. score: its mean so far."""

    done: int
    total: int
    label: str
    score: float | None


Event = Started | Done | Pareto
Run = Generator["runner.Begun | runner.Decoded | runner.Finished", None, None]


def plans(model: Model, setup: Setup, candidates: Sequence[Candidate], score: str | None = None) -> list[Plan]:
    """One plan per candidate; a length in a candidate's options wins over the setup's.

    Args:
        score: name of the score that will count, to be checked before anything is decoded.

    Raises:
        InputError: a task whose answers are not written, too few items, a score that the task does not have, or a
            strategy that the model refuses.
    """
    if setup.n_samples != 1 or setup.audit is not None:
        raise ConfigError("setup", expected="one answer per item and no audit", got="others")
    found = []
    for candidate in candidates:
        length = candidate.options.gen_length or setup.max_tokens
        plan = Plan(model, replace(setup, options=candidate.options, max_tokens=length))
        if plan.task.kind == "choice":
            raise ConfigError(
                plan.spec, expected="a task whose answers are written", got="choices that are scored by likelihood",
                remedy="Such scores do not depend on a decoding strategy; use `unmask eval run`.",
            )  # fmt: skip
        try:
            _ = plan.asked
        except InputError as error:
            raise ConfigError(
                f"strategy {candidate.label!r}: {error.what}", expected=error.expected, got=error.got,
                remedy=error.remedy,
            ) from None  # fmt: skip
        found.append(plan)
    check_halves([i.id for i in found[0].items])
    if score is not None:
        _check_score(found[0], score)
    return found


def _check_score(plan: Plan, score: str) -> None:
    """Refuses a score that an answer to the task does not get; programs are scored by their tests alone."""
    if plan.task.kind == "code":
        names = {plan.task.metric}
    else:
        names = set(plan.task.judge(plan.items[0], "").scores)
    if score not in names:
        raise ConfigError("--score", expected=f"one of: {', '.join(sorted(names))}", got=score)


def forwards(plan: Plan, candidate: Candidate) -> tuple[int, int]:
    """Forwards of all answers at least and at most, if nothing ends them early."""
    least, most = plan.forwards
    one_each = candidate.baseline or candidate.options.policy == ONE_PER_STEP["policy"]
    return len(plan.asked) * (most if one_each else least), len(plan.asked) * most


def measure(
    model: Model,
    setup: Setup,
    candidates: Sequence[Candidate],
    out: str | Path,
    *,
    axis: str = "tokens_per_s",
    max_loss: float = 0.01,
    score: str | None = None,
    extend: bool = False,
    planned: Sequence[Plan] | None = None,
) -> Iterator[Event]:
    """Measures what is not measured yet, then judges all of it.

    Args:
        candidates: the baseline first, as `strategies` gives them.
        out: folder of the comparison; each strategy has its own inside.
        axis: the speed that counts (`result.AXES`). max_loss: what a user is ready to lose, as a share.
        score: name of the score; None takes the one the task is known by.
        extend: go on with more items than before. planned: `plans` of the same candidates, if made already.

    Raises:
        InputError: anything that cannot be used; nothing has run then.
    """
    root = _folder(Path(out))
    made = list(plans(model, setup, candidates, score) if planned is None else planned)
    with ExitStack() as stack:
        runs: list[Run] = []
        for candidate, plan in zip(candidates, made, strict=True):
            events = evaluate(model, plan.setup, root / RUNS / candidate.key, plan=plan, extend=extend)
            runs.append(stack.enter_context(closing(cast(Run, events))))
        finished: dict[int, Mapping[str, Any]] = {}
        counts, total = [0] * len(runs), sum(len(p.asked) for p in made)
        for i, run in enumerate(runs):  # all are checked and locked before the first answer is decoded
            event = next(run)
            if isinstance(event, runner.Begun):
                counts[i] = event.done
            elif isinstance(event, runner.Finished):
                finished[i], counts[i] = event.results or {}, len(made[i].asked)
        yield Started(len(runs), total, sum(counts), tuple(dict.fromkeys(w for p in made for w in known_problems(p))))
        open_runs = [i for i in range(len(runs)) if i not in finished]
        if open_runs:
            _note_start(root, [candidates[i].key for i in open_runs])
            decode(model, made[open_runs[-1]].groups[0])  # first calls allocate and compile: kept out of the times
        turn = 0
        while open_runs:
            for i in [*open_runs[turn % len(open_runs) :], *open_runs[: turn % len(open_runs)]]:
                event = next(runs[i])
                if isinstance(event, runner.Decoded):
                    counts[i] = event.done
                    yield Done(sum(counts), total, candidates[i].label, event.score)
                elif isinstance(event, runner.Finished):
                    finished[i] = event.results or {}
            open_runs, turn = [i for i in open_runs if i not in finished], turn + 1
    read = [_read(root / RUNS / c.key, c, p, finished[i], score) for i, (c, p) in enumerate(zip(candidates, made))]
    yield analyse(read, axis, score or made[0].task.metric, max_loss, _about(root, candidates, made, finished[0]))


def _folder(root: Path) -> Path:
    """A folder that is new, empty, or one of a comparison."""
    begun = (root / RUNS).is_dir()
    claim(root, RUNS, "a comparison", begun or not root.is_dir() or not any(root.iterdir()))
    return root


# ---- what the clocks saw ---------------------------------------------------------------------------------------------


def _note_start(root: Path, keys: Sequence[str]) -> None:
    """Who was decoded in this start: only strategies of one and the same start have comparable times."""
    path, starts = root / STARTS, _starts(root)
    begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_json(path, {"format": FORMAT, "starts": [*starts, {"begun": begun, "strategies": list(keys)}]})


def _starts(root: Path) -> list[dict[str, Any]]:
    path = root / STARTS
    found = read_json(path).get("starts") if path.is_file() else []
    if not isinstance(found, list) or not all(isinstance(s, dict) and "strategies" in s for s in found):
        raise RecordingError(f"{path} is damaged", remedy="Name another folder.")
    return found


def _together(root: Path, keys: Sequence[str]) -> bool:
    """Whether all were timed in turns, in one start that was not interrupted."""
    of = [[i for i, s in enumerate(_starts(root)) if key in s["strategies"]] for key in keys]
    return all(len(found) == 1 for found in of) and len({found[0] for found in of}) == 1


# ---- reading ---------------------------------------------------------------------------------------------------------


def _part(plan: Plan) -> str:
    return f".limit-{len(plan.items)}" if plan.is_limited else ""


def _read(folder: Path, candidate: Candidate, plan: Plan, results: Mapping[str, Any], score: str | None) -> Measured:
    records = read_lines(folder / f"items{_part(plan)}.jsonl")
    name = score or plan.task.metric
    if name not in results["scores"]:
        raise ConfigError("--score", expected=f"one of: {', '.join(results['scores'])}", got=name)
    timing = _timing(folder, plan)["decoding"]
    cost = results["cost"]
    return Measured(
        key=candidate.key,
        label=candidate.label,
        baseline=candidate.baseline,
        options=_options(candidate, plan),
        strategy=str(results["run"]["strategy"]),
        scores={str(r["id"]): float(r["scores"].get(name, 0.0)) for r in records},
        tokens=cost["tokens"],
        nfe=cost["nfe"],
        tokens_per_forward=cost["tokens_per_forward"],
        row_layers=cost["row_layers"],
        tokens_per_s=timing["tokens_per_second"] or None,
        forwards=cost.get("forwards", {}),
        answers={str(r["id"]): r["text"] for r in records if "text" in r},
    )


def _options(candidate: Candidate, plan: Plan) -> dict[str, Any]:
    """What a profile has to say to decode in the same way."""
    named = {} if candidate.options.profile == "default" else {"profile": candidate.options.profile}
    return {**named, "gen_length": plan.max_tokens, **candidate.options.said()}


def _timing(folder: Path, plan: Plan) -> dict[str, Any]:
    return read_json(folder / f"timing{_part(plan)}.json")


def _about(
    root: Path, candidates: Sequence[Candidate], made: Sequence[Plan], results: Mapping[str, Any]
) -> dict[str, Any]:
    session = _timing(root / RUNS / candidates[0].key, made[0])["sessions"][-1]
    run = results["run"]
    machine = {k: session[k] for k in ("platform", "device", "processor", "threads")}
    about = {
        "task": made[0].spec,
        "model": results["model"],
        "n": results["n"],
        "limited": results["limited"],
        "items_in_data": results["items_in_data"],
        "timed_in_turns": _together(root, [c.key for c in candidates]),
        "machine": machine,
        "batch": run["batch"],
        "seed": run["seed"],
        **{k: run[k] for k in ("data_sha256", "model_sha256", "dtype", "device", "versions")},
        "tokens_counted": results["cost"]["tokens_counted"],
    }
    return dict(json.loads(json.dumps(about)))
