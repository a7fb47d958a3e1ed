"""The run itself: what is left to do, group by group; then everything is put together.

Enters: a model, a `Setup`, a directory, and which of several processes this is. Leaves: events for whoever watches, and
the files of the run: items.jsonl, results.json (the same to the byte whoever made them and however often they were
killed), timing.json (what may differ). A run over a part of the items has the number in the names of its files.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unmask.core.errors import ConfigError, RecordingError
from unmask.evals.runner import environment
from unmask.evals.runner.answers import answer_group
from unmask.evals.runner.audit import audited, compare, drift
from unmask.evals.runner.folder import FORMAT, PATIENCE, Folder, Group, ranks
from unmask.evals.runner.known import known_problems
from unmask.evals.runner.plan import Asked, Plan, Setup
from unmask.evals.runner.results import is_results, summary, timing
from unmask.evals.runner.samples import samples as lm_eval_samples
from unmask.evals.sandbox import require
from unmask.pipeline import Model

ANSWERS, AUDIT, SESSION = "answers", "audit", "session"
Key = tuple[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Begun:
    """Everything was checked. total, done: answers of this process, and those that are there already."""

    spec: str
    total: int
    done: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """A group was finished. score: mean so far, of the answers of this process; None before the first."""

    done: int
    total: int
    score: float | None


@dataclass(frozen=True)
class Finished:
    """The run is complete. results: the content of its results file; None for processes that only helped."""

    results: Mapping[str, Any] | None
    path: Path | None


Event = Begun | Decoded | Finished


def evaluate(
    model: Model,
    setup: Setup,
    out: str | Path | None = None,
    *,
    rank: int = 0,
    world: int = 1,
    extend: bool = False,
    samples: bool = False,
    audit_model: Model | None = None,
    plan: Plan | None = None,
) -> Iterator[Event]:
    """Runs a benchmark, or goes on with it where it stands in `out`.

    Args:
        out: directory of the run; None keeps nothing.
        rank, world: which of how many processes; each takes every world-th group of answers, rank 0 puts them together.
        extend: go on with more items than the run in `out` had.
        samples: also write samples in the layout of lm-evaluation-harness.
        audit_model: the same checkpoint in another dtype; the audit compares with it instead of an exact cache.
        plan: the setup's plan on this model, if it was made already.

    Raises:
        InputError: a setup, data or directory that cannot be used; nothing has run then.
        RunError: a run that broke; what was finished is kept.
    """
    if not 0 <= rank < world:
        raise ConfigError("rank", expected=f"from 0 to {world - 1}", got=str(rank))
    if out is None and world > 1:
        raise ConfigError("--out", expected="a folder that all processes see", got="none")
    plan = Plan(model, setup) if plan is None else plan
    if plan.task.kind == "code":
        require(setup.weak)
    run = _Run(plan, samples, audit_model)
    with ExitStack() as stack:
        where = stack.enter_context(tempfile.TemporaryDirectory()) if out is None else out
        folder = Folder(Path(where), rank, world)
        stack.enter_context(folder.locked())
        folder.begin(run.manifest, run.notes, extend)
        yield from run.events(folder, kept=out is not None)


class _Run:
    """A plan on its way. The work is cut in the same way for every process and every start."""

    def __init__(self, plan: Plan, samples: bool, audit_model: Model | None) -> None:
        self.plan, self.samples, self.audit_model = plan, samples, audit_model
        self.warnings = known_problems(plan)
        again = audited(plan, audit_model) if plan.setup.audit is not None else []
        self.work: list[tuple[str, list[Asked]]] = [
            *((ANSWERS, g) for g in plan.groups),
            *((AUDIT, g) for g in again),
        ]
        limit = f".limit-{len(plan.items)}" if plan.is_limited else ""
        self.names = {n: n.replace(".", f"{limit}.", 1) for n in ("results.json", "items.jsonl", "audit.jsonl")}
        self.names["timing.json"] = f"timing{limit}.json"
        self.names["samples"] = f"samples_{plan.spec.split('(')[0]}{limit}.jsonl"

    @property
    def manifest(self) -> dict[str, Any]:
        """Everything that decides the numbers; two runs with the same one give the same files."""
        plan, setup, model = self.plan, self.plan.setup, self.plan.model
        run: dict[str, Any] = {
            "task": plan.spec,
            "kind": plan.task.kind,
            "protocol": setup.protocol,
            "data_sha256": plan.data.sha256,
            "split": setup.split,
            "items": len(plan.items),
            "limit": len(plan.items) if plan.is_limited else None,
            "chat": plan.chat,
            "system": setup.system,
            "bos": setup.bos,
            "max_tokens": plan.max_tokens,
            "cut": setup.cut,
            "options": {"profile": setup.options.profile, **setup.options.said()},
            "strategy": plan.strategy,
            "seed": setup.seed,
            "batch": setup.batch,
            "n_samples": setup.n_samples,
            "pass_at": setup.pass_at,
            "audit": setup.audit,
            "audit_dtype": None if self.audit_model is None else dtype_of(self.audit_model),
            "model_sha256": environment.model_sha256(model),
            "dtype": dtype_of(model),
            "device": model.denoiser.device.type,
            "versions": environment.versions(),
        }
        if plan.task.kind == "choice":
            run["scoring"] = asdict(setup.scoring)
        if plan.task.kind == "code":
            run["sandbox"] = {"timeout": setup.timeout, "weak": setup.weak}
        return dict(json.loads(json.dumps(run)))

    @property
    def notes(self) -> dict[str, Any]:
        """Names, paths and words: kept, not compared."""
        plan, model = self.plan, self.plan.model
        return {
            "model": model.name,
            "family": model.family,
            "data": plan.data.source,
            "items_in_data": len(plan.data.items),
            "settings": plan.settings,
            "warnings": self.warnings,
            "git": environment.git_state(),
        }

    # ---- group by group ----------------------------------------------------------------------------------------------

    def events(self, folder: Folder, kept: bool) -> Iterator[Event]:
        """What happens until this process has nothing left to do."""
        results = folder.read(self.names["results.json"])
        if results is not None:
            self._check_own(folder, results)
            if self.samples and not folder.rank and not (folder.path / self.names["samples"]).exists():
                self._write_samples(folder, self._records_of(folder))
            folder.close()
            yield Finished(results, folder.path)
            return
        folder.repair()
        done = self._done(folder)
        mine = [w for i, w in enumerate(self.work) if i % folder.world == folder.rank]
        left = [w for w in mine if _key(*w) not in done]
        scores = [s for w in mine if w[0] == ANSWERS for s in self._scores(_records(done.get(_key(*w))))]
        total = sum(len(g) for _, g in mine)
        count = total - sum(len(g) for _, g in left)
        yield Begun(self.plan.spec, total, count, tuple(self.warnings))
        folder.append(Group(SESSION, (), (), self._session(folder)))
        for stage, group in left:
            model = self.audit_model if stage == AUDIT and self.audit_model is not None else self.plan.model
            records, cost = answer_group(self.plan, group, model)
            cost |= {"rank": folder.rank, "answers": len(group)}
            folder.append(Group(stage, _key(stage, group)[1], tuple(records), cost))
            scores += self._scores(records) if stage == ANSWERS else []
            count += len(group)
            yield Decoded(count, total, sum(scores) / len(scores) if scores else None)
        if folder.rank:
            yield Finished(None, folder.path)
            return
        yield Finished(self._finish(folder), folder.path if kept else None)

    def _check_own(self, folder: Folder, results: Mapping[str, Any]) -> None:
        there = folder.manifest()
        if there is None or results.get("run") != there["run"] or not is_results(results):
            raise RecordingError(
                str(folder.path / self.names["results.json"]),
                expected="the results of this run",
                got="another JSON file",
                remedy="Name another folder, or delete this file: the run is done again.",
            )

    def _records_of(self, folder: Folder) -> list[dict[str, Any]]:
        """The records that finished results were made of."""
        name, count = self.names["items.jsonl"], len(self.plan.asked)
        found = folder.lines(name)
        if len(found) != count:
            raise RecordingError(
                str(folder.path / name), expected=f"the {count} answers of this run", got=str(len(found)),
                remedy=f"Delete {self.names['results.json']}: the run is done again.",
            )  # fmt: skip
        return found

    def _scores(self, records: Sequence[Mapping[str, Any]]) -> list[float]:
        return [r["scores"][self.plan.task.metric] for r in records]

    def _session(self, folder: Folder) -> dict[str, Any]:
        begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        place = {"rank": folder.rank, "world": folder.world, **environment.machine(self.plan.model)}
        return {"begun": begun, **place, "versions": environment.versions(), "git": environment.git_state()}

    def _done(self, folder: Folder) -> dict[Key, Group]:
        """Finished groups that are groups of this plan; those of a smaller run are taken from its items."""
        wanted = {_key(*w) for w in self.work}
        found = {(g.stage, g.keys): g for g in folder.groups() if (g.stage, g.keys) in wanted}
        for path in sorted(folder.path.glob("items.limit-*.jsonl")):
            known = {(r["index"], r["sample"]): r for r in folder.lines(path.name)}
            for stage, group in self.work:
                keys = tuple(a.key for a in group)
                if stage == ANSWERS and (stage, keys) not in found and all(k in known for k in keys):
                    found[stage, keys] = Group(stage, keys, tuple(known[k] for k in keys), {})
        return found

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _finish(self, folder: Folder) -> dict[str, Any]:
        done = self._gathered(folder)
        groups = [done[_key(*w)] for w in self.work]
        records = [r for g in groups if g.stage == ANSWERS for r in g.records]
        again = [r for g in groups if g.stage == AUDIT for r in g.records]
        folder.write_lines(self.names["items.jsonl"], records)
        if self.samples:
            self._write_samples(folder, records)
        results = self._results(folder, records)
        if again:
            compared = self._compared(records, again)
            folder.write_lines(self.names["audit.jsonl"], compared)
            against = f"the same strategy in {dtype_of(self.audit_model)}" if self.audit_model else "an exact cache"
            results["audit"] = drift(compared, against, self.plan.task.metric)
        results = json.loads(json.dumps(results))
        costs = [g.cost for g in groups if g.stage == ANSWERS and g.cost]
        sessions = [g.cost for g in folder.groups() if g.stage == SESSION]
        folder.write(self.names["timing.json"], timing(costs, sessions))
        folder.write(self.names["results.json"], results)
        folder.close()
        return results

    def _write_samples(self, folder: Folder, records: Sequence[Mapping[str, Any]]) -> None:
        folder.write_lines(self.names["samples"], lm_eval_samples(self.plan, records))

    def _gathered(self, folder: Folder) -> dict[Key, Group]:
        """Every group of the run; waits for the other processes."""
        seen = dict.fromkeys(ranks(folder.world, 0), int(time.monotonic()))
        while True:
            done = self._done(folder)
            lacking = {i % folder.world for i, w in enumerate(self.work) if _key(*w) not in done}
            if not lacking:
                return done
            for other in lacking:
                if folder.alive(other):
                    seen[other] = int(time.monotonic())
            folder.wait({r: seen[r] for r in lacking}, PATIENCE)

    def _compared(
        self, records: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        first = {(r["index"], r["sample"]): r for r in records}
        return [compare(first[r["index"], r["sample"]], r) for r in again]

    def _results(self, folder: Folder, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        there = folder.manifest()
        assert there is not None
        head = {"format": FORMAT, "limited": self.plan.is_limited}
        return {
            **head,
            **summary(records, self.plan.task.metric, self.plan.setup.pass_at),
            "run": there["run"],
            **there["notes"],
        }


def _key(stage: str, group: Sequence[Asked]) -> Key:
    return stage, tuple(a.key for a in group)


def _records(group: Group | None) -> tuple[Mapping[str, Any], ...]:
    return () if group is None else group.records


def dtype_of(model: Model) -> str:
    """Its dtype in words."""
    return str(model.denoiser.head.weight.dtype).removeprefix("torch.")
