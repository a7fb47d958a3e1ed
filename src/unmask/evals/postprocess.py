"""Scores a HumanEval samples file of lm-eval: every answer made into a program, run in the sandbox with its tests.

Enters: a samples file (JSON lines). Leaves: `<file>.cleaned` beside it, with the fields of the published scripts
(task_id, completion, pass_at_1), written whole or not at all, and pass@1 with its interval.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.core.errors import ConfigError
from unmask.evals.pass_at_k import PassAtK, mean_pass_at_k
from unmask.evals.sandbox import Limits, Outcome, run_many
from unmask.evals.tasks.code_post import candidate_of, dropped, sanitize
from unmask.sinks.files import reason, write_text

TEXTS = (("doc", "task_id"), ("doc", "prompt"), ("doc", "entry_point"), ("target",), ("resps", 0, 0))
"""Where lm-eval keeps what is needed; all of it text."""


@dataclass(frozen=True)
class Cleaned:
    """One sample: its program, and how it went."""

    task_id: str
    program: str
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        """The fields of the published scripts."""
        return {"task_id": self.task_id, "completion": [self.program], "pass_at_1": float(self.outcome.passed)}


@dataclass(frozen=True)
class Report:
    """What came of a samples file."""

    file: Path
    cleaned: Path
    score: PassAtK
    rows: tuple[Cleaned, ...]
    dropped: dict[str, list[str]]  # failed task -> definitions that its tests call and the cleaning took away

    def to_dict(self) -> dict[str, Any]:
        ends = Counter(row.outcome.status for row in self.rows)
        return {
            "file": str(self.file),
            "cleaned": str(self.cleaned),
            "samples": len(self.rows),
            "pass@1": self.score.value,
            "interval": [self.score.low, self.score.high],
            "ends": dict(ends.most_common()),
            "dropped by the cleaning": self.dropped,
            "missing protections": dict(self.rows[0].outcome.missing),
        }


def postprocess(
    file: str | Path,
    *,
    timeout: float = 3.0,
    limits: Limits | None = None,
    workers: int | None = None,
    weak: bool = False,
    rules: Literal["published", "fixed"] = "published",
    progress: Callable[[Cleaned, int, int], None] | None = None,
) -> Report:
    """Scores a samples file.

    Args:
        file: one JSON object per line, as lm-eval's --log_samples writes them for HumanEval.
        timeout, limits, weak: as for `run_code`.
        workers: programs at a time (default: one per core).
        rules: "published" gives the published scores, defects included; "fixed" is without those (`code_post`).
        progress: called with each row, its number and how many there are.

    Raises:
        ConfigError: a line that is no such sample (named, before anything has run), or a missing protection.
    """
    path = Path(file)
    samples = read_samples(path)
    fixed = rules == "fixed"
    programs = [sanitize(candidate_of(s), s["doc"]["entry_point"], s["target"] if fixed else None) for s in samples]
    checked = (f"{program}\n{s['target']}" for program, s in zip(programs, samples, strict=True))
    rows: list[Cleaned] = []
    for outcome in run_many(checked, workers=workers, timeout=timeout, limits=limits, weak=weak):
        rows.append(Cleaned(samples[len(rows)]["doc"]["task_id"], programs[len(rows)], outcome))
        if progress is not None:
            progress(rows[-1], len(rows), len(samples))
    cleaned = path.with_name(path.name + ".cleaned")
    write_text(cleaned, "".join(json.dumps(row.to_dict()) + "\n" for row in rows))
    lost = {
        row.task_id: names
        for row, s in zip(rows, samples, strict=True)
        if not row.outcome.passed and (names := dropped(candidate_of(s), row.program, s["target"]))
    }
    return Report(path, cleaned, _score(rows), tuple(rows), lost)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The samples of a file, every line checked.

    Raises:
        ConfigError: no such file, or a line that is not a HumanEval sample.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        got = reason(e) if isinstance(e, OSError) else "bytes that are not UTF-8"
        raise ConfigError(str(path), expected="a samples file (JSON lines, UTF-8)", got=got) from None
    samples = [_sample(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not samples:
        raise ConfigError(str(path), expected="at least one sample", got="an empty file")
    return samples


def _sample(path: Path, number: int, line: str) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        sample = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as e:
        raise ConfigError(where, expected="one JSON object", got=str(e)) from e
    for keys in TEXTS:
        value = _at(sample, keys)
        if not isinstance(value, str):
            name = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in keys)[1:]
            raise ConfigError(
                where,
                expected=f"text at {name}",
                got="nothing" if value is None else type(value).__name__,
                remedy="It takes the samples of lm-eval's HumanEval tasks, written with --log_samples.",
            )
    return sample


def _at(value: Any, keys: Sequence[str | int]) -> Any:
    for key in keys:
        if isinstance(key, int):
            value = value[key] if isinstance(value, list) and len(value) > key else None
        else:
            value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _score(rows: Sequence[Cleaned]) -> PassAtK:
    """A task that occurs several times (repeated sampling) counts once, with all its samples."""
    drawn, passed = Counter(r.task_id for r in rows), Counter(r.task_id for r in rows if r.outcome.passed)
    return mean_pass_at_k([(n, passed[task]) for task, n in drawn.items()], 1)


def failures(rows: Sequence[Cleaned]) -> Iterator[tuple[str, str]]:
    """(task, how it ended) of those that did not pass."""
    for row in rows:
        if not row.outcome.passed:
            yield row.task_id, f"{row.outcome.status}: {row.outcome.detail}".rstrip(": ")
