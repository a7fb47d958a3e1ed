"""Replay recorded cases of the reference implementations and compare: ids and NFE exactly, logits within a tolerance.

Enters: a directory tree with config.json, model.safetensors, cases.json and logits.safetensors per folder. Leaves: one
result per case. Sequences are decoded without padding; masked columns of a recorded batch are put back for the
comparison.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unmask.core.errors import InputError, UnmaskError
from unmask.core.events import Failed, Stepped, fold
from unmask.core.types import Request, Strategy, Traits
from unmask.engine.engine import Engine
from unmask.engine.options import DecodeOptions
from unmask.engine.profiles import lenient
from unmask.evals import verify_v2
from unmask.evals.likelihood import round_value
from unmask.evals.recorded import Traced, differences, forward, trace_differences
from unmask.models.backbone import transformer_of
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.load import load_model

LOGIT_TOLERANCE = 2e-3
REFERENCES = {
    "llada": ("ml_gsai_generate", "fastdllm_v1", "get_log_likelihood"),
    "dream": ("dream_hf", "fastdllm_dream_baseline", "fastdllm_dream_block"),
    "fastdllm_v2": verify_v2.REFERENCES,
}
KINDS = ("logits", "logits_prefix_cache", "logits_dual_cache", "generate", "loglikelihood")
V2_KINDS = ("logits", "generate", *verify_v2.KINDS)


@dataclass(frozen=True)
class CaseResult:
    """One case: where it is, what it is, whether it passed, why not, and its largest logit error if it has one."""

    folder: str
    id: str
    kind: str
    passed: bool
    detail: str = ""
    logit_error: float | None = None


@dataclass(frozen=True)
class Report:
    """All results of a directory."""

    results: tuple[CaseResult, ...]

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        return tuple(r for r in self.results if not r.passed)

    @property
    def largest_logit_error(self) -> float | None:
        errors = [r.logit_error for r in self.results if r.logit_error is not None]
        return max(errors) if errors else None

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """(passed, all) per kind, in the order they occur."""
        counts: dict[str, tuple[int, int]] = {}
        for r in self.results:
            ok, n = counts.get(r.kind, (0, 0))
            counts[r.kind] = (ok + r.passed, n + 1)
        return counts

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "cases": len(self.results),
            "passed": len(self.results) - len(self.failed),
            "failed": len(self.failed),
            "largest_logit_error": self.largest_logit_error,
            "kinds": {k: {"passed": ok, "cases": n} for k, (ok, n) in self.by_kind().items()},
            "failures": [{"folder": r.folder, "id": r.id, "kind": r.kind, "detail": r.detail} for r in self.failed],
        }


def verify_dir(root: str | Path, progress: Callable[[CaseResult, int, int], None] | None = None) -> Report:
    """Replay every case below `root`.

    Args:
        progress: called after each case with its result, its number and the number of cases.

    Raises:
        InputError: no such directory, no case, damaged files, or a family, kind or reference that is not known.
    """
    folders = [_read(f) for f in _folders(Path(root))]
    total, results = sum(len(cases["cases"]) for _, cases in folders), []
    for folder, cases in folders:
        for result in _run_folder(folder, cases):
            results.append(result)
            if progress is not None:
                progress(result, len(results), total)
    return Report(tuple(results))


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        got = "a file" if root.is_file() else "no such directory"
        raise InputError(f"{root}", expected="a directory with recorded cases", got=got)
    found = sorted(p.parent for p in root.rglob("cases.json"))
    if not found:
        raise InputError(f"{root}", expected="at least one cases.json below it", got="no case")
    return found


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A folder's cases, all of a known family, kind and reference."""
    try:
        data = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
        cases, family, mask_id = data["cases"], data["family"], data["mask_id"]
        labels = [(c["id"], c["kind"], c["reference"]) for c in cases]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, RecursionError) as e:
        expected = "JSON with family, mask_id and cases (id, kind, reference)"
        raise InputError(f"{folder / 'cases.json'}", expected=expected, got=repr(e)) from e
    if type(mask_id) is not int:
        raise InputError(f"{folder}: mask_id", expected="an integer", got=repr(mask_id))
    if not labels:
        raise InputError(f"{folder / 'cases.json'}", expected="at least one case", got="none")
    if not isinstance(family, str) or family not in REFERENCES:
        raise InputError(f"{folder}: family", expected=f"one of: {', '.join(REFERENCES)}", got=repr(family))
    for name, kind, reference in labels:
        kinds = V2_KINDS if family == "fastdllm_v2" else KINDS
        if kind not in kinds:
            raise InputError(f"{folder}: case {name}: kind", expected=f"one of: {', '.join(kinds)}", got=repr(kind))
        if reference not in REFERENCES[family]:
            known = ", ".join(REFERENCES[family])
            raise InputError(f"{folder}: case {name}: reference", expected=f"one of: {known}", got=repr(reference))
    return folder, data


def _run_folder(folder: Path, data: dict[str, Any]) -> Iterator[CaseResult]:
    loaded = load_model(folder, dtype="fp32", device="cpu")
    traits = replace(loaded.traits, mask_id=data["mask_id"])
    denoiser = TransformerDenoiser(transformer_of(loaded.model, f"verify {folder}"), traits)
    family = loaded.family.name
    tensors = _tensors(folder, data)
    for case in data["cases"]:
        try:
            run = _run_v2_case if data["family"] == "fastdllm_v2" else _run_case
            problem, error = run(denoiser, family, case, tensors)
        except (UnmaskError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as e:
            problem, error = f"{type(e).__name__}: {e}", None
        yield CaseResult(str(folder), case["id"], case["kind"], not problem, problem, error)


def _tensors(folder: Path, data: dict[str, Any]) -> dict[str, Tensor]:
    if not any("tensor" in c for c in data["cases"]):
        return {}
    try:
        return load_file(folder / "logits.safetensors")
    except (OSError, SafetensorError) as e:
        raise InputError(f"{folder / 'logits.safetensors'}", expected="the recorded logits", got=str(e)) from e


def _run_case(
    denoiser: TransformerDenoiser, family: str, case: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[str, float | None]:
    """("" or what differs, the largest logit error)."""
    if case["kind"] == "generate":
        return _generate(denoiser, family, case), None
    if case["kind"] == "loglikelihood":
        return _likelihood(denoiser, case), None
    with torch.inference_mode():
        logits = {"logits": _logits, "logits_prefix_cache": _prefix, "logits_dual_cache": _dual}[case["kind"]](
            denoiser, case["inputs"]
        )
    return _compare(logits, case, tensors[case["tensor"]])


def _run_v2_case(
    denoiser: TransformerDenoiser, family: str, case: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[str, float | None]:
    if case["kind"] == "generate":
        return verify_v2.generate(denoiser, case), None
    with torch.inference_mode():
        logits, problem = verify_v2.logits(denoiser, case)
    found, error = _compare(logits, case, tensors[case["tensor"]])
    return "; ".join(p for p in (found, problem) if p), error


# ---- logits ----------------------------------------------------------------------------------------------------------


def _compare(logits: Tensor, case: dict[str, Any], expected: Tensor) -> tuple[str, float | None]:
    if "positions" in case:
        logits = logits[:, case["positions"]]
    if logits.shape != expected.shape:
        return f"logits of shape {tuple(logits.shape)}, expected {tuple(expected.shape)}", None
    gap = (logits - expected).abs()
    mask = case["inputs"].get("attention_mask")
    if mask is not None:
        gap = gap[torch.tensor(mask).bool()]
    error = float(gap.max())
    if not math.isfinite(error):
        return "logits that are no numbers", None
    ok = error <= LOGIT_TOLERANCE
    return ("" if ok else f"logits differ by {error:.2e}, tolerance {LOGIT_TOLERANCE:.0e}"), error


def _logits(denoiser: TransformerDenoiser, inputs: dict[str, Any]) -> Tensor:
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    hidden = denoiser.model(
        torch.tensor(inputs["input_ids"]),
        None if mask is None else torch.tensor(mask),
        None if positions is None else torch.tensor(positions),
    )
    return denoiser.model.logits(hidden)


def _prefix(denoiser: TransformerDenoiser, inputs: dict[str, Any]) -> Tensor:
    start = inputs["suffix_start"]
    return _cached(denoiser, inputs, start, len(inputs["cache_from"][0]))


def _dual(denoiser: TransformerDenoiser, inputs: dict[str, Any]) -> Tensor:
    return _cached(denoiser, inputs, inputs["block_start"], inputs["block_end"])


def _cached(denoiser: TransformerDenoiser, inputs: dict[str, Any], start: int, stop: int) -> Tensor:
    """Full forward over cache_from, then the rows [start, stop) of input_ids against the store."""
    rows = []
    for full, part in zip(inputs["cache_from"], inputs["input_ids"], strict=True):
        n = len(full)
        store = denoiser.new_store(1, n)
        forward(denoiser, store, torch.tensor(full), 0, n)
        rows.append(forward(denoiser, store, torch.tensor(part[: stop - start]), start, n))
    return torch.stack(rows)


# ---- likelihood ------------------------------------------------------------------------------------------------------


def _likelihood(denoiser: TransformerDenoiser, case: dict[str, Any]) -> str:
    prompt, answer = case["inputs"]["prompt"], case["inputs"]["answer"]
    target, cfg = torch.tensor(prompt + answer), case["settings"]["cfg_scale"]
    found = []
    for noisy, ratio in zip(case["noisy_batches"], case["p_mask"], strict=True):
        found.append(round_value(denoiser, torch.tensor(noisy), target, torch.tensor(ratio), len(prompt), cfg))
    expected, tolerance = case["expected"], case["tol"]
    pairs = [("per_batch", i, a, b) for i, (a, b) in enumerate(zip(found, expected["per_batch"], strict=True))]
    pairs.append(("log_likelihood", 0, sum(found) / len(found), expected["log_likelihood"]))
    wrong = [f"{name}[{i}] {a:.6f}, expected {b:.6f}" for name, i, a, b in pairs if not abs(a - b) <= tolerance]
    return "; ".join(wrong)


# ---- generate --------------------------------------------------------------------------------------------------------


def _generate(denoiser: TransformerDenoiser, family: str, case: dict[str, Any]) -> str:
    settings, inputs = case["settings"], case["inputs"]
    strategy = _strategy(denoiser.traits, family, case["reference"], settings)
    seed, length = settings.get("torch_seed", 0), settings["gen_length"]
    masked = case["reference"] != "fastdllm_v1" and "attention_mask" in inputs
    masks = inputs["attention_mask"] if masked else [[1] * len(r) for r in inputs["input_ids"]]
    traced = Traced(denoiser)
    engine = Engine(traced, slots=2 * len(masks))
    for i, (row, mask) in enumerate(zip(inputs["input_ids"], masks, strict=True)):
        real = [t for t, m in zip(row, mask, strict=True) if m]
        engine.submit(_request(str(i), real, length, strategy, seed, denoiser.traits))
    events = list(engine.run())
    failures = [e.error for e in events if isinstance(e, Failed)]
    if failures:
        return failures[0]
    canvases, mask_id = fold(events), denoiser.traits.mask_id
    found = []
    for i, (row, mask) in enumerate(zip(inputs["input_ids"], masks, strict=True)):
        answer = [mask_id if t < 0 else t for t in canvases[str(i)].ids[sum(mask) :]]
        found.append(row + answer)
    problems = differences(found, engine.stats.model_calls, case["expected"])
    if problems or (len(masks) == 1 and all(masks[0])):
        problems += trace_differences(traced.calls, case.get("trace"))
    if "history" in case:
        problems += _history_differences(events, case["history"], inputs, length, mask_id)
    return "; ".join(problems)


def _request(id: str, prompt: list[int], length: int, strategy: Strategy, seed: int, traits: Traits) -> Request:
    """Prompt and holes; a mask id inside the prompt is a hole too, as the published samplers treat it."""
    assert traits.mask_id is not None
    canvas = torch.tensor(prompt + [traits.mask_id] * length)
    return Request(id, canvas, canvas.ne(traits.mask_id), len(prompt), strategy, seed=seed, cohort="batch")


def _strategy(traits: Traits, family: str, reference: str, s: dict[str, Any]) -> Strategy:
    """The profile of a recorded case, with its settings as options."""
    profile = {"ml_gsai_generate": "llada", "dream_hf": "dream"}.get(reference, "fast-dllm")
    names = (
        "gen_length",
        "steps",
        "block_length",
        "threshold",
        "factor",
        "remasking",
        "alg",
        "alg_temp",
        "eps",
        "top_k",
    )
    given = {k: s[k] for k in names if s.get(k) is not None}
    given |= {"cache": s["cache"]} if s.get("cache") else {}
    given |= {"cfg_scale": s["cfg_scale"]} if s.get("cfg_scale") else {}
    options = DecodeOptions(profile=profile, temperature=s["temperature"], **given)
    strategy = lenient(options, traits, family, s["gen_length"])
    suppress = (s["eos_id"],) if s.get("logits_eos_inf") else ()
    demote = (s["eos_id"], s["eot_id"]) if s.get("confidence_eos_eot_inf") else ()
    return replace(strategy, sampling=replace(strategy.sampling, suppress=suppress, demote=demote))


def _history_differences(
    events: list[Any], history: list[list[list[int]]], inputs: dict[str, Any], length: int, mask_id: int | None
) -> list[str]:
    """The generated part after each step, replayed from the events of a single row."""
    start, ids, steps = len(inputs["input_ids"][0]), [mask_id] * length, []
    for event in events:
        if isinstance(event, Stepped):
            for position, token, _, _ in event.writes:
                ids[position - start] = token
            steps.append(list(ids))
    for i, (ours, theirs) in enumerate(zip(steps, history, strict=False)):
        if ours != theirs[0]:
            return [f"history differs first after step {i}"]
    return [] if len(steps) == len(history) else [f"{len(steps)} steps of history, expected {len(history)}"]
