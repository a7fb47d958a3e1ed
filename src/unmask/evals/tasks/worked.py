"""Worked examples of a published prompt: the text of others, so it comes from the user's own copy and not from here.

Enters: a benchmark, how many are wanted, and where to look: a local file, the data itself, or the installed lm-eval.
Leaves: `Data` with its worked examples and the hash of both, or a refusal that says where to get them.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unmask.core.errors import ConfigError
from unmask.evals.task import Data, Item
from unmask.evals.tasks.data import Benchmark

_FUNCTION = "list_fewshot_samples"
"""What lm-eval's task modules call the function that lists them."""


def with_file(data: Data, bench: Benchmark, path: str, shots: int, answer: str) -> Data:
    """The first examples of a local file, in the benchmark's own format. answer: the field that works one out."""
    found = bench.load(path, "test")
    for item in found.items[:shots]:
        if not isinstance(item.fields.get(answer), str):
            raise ConfigError(f"{path}: {item.id}", expected=f"text in {answer!r}", got=repr(item.fields.get(answer)))
    return add(data, found.items, shots, found.source, found.sha256)


def with_lm_eval(data: Data, bench: Benchmark, folder: str, shots: int, what: str) -> Data:
    """The examples of the installed lm-eval's task in `folder`.

    Raises:
        ConfigError: lm-eval is not installed, or keeps its examples in another way.
    """
    records = lm_eval_examples(folder)
    if records is None:
        raise ConfigError(
            f"{bench.name}: {what}",
            expected="lm-eval installed, or shots_file='FILE.jsonl' with examples",
            got="neither",
            remedy=f"pip install 'unmask[harness]', or {bench.name}(shots=0)",
        )
    where = f"lm-eval's {folder}"
    digest = hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()
    return add(data, bench.items(records, where), shots, where, digest)


def lm_eval_examples(folder: str) -> list[Mapping[str, Any]] | None:
    """The examples that a task folder of the installed lm-eval lists; None without lm-eval.

    They are read out of its source as a literal: importing those modules asks the hub for a metric, or other packages.
    """
    spec = find_spec("lm_eval")
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        source = Path(root) / "tasks" / folder / "utils.py"
        if source.is_file():
            return _listed(source)
    return None


def _listed(source: Path) -> list[Mapping[str, Any]]:
    for node in ast.parse(source.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == _FUNCTION and isinstance(node.body[-1], ast.Return):
            try:
                found = ast.literal_eval(node.body[-1].value or "")
            except ValueError:
                break
            if isinstance(found, list) and all(isinstance(r, dict) for r in found):
                return list(found)
    raise ConfigError(
        str(source), expected=f"a list of examples in {_FUNCTION}", got="another form", remedy="Give shots_file=."
    )


def add(data: Data, examples: Sequence[Item], shots: int, source: str, sha256: str) -> Data:
    """The data with the first worked examples; its hash is then of both hashes."""
    if len(examples) < shots:
        raise ConfigError(f"worked examples in {source}", expected=f"at least {shots}", got=str(len(examples)))
    both = hashlib.sha256((data.sha256 + sha256).encode()).hexdigest()
    return replace(data, source=f"{data.source}; worked examples: {source}", sha256=both, shots=tuple(examples[:shots]))
