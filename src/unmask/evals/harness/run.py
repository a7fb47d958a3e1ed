"""Runs tasks of lm-eval on a `HarnessModel`.

Enters: names of tasks (stock, or YAML files of a directory). Leaves: lm-eval's results in process 0, and its files
where a path was given. Local tasks alone are found without reading lm-eval's whole index, which takes ten seconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from unmask.core.errors import ConfigError
from unmask.evals.harness.model import HarnessModel

TAKES_FILES = find_spec("lm_eval.tasks.manager") is not None
"""Whether this lm-eval takes a task's file for its name (since 0.4.12); earlier ones know names only."""
UNSAFE = "marked as unsafe"
"""What lm-eval says of a task that runs programs without consent."""
HUB = "Stock humaneval and mbpp fetch their metric from the hub; `unmask eval run humaneval --data FILE` needs no hub."


@dataclass(frozen=True)
class Wanted:
    """What lm-eval is asked for; names as in its own command line.

    Args:
        limit: documents per task, or a share below 1. chat: apply the chat template.
        multiturn: worked examples as turns; None follows `chat`.
        unsafe: consent to tasks that run programs. samples, output: keep the samples and results under `output`.
    """

    tasks: Sequence[str]
    include: str | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    chat: bool = False
    multiturn: bool | None = None
    system: str | None = None
    gen_kwargs: str | None = None
    unsafe: bool = False
    samples: bool = False
    output: str | None = None


def manager(wanted: Wanted) -> tuple[TaskManager, list[str]]:
    """A task index that holds the wanted tasks, and their names in it.

    Raises:
        ConfigError: a task or directory that is not there.
    """
    if wanted.include is not None and not Path(wanted.include).is_dir():
        raise ConfigError("--include-path", expected="a directory with YAML tasks", got=wanted.include)
    files = [str(Path(t).absolute()) for t in wanted.tasks if t.endswith((".yaml", ".yml"))]
    for path in files:
        if not Path(path).is_file():
            raise ConfigError(f"no task file {path}")
    names = [t for t in wanted.tasks if not t.endswith((".yaml", ".yml"))]
    if not wanted.tasks:
        raise ConfigError("--tasks", expected="at least one task of lm-eval, or a YAML file", got="none")
    include = _folders(wanted.include, files)
    local = TaskManager(include_path=include, include_defaults=False)
    found = {t: local.match_tasks([t]) for t in names}
    index = local
    if not all(found.values()):
        index = TaskManager(include_path=include)
        found = {t: index.match_tasks([t]) for t in names}
    for name, matches in found.items():
        if not matches:
            near = difflib.get_close_matches(name, index.all_tasks, n=3)
            hint = f"Did you mean {' or '.join(near)}?" if near else "Is --include-path the directory of its YAML file?"
            raise ConfigError(
                f"task {name!r}", expected="a task of lm-eval or of --include-path", got=name, remedy=hint
            )
    return index, [*dict.fromkeys(m for matches in found.values() for m in matches), *(_known(f, index) for f in files)]


def _folders(include: str | None, files: Sequence[str]) -> list[str] | str | None:
    """What the index is made of."""
    if TAKES_FILES or not files:
        return include
    return [*([] if include is None else [include]), *dict.fromkeys(str(Path(f).parent) for f in files)]


def _known(file: str, index: TaskManager) -> str:
    """What the index knows a task's file by."""
    if TAKES_FILES:
        return file
    paths = {str(entry["yaml_path"]): name for name, entry in index.task_index.items()}
    if file not in paths:
        raise ConfigError(f"task file {file}", expected='a "task:" with a name in it', got="none")
    return str(paths[file])


def run(model: HarnessModel, wanted: Wanted) -> dict[str, Any] | None:
    """lm-eval's results with their samples; None in processes that only helped.

    Raises:
        ConfigError: a task that is not there, is no YAML, whose data, metric or packages are not there, or that runs
            programs without consent.
    """
    first = model.processes.rank == 0
    tracker = EvaluationTracker(output_path=wanted.output) if first and wanted.output is not None else None
    try:
        index, names = manager(wanted)
        results = simple_evaluate(
            model=model,
            model_args=f"pretrained={model.model.name}",
            tasks=names,
            num_fewshot=wanted.num_fewshot,
            batch_size=model.bridge.batch,
            limit=wanted.limit,
            log_samples=True,
            evaluation_tracker=tracker,
            system_instruction=wanted.system,
            apply_chat_template=wanted.chat,
            fewshot_as_multiturn=wanted.chat if wanted.multiturn is None else wanted.multiturn,
            gen_kwargs=wanted.gen_kwargs,
            task_manager=index,
            predict_only=not first,  # the others only answer
            confirm_run_unsafe_code=wanted.unsafe,
        )
    except yaml.YAMLError as error:
        raise ConfigError("a task's file", expected="YAML", got=" ".join(str(error).split())) from None
    except ImportError as error:
        if (error.name or "").startswith("unmask"):
            raise
        got = " ".join(str(error).split())
        raise ConfigError(
            "what the tasks import", expected="installed packages, or files beside them", got=got
        ) from None
    except OSError as error:  # nothing is written in there: it is data or a metric that is not here
        got = " ".join(str(error).split())[:200]
        raise ConfigError(
            "the tasks' data and metrics", expected="files here, or the hub", got=got, remedy=HUB
        ) from None
    except ValueError as error:
        if UNSAFE not in str(error):
            raise
        raise ConfigError(
            "a task that runs programs", expected="your consent", got="none",
            remedy="Add --confirm-run-unsafe-code (docs/sandbox.md).",
        ) from None  # fmt: skip
    if not first or results is None:
        return None
    if tracker is not None:
        _keep(tracker, results, wanted.samples)
    return dict(results)


def tables(results: dict[str, Any]) -> str:
    """The results as lm-eval prints them, groups below."""
    return "\n".join(str(make_table(results, kind)) for kind in ("results", "groups") if results.get(kind))


def _keep(tracker: EvaluationTracker, results: dict[str, Any], samples: bool) -> None:
    """lm-eval's own files: results, and a samples file per task."""
    own = {k: v for k, v in results.items() if k != "samples"}
    tracker.save_results_aggregated(results=own, samples=results["samples"] if samples else None)
    if samples:
        for name, lines in results["samples"].items():
            tracker.save_results_samples(task_name=name, samples=lines)
