"""Scores on the project's own held-out tasks: accuracy with its interval, beside what it cost.

Enters: a loaded model, task names, strategies. Leaves: one `Score` per task and strategy. Items are decoded together,
as a crowd of the model's slots; strategies take turns task by task, so that their clocks see the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from unmask.core.errors import ConfigError
from unmask.core.events import Stepped
from unmask.engine.profiles import kind_of
from unmask.evals import baseline
from unmask.evals.intervals import wilson
from unmask.evals.tasks.synthetic import TASKS, Item, held_out, task_named
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.family import find_family
from unmask.models.transformer import Transformer
from unmask.pipeline import Model
from unmask.text.codec import Codec

COUNT = 500
ONE_PER_STEP = {"policy": "low_confidence(steps=100000)"}
SMALL_CANVAS: dict[str, dict[str, Any]] = {
    "canvas": {"gen_length": 48, "schedule": "blocks(16)"},
    "recurrent": {"gen_length": 48, "schedule": "whole"},
    "block": {"gen_length": 48, "cache": "block"},
    "autoregressive": {"gen_length": 48},
}
POLICIES: dict[str, dict[str, Any]] = {
    "1 token/step": ONE_PER_STEP,
    "threshold 0.95": {"policy": "threshold(0.95)"},
    "threshold 0.9": {"policy": "threshold(0.9)"},
    "threshold 0.7": {"policy": "threshold(0.7)"},
    "threshold 0.5": {"policy": "threshold(0.5)"},
    "factor 0.5": {"policy": "factor(0.5)"},
    "factor 1": {"policy": "factor(1.0)"},
}
IN_ORDER: dict[str, dict[str, Any]] = {
    f"threshold {t}, in order": {"policy": f'threshold({t}, order="left_to_right")'} for t in (0.95, 0.9, 0.7, 0.5)
}
"""Left to right, for models made from autoregressive ones."""
CACHES = {
    "canvas": ("none", "prefix", "dual"),
    "recurrent": ("none", "boundary"),
    "block": ("none", "block", "sub_block"),
    "autoregressive": ("none", "block"),
}
"""Caches of a grid by the kind of model."""
EXACT = {"canvas": "none", "recurrent": "none", "block": "block", "autoregressive": "block"}
"""The cheapest cache that changes nothing, by the kind of model."""


@dataclass(frozen=True)
class Score:
    """One task under one strategy.

    Args:
        low, high: 95 % Wilson interval of `accuracy`.
        nfe: mean forwards per answer; tokens: mean visible tokens per answer, EOS and padding not counted.
        tokens_per_s: visible tokens of all answers per second of wall time, `crowd` answers at a time.
        row_layers: rows times layers computed per answer.
    """

    task: str
    strategy: str
    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    nfe: float
    tokens: float
    tokens_per_forward: float
    tokens_per_s: float
    row_layers: float
    crowd: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def evaluate(
    model: Model,
    tasks: Sequence[str] | None = None,
    count: int = COUNT,
    strategies: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Iterator[Score]:
    """Scores, one by one.

    Args:
        tasks: names of synthetic tasks; None takes all.
        count: held-out items per task; they are the same for every call with the same seed.
        strategies: label -> keywords of `Model.generate`, on the checkpoint's own schedule unless they name one; None
            takes one token per step with the model's exact cache.

    Raises:
        ConfigError: an unknown task, or a count below 1.
    """
    if count < 1:
        raise ConfigError("count", expected=">= 1", got=str(count))
    names = list(TASKS) if tasks is None else [task_named(t).name for t in tasks]
    own = {"schedule": model.recommended().schedule} if model.traits.mask_id is not None else {}
    for name in names:
        items = held_out(name, count, seed)
        for label, options in (strategies or strategy(model)).items():
            yield _score(model, name, items, label, {**own, **options})


def strategy(model: Model, policy: str | None = None, cache: str | None = None) -> dict[str, dict[str, Any]]:
    """One strategy with its label: without a policy one token per step, without a cache the model's exact one.

    An autoregressive model has one way to decode; a policy is handed on, to be refused like everywhere.
    """
    kind = kind_of(model.traits)
    cache = EXACT[kind] if cache is None else cache
    if policy is not None:
        return {f"{policy}, {cache}": {"policy": policy, "cache": cache}}
    if kind == "autoregressive":
        return {f"left to right, {cache}": {"cache": cache}}
    return {f"1 token/step, {cache}": {**ONE_PER_STEP, "cache": cache}}


def grid(model: Model) -> dict[str, dict[str, Any]]:
    """Accuracy against speed: one token per step, thresholds and factors, times the caches of this kind of model."""
    kind = kind_of(model.traits)
    choices: dict[str, dict[str, dict[str, Any]]] = {
        "autoregressive": {"left to right": {}},
        "block": {**POLICIES, **IN_ORDER},
        "canvas": POLICIES,
        "recurrent": POLICIES,
    }
    policies = choices[kind]
    return {f"{name}, {c}": {**options, "cache": c} for name, options in policies.items() for c in CACHES[kind]}


class _Rows:
    """A sink that adds up the rows computed."""

    def __init__(self) -> None:
        self.row_layers = 0

    def __call__(self, event: Any) -> None:
        if isinstance(event, Stepped):
            self.row_layers += event.work.row_layers

    def close(self) -> None:
        """Nothing to release."""


def _score(model: Model, name: str, items: Sequence[Item], label: str, options: Mapping[str, Any]) -> Score:
    rows, check, begun = _Rows(), task_named(name).check, time.perf_counter()
    answers = model.generate([i.prompt for i in items], sinks=[rows], **options)
    seconds = time.perf_counter() - begun
    answers = answers if isinstance(answers, list) else [answers]
    correct = sum(check(i, a.text) for i, a in zip(items, answers, strict=True))
    tokens, forwards = sum(a.completion_tokens for a in answers), sum(a.nfe for a in answers)
    low, high = wilson(correct, len(items))
    n = len(items)
    return Score(
        task=name,
        strategy=label,
        n=n,
        correct=correct,
        accuracy=correct / n,
        low=low,
        high=high,
        nfe=fmean(a.nfe for a in answers),
        tokens=tokens / n,
        tokens_per_forward=tokens / max(forwards, 1),
        tokens_per_s=tokens / seconds,
        row_layers=rows.row_layers / n,
        crowd=min(model.slots, n),
    )


def trivial(tasks: Sequence[str] | None = None, count: int = COUNT, seed: int = 0) -> dict[str, float]:
    """Accuracy of one trivial rule per task (`evals.baseline`), without a model: what scores are compared with."""
    out = {}
    for name in list(TASKS) if tasks is None else tasks:
        items, check = held_out(name, count, seed), task_named(name).check
        out[name] = sum(check(i, baseline.answer(i)) for i in items) / count
    return out


def metric(
    model: Transformer, config: Mapping[str, Any], tokenizer: Path, count: int = 50, tasks: str = ""
) -> dict[str, float]:
    """Exact match at one token per step during training: a recipe's `validate.metric`.

    A diffusion model decodes 48 positions, in blocks of 16 or its own, an autoregressive one left to right.

    Args:
        config: config.json of the model. tokenizer: the directory of its tokenizer.
        count: held-out items per task. tasks: a comma list, empty for all.

    Returns:
        "exact" (the mean over tasks) and "exact/TASK" for each.
    """
    family = find_family(config)
    denoiser = TransformerDenoiser(model, family.traits(config))
    loaded = Model(denoiser, Codec.from_dir(tokenizer), family, config, "training", None, count)
    names = [t.strip() for t in tasks.split(",") if t.strip()] or None
    kind = kind_of(loaded.traits)
    options = {**({} if kind == "autoregressive" else ONE_PER_STEP), **SMALL_CANVAS[kind]}
    found = {s.task: s.accuracy for s in evaluate(loaded, names, count, {"": options})}
    return {"exact": fmean(found.values()), **{f"exact/{name}": value for name, value in found.items()}}
