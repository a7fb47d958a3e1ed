"""Published evaluation protocols by name: task, prompt form, settings, and the figures that were printed for them.

Enters: a name such as "fast-dllm/gsm8k-5shot/dual+parallel". Leaves: a `Protocol`, which makes the `Setup` of a run.
The figures are facts of others, with their source; they are shown beside a run of ours and never instead of one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from unmask.core.errors import ConfigError
from unmask.engine.options import DecodeOptions

if TYPE_CHECKING:
    from unmask.evals.runner.plan import Setup

A100 = "A100 80 GB"
FAST = f"Fast-dLLM, arXiv 2505.22618, tables 1 to 4; {A100}"
FACTOR = f"Fast-dLLM's later paper, threshold against factor; {A100}"
V2 = "Fast-dLLM v2, arXiv 2509.26328, tables 1 and 2"
LLADA = "LLaDA, arXiv 2502.09992, and the tables of its repository"
DREAM = "evaluation scripts of Dream, arXiv 2508.15487"
OPEN_COMPASS = "settings as published; the published prompt is OpenCompass's, ours is the task's own 0-shot form"


@dataclass(frozen=True)
class Published:
    """Figures as printed. accuracy: in percent; tokens_per_s: as its authors counted, which differs (see the docs)."""

    accuracy: float | None = None
    tokens_per_s: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Protocol:
    """One published way to evaluate.

    Args:
        model: the checkpoint it was published for; any model of that family can be run.
        task: spec. chat: the chat template, or raw text. bos: raw text begins with the tokenizer's first token.
        cut: at the task's stop strings.
        max_tokens, options, scoring: how answers are made.
        score: the score that the published accuracy is, if not the task's own.
        published: the printed figures; without them the protocol is published, but no figure for it.
        note: what one must know.
    """

    name: str
    model: str
    task: str
    chat: bool
    max_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    scoring: Mapping[str, Any] = field(default_factory=dict)
    bos: bool = False
    cut: bool = True
    score: str | None = None
    published: Published | None = None
    note: str = ""

    def setup(self, **given: Any) -> Setup:
        """The setup of a run; `given` are fields that no protocol decides (data, split, seed, batch, limit, audit)."""
        from unmask.evals.likelihood import Scoring
        from unmask.evals.runner.plan import Setup

        fixed: dict[str, Any] = {"task": self.task, "chat": self.chat, "bos": self.bos, "cut": self.cut}
        fixed |= {"max_tokens": self.max_tokens, "options": DecodeOptions(**self.options), "protocol": self.name}
        if self.scoring:
            fixed["scoring"] = Scoring(**self.scoring)
        return Setup(**{"batch": 1, **fixed, **given})

    @property
    def meaning(self) -> str:
        """One line: model, task, settings."""
        length = "" if self.max_tokens is None else f", {self.max_tokens} tokens"
        return f"{self.model}: {self.task}, {'chat template' if self.chat else 'raw text'}{length}"


def find(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ConfigError: there is none; the message has the near names.
    """
    known = protocols()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(
        f"unknown protocol {name!r}",
        expected=f"one of {len(known)} names",
        got=name,
        remedy=f"{hint}See `unmask ls protocols`.",
    )


@cache
def protocols() -> dict[str, Protocol]:
    """All protocols by name."""
    makers = (_fast_llada, _fast_factor, _fast_long, _fast_llada_15, _fast_dream, _v2, _llada_base, _llada_likelihood)
    found = [p for make in (*makers, _llada_instruct, _reversal, _dream, _dream_likelihood) for p in make()]
    return {p.name: p for p in found}


# ---- Fast-dLLM (v1) --------------------------------------------------------------------------------------------------

BLOCK = 32
CACHES: dict[str, dict[str, Any]] = {
    "prefix": {"use_cache": True},
    "dual": {"use_cache": True, "dual_cache": True},
}
Row = tuple[float | None, float | None]
"""Accuracy and tokens per second."""


def _fast(length: int, way: str) -> dict[str, Any]:
    """Settings of one column: "baseline", "prefix", "parallel", "prefix+parallel", "dual+parallel", "prefix+factor"."""
    words = way.split("+")
    found: dict[str, Any] = {"profile": "fast-dllm", "gen_length": length, "block_length": BLOCK, "steps": length}
    for name, switches in CACHES.items():
        found |= switches if name in words else {}
    if "parallel" in words:
        found |= {"threshold": 0.9, "steps": length // BLOCK}
    if "factor" in words:
        found |= {"factor": 1.0, "steps": length // BLOCK}
    return found


LLADA_TASKS = {
    "gsm8k-5shot": "gsm8k(shots=5, pick='lm_eval', turns='single')",
    "gsm8k-8shot": "gsm8k(shots=8, pick='lm_eval', turns='single')",
    "math-4shot": "math(turns='single')",
    "humaneval-0shot": "humaneval(post='published')",
    "mbpp-3shot": "mbpp(turns='single')",
}
WAYS = ("baseline", "prefix", "parallel", "prefix+parallel")
FAST_LLADA: dict[tuple[str, int], tuple[Row, ...]] = {
    ("gsm8k-5shot", 256): ((79.3, 6.7), (79.5, 21.2), (79.2, 16.5), (78.5, 54.4)),
    ("gsm8k-5shot", 512): ((77.5, 3.2), (77.0, 10.4), (77.6, 18.6), (77.2, 35.3)),
    ("math-4shot", 256): ((33.5, 9.1), (33.3, 23.7), (33.4, 24.8), (33.2, 51.7)),
    ("math-4shot", 512): ((37.2, 8.0), (36.2, 19.7), (36.8, 23.8), (36.0, 47.1)),
    ("humaneval-0shot", 256): ((41.5, 30.5), (42.7, 40.7), (43.9, 101.5), (43.3, 114.1)),
    ("humaneval-0shot", 512): ((43.9, 18.4), (45.7, 29.3), (43.3, 57.1), (44.5, 73.7)),
    ("mbpp-3shot", 256): ((29.4, 6.0), (29.6, 17.0), (28.4, 24.8), (28.2, 44.8)),
    ("mbpp-3shot", 512): ((14.8, 4.3), (13.4, 10.1), (15.0, 22.3), (13.8, 39.5)),
}
FAST_DREAM: dict[tuple[str, int], tuple[Row, ...]] = {
    ("gsm8k-5shot", 256): ((75.0, 9.1), (74.3, 32.5), (74.2, 14.2), (74.8, 48.2)),
    ("gsm8k-5shot", 512): ((76.0, 7.7), (74.3, 25.6), (73.4, 14.6), (74.0, 42.9)),
    ("math-4shot", 256): ((38.4, 11.4), (36.8, 34.3), (37.9, 27.3), (37.6, 66.8)),
    ("math-4shot", 512): ((39.8, 9.6), (38.0, 26.8), (39.5, 31.6), (39.3, 63.3)),
    ("humaneval-0shot", 256): ((49.4, 23.3), (53.7, 35.2), (49.4, 45.6), (54.3, 62.0)),
    ("humaneval-0shot", 512): ((54.3, 16.3), (54.9, 27.8), (51.8, 29.8), (54.3, 52.8)),
    ("mbpp-3shot", 256): ((56.6, 11.2), (53.2, 34.5), (53.8, 31.8), (56.4, 76.0)),
    ("mbpp-3shot", 512): ((55.6, 9.4), (53.8, 26.7), (55.4, 37.6), (55.2, 73.6)),
}
PROMPT_COUNTED = "the published tokens/s of HumanEval count the prompt too"


def _suffix(length: int, usual: int = 256) -> str:
    return "" if length == usual else f"-{length}"


def _note(task: str) -> str:
    return PROMPT_COUNTED if task.startswith("humaneval") else ""


def _fast_one(task: str, length: int, way: str, row: Row | None, source: str = FAST) -> Protocol:
    name = f"fast-dllm/{task}{_suffix(length)}/{way}"
    published = None if row is None else Published(*row, source)
    model = "GSAI-ML/LLaDA-8B-Instruct"
    options, note = _fast(length, way), _note(task)
    return Protocol(name, model, LLADA_TASKS[task], True, length, options, published=published, note=note)


def _fast_llada() -> Iterator[Protocol]:
    for (task, length), rows in FAST_LLADA.items():
        for way, row in zip(WAYS, rows):
            yield _fast_one(task, length, way, row)
        yield _fast_one(task, length, "dual+parallel", None)


def _fast_factor() -> Iterator[Protocol]:
    rows = {("gsm8k-5shot", 256): (77.5, 78.5), ("gsm8k-5shot", 512): (74.8, 47.1)}
    rows |= {("math-4shot", 256): (32.0, 78.3), ("math-4shot", 512): (35.2, 64.6)}
    for (task, length), row in rows.items():
        yield _fast_one(task, length, "prefix+factor", row, FACTOR)


def _fast_long() -> Iterator[Protocol]:
    ways = ("baseline", "parallel", "prefix+parallel", "dual+parallel")
    rows: dict[tuple[str, int], tuple[Row, ...]] = {
        ("gsm8k-5shot", 1024): ((77.0, 1.1), (77.4, 11.7), (75.2, 14.4), (74.7, 21.6)),
        ("gsm8k-8shot", 256): ((77.6, 4.9), (77.9, 16.4), (77.3, 49.2), (76.9, 46.3)),
        ("gsm8k-8shot", 512): ((78.9, 2.3), (78.9, 14.0), (74.8, 32.0), (75.4, 36.4)),
        ("gsm8k-8shot", 1024): ((77.3, 0.7), (78.0, 9.3), (75.7, 13.0), (76.0, 19.3)),
    }
    for (task, length), found in rows.items():
        for way, row in zip(ways, found):
            yield _fast_one(task, length, way, row)


def _fast_llada_15() -> Iterator[Protocol]:
    rows = {("gsm8k-5shot", 256): (80.7, 59.4), ("gsm8k-5shot", 512): (80.4, 33.0)}
    rows |= {("math-4shot", 256): (32.6, 53.7), ("math-4shot", 512): (35.1, 41.1)}
    note = "raw text on purpose: the published adapter uses the template only where the name holds 'instruct'"
    for (task, length), row in rows.items():
        name, options = f"fast-dllm-llada-1.5/{task}{_suffix(length)}/prefix+parallel", _fast(length, "prefix+parallel")
        figures = Published(*row, FACTOR)
        yield Protocol(
            name, "GSAI-ML/LLaDA-1.5", LLADA_TASKS[task], False, length, options, published=figures, note=note
        )


def _fast_dream() -> Iterator[Protocol]:
    for (task, length), rows in FAST_DREAM.items():
        for way, row in (*zip(WAYS, rows), ("dual+parallel", None)):
            alg = "confidence_threshold" if "parallel" in way else "entropy"
            options = {**_fast(length, way), "alg": alg}
            if "prefix" not in way and "dual" not in way:
                del options["block_length"]  # without a cache the whole canvas is one block there
            yield Protocol(
                name=f"fast-dllm-dream/{task}{_suffix(length)}/{way}",
                model="Dream-org/Dream-v0-Base-7B",
                task=LLADA_TASKS[task],
                chat=False,
                max_tokens=length,
                options=options,
                bos=True,
                published=None if row is None else Published(*row, FAST),
                note=_note(task),
            )


# ---- Fast-dLLM v2 ----------------------------------------------------------------------------------------------------


def _v2() -> Iterator[Protocol]:
    tasks = {"gsm8k-0shot": "gsm8k(shots=0, prompt='boxed')", "math-0shot": "math(shots=0, prompt='boxed')"}
    rows: dict[tuple[str, str, str], Row] = {
        ("7b", "gsm8k-0shot", "threshold-1"): (83.7, 39.1),
        ("7b", "gsm8k-0shot", "threshold-0.9"): (None, 101.7),
        ("7b", "math-0shot", "threshold-1"): (61.6, None),
        ("1.5b", "gsm8k-0shot", "threshold-1"): (62.0, None),
        ("1.5b", "math-0shot", "threshold-1"): (38.1, None),
    }
    for (size, task, way), row in rows.items():
        options = {"profile": "fast-dllm-v2", "block_length": 32, "small_block_size": 8}
        yield Protocol(
            name=f"fast-dllm-v2-{size}/{task}/{way}",
            model=f"Efficient-Large-Model/Fast_dLLM_v2_{size.upper()}",
            task=tasks[task],
            chat=True,
            max_tokens=2048,
            options={**options, "threshold": float(way.rsplit("-", 1)[1])},
            cut=False,
            score="flexible" if task.startswith("gsm8k") else "math_verify",
            published=Published(*row, f"{V2}; {A100}"),
            note="published with batches of 32, whose rows wait for one another; here every answer stands alone",
        )


# ---- LLaDA -----------------------------------------------------------------------------------------------------------


def _llada(length: int, block: int, **rest: Any) -> dict[str, Any]:
    return {"profile": "llada", "gen_length": length, "steps": length, "block_length": block, **rest}


def _llada_base() -> Iterator[Protocol]:
    tasks = {
        "gsm8k-5shot": "gsm8k(shots=5, pick='lm_eval')",
        "math-4shot": "math",
        "humaneval-0shot": "humaneval(post='plain')",
        "mbpp-3shot": "mbpp",
    }
    rows = {1024: (70.3, 31.4, 35.4, 40.0), 512: (70.8, 30.9, 32.9, 39.2), 256: (70.0, 30.3, 32.9, 40.2)}
    for length, found in rows.items():
        for (task, spec), accuracy in zip(tasks.items(), found):
            yield Protocol(
                name=f"llada-base/{task}{_suffix(length, 1024)}",
                model="GSAI-ML/LLaDA-8B-Base",
                task=spec,
                chat=False,
                max_tokens=length,
                options=_llada(length, length),
                published=Published(accuracy, None, LLADA),
            )


def _llada_likelihood() -> Iterator[Protocol]:
    rows: list[tuple[str, str, float, float, int]] = [
        ("arc-challenge-0shot", "arc", 0.0, 45.9, 128),
        ("arc-challenge-0shot", "arc", 0.5, 47.9, 128),
        ("hellaswag-0shot", "hellaswag", 0.0, 70.5, 128),
        ("hellaswag-0shot", "hellaswag", 0.5, 72.5, 128),
        ("winogrande-5shot", "winogrande", 0.0, 74.8, 128),
        ("piqa-0shot", "piqa", 0.0, 73.6, 128),
        ("piqa-0shot", "piqa", 0.5, 74.4, 128),
        ("mmlu-5shot", "mmlu", 0.0, 65.9, 1),
    ]
    for task, spec, cfg, accuracy, draws in rows:
        yield Protocol(
            name=f"llada-base/{task}/cfg-{cfg:g}",
            model="GSAI-ML/LLaDA-8B-Base",
            task=spec,
            chat=False,
            scoring={"method": "llada", "mc_num": draws, "batch": min(draws, 8), "cfg_scale": cfg},
            published=Published(accuracy, None, LLADA),
        )


def _llada_instruct() -> Iterator[Protocol]:
    last, never = {"confidence_eos_eot_inf": True}, {"logits_eos_inf": True}
    rows: list[tuple[str, str, str, int, int, dict[str, Any], float]] = [
        ("instruct", "gsm8k-0shot", "gsm8k(shots=0)", 512, 512, last, 69.4),
        ("instruct", "gsm8k-0shot-block-8", "gsm8k(shots=0)", 256, 8, {}, 78.6),
        ("instruct", "math-0shot", "math(shots=0)", 512, 512, last, 31.9),
        ("instruct", "math-0shot-block-64", "math(shots=0)", 512, 64, {}, 42.2),
        ("instruct", "humaneval-0shot", "humaneval", 512, 512, never, 49.4),
        ("instruct", "mbpp-3shot", "mbpp(post='fenced')", 256, 256, last, 41.0),
        ("1.5", "gsm8k-0shot", "gsm8k(shots=0)", 256, 16, last, 83.8),
        ("1.5", "math-0shot", "math(shots=0)", 1024, 128, last, 42.6),
        ("1.5", "humaneval-0shot", "humaneval", 512, 32, last, 52.4),
        ("1.5", "mbpp-3shot", "mbpp(post='fenced')", 512, 32, last, 42.8),
    ]
    models = {"instruct": "GSAI-ML/LLaDA-8B-Instruct", "1.5": "GSAI-ML/LLaDA-1.5"}
    for size, task, spec, length, block, flags, accuracy in rows:
        yield Protocol(
            name=f"llada-{size}/{task}",
            model=models[size],
            task=spec,
            chat=True,
            max_tokens=length,
            options=_llada(length, block, **flags),
            score="flexible" if task.startswith("gsm8k") else None,
            published=Published(accuracy, None, LLADA),
            note=OPEN_COMPASS,
        )


def _reversal() -> Iterator[Protocol]:
    for direction in ("forward", "backward"):
        yield Protocol(
            name=f"llada-instruct/reversal-{direction}",
            model="GSAI-ML/LLaDA-8B-Instruct",
            task=f"reversal(direction={direction!r})",
            chat=True,
            max_tokens=28,
            options=_llada(28, 28, logits_eos_inf=True),
            note="eval_reverse of LLaDA's repository, official flags",
        )


# ---- Dream -----------------------------------------------------------------------------------------------------------


def _dream() -> Iterator[Protocol]:
    rows: list[tuple[str, str, int, dict[str, Any]]] = [
        ("humaneval-0shot", "humaneval(post='published')", 512, {"temperature": 0.2, "top_p": 0.95}),
        ("mbpp-3shot", "mbpp", 512, {"temperature": 0.2, "top_p": 0.95}),
        ("math-4shot", "math", 512, {"temperature": 0.0, "top_p": 0.95}),
        ("countdown-3-8shot", "countdown(numbers=3)", 24, {"temperature": 0.0, "top_p": 1.0}),
        ("countdown-4-8shot", "countdown(numbers=4)", 32, {"temperature": 0.0, "top_p": 1.0}),
        ("countdown-5-8shot", "countdown(numbers=5)", 40, {"temperature": 0.0, "top_p": 1.0}),
        ("sudoku-8shot", "sudoku", 24, {"temperature": 0.0, "top_p": 1.0}),
    ]
    for task, spec, length, sampling in rows:
        planning = length < 128
        yield Protocol(
            name=f"dream-base/{task}",
            model="Dream-org/Dream-v0-Base-7B",
            task=spec,
            chat=False,
            max_tokens=length,
            options={"profile": "dream", "alg": "entropy", "steps": length, **sampling},
            bos=True,
            cut=not task.startswith("humaneval"),
            note=DREAM + (f"; the answer's length, {length} tokens, is ours" if planning else ""),
        )


def _dream_likelihood() -> Iterator[Protocol]:
    tasks = {
        "mmlu-5shot": "mmlu",
        "arc-easy-0shot": "arc(level='easy')",
        "arc-challenge-0shot": "arc",
        "hellaswag-0shot": "hellaswag",
        "piqa-0shot": "piqa",
        "winogrande-5shot": "winogrande",
    }
    for task, spec in tasks.items():
        yield Protocol(
            name=f"dream-base/{task}",
            model="Dream-org/Dream-v0-Base-7B",
            task=spec,
            chat=False,
            scoring={"method": "dream", "mc_num": 128, "batch": 32},
            bos=True,
            note=DREAM,
        )
