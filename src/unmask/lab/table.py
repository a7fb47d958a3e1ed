"""Measured cases as rows of plain values, and the rows as a Markdown table with machine and versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unmask.lab.cases import AR
from unmask.lab.cost import Executed, bytes_read, flops
from unmask.models.config import TransformerConfig
from unmask.ops import attention

if TYPE_CHECKING:
    from unmask.lab.decoding import Measured
    from unmask.pipeline.model import Model

Row = dict[str, Any]
ALONE = "one after the other"
SUB_BLOCK_CACHES = {"block": "sub_block", "fast-dllm-v2": "fast-dllm-v2-cached"}
"""Without -> with a sub-block cache: our caches, and the published sampler's two modes."""


# ---- rows --------------------------------------------------------------------------------------------------------


def row(m: Measured, model: Model, work: Row) -> Row:
    """One case as plain values. work: lengths that all cases share."""
    first, walls, case = m.runs[0], [r.seconds for r in m.runs], m.case
    calls, rows = max(1, first.model_calls), sum(f.layers for f in first.forwards)
    return {
        "model": model.name,
        "strategy": case.strategy,
        "baseline": case.baseline,
        "cache": case.cache,
        "policy": case.policy,
        "tokens_per_step": case.tokens_per_step,
        "requests": len(case.requests),
        "way": "together" if case.together else ALONE,
        **work,
        "tokens": first.tokens,
        "tokens_per_s": round(first.tokens / m.median, 3),
        "nfe": first.nfe,
        "model_calls": first.model_calls,
        "tokens_per_forward": round(first.tokens / max(1, first.nfe), 3),
        "ms_per_forward": round(1e3 * m.median / calls, 3),
        "rows": rows,
        "rows_per_forward": round(rows / calls, 2),
        "forwards": _kinds(first.kinds),
        "head_rows": first.head_rows,
        "row_layers": first.work.row_layers,
        **_cost(model, first.work),
        "wall_s": round(m.median, 5),
        "wall_min_s": round(min(walls), 5),
        "wall_max_s": round(max(walls), 5),
        "cpu_s": round(sorted(r.cpu_seconds for r in m.runs)[len(m.runs) // 2], 5),
        "floor_s": round(m.floor, 5),
        "share": round(m.share, 4),
        "strict_floor_s": round(m.strict_floor, 5),
        "strict_share": round(m.strict_floor / m.median, 4),
        "products_ms": {name: _ms(times) for name, times in zip(("layers", "head"), m.products, strict=True)},
        "peak_mib": None if m.peak is None else round(m.peak / 2**20, 1),
        "rounds": len(m.runs),
        **_machine(model),
    }


def _kinds(counts: dict[tuple[str, int], int]) -> dict[str, dict[str, int]]:
    """{kind: {rows: forwards}}, largest forwards first."""
    found: dict[str, dict[str, int]] = {}
    for (kind, rows), count in sorted(counts.items(), key=lambda item: (item[0][0], -item[0][1])):
        found.setdefault(kind, {})[str(rows)] = count
    return found


def _cost(model: Model, work: Executed) -> Row:
    """Operations and bytes by the model's shape; None where they are not counted (a recurrent model)."""
    shape, weight = model.denoiser.model.cfg, model.denoiser.head.weight
    if not isinstance(shape, TransformerConfig):
        return {"gflop": None, "gib_read": None}
    found = bytes_read(shape, work, weight.element_size())
    return {"gflop": round(flops(shape, work) / 1e9, 6), "gib_read": round(found / 2**30, 6)}


def _ms(times: dict[int, float]) -> dict[str, float]:
    return {str(rows): round(1e3 * seconds, 2) for rows, seconds in times.items()}


def _machine(model: Model) -> Row:
    device, weight = model.denoiser.device, model.denoiser.head.weight
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": device.type,
        "machine": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "kernels": attention.describe() if device.type == "cpu" else "torch",
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


# ---- ratios ------------------------------------------------------------------------------------------------------


def relate(rows: list[Row]) -> None:
    """Adds the ratios between rows: a crowd to its requests alone, every row to the AR baseline, and what the floors
    alone would allow there."""
    for one, alone in pairwise(rows):
        if one["way"] == "together" and alone["way"] == ALONE:
            one["speedup"] = _ratio(one["tokens_per_s"], alone["tokens_per_s"])
    for reference in [r for r in rows if r["baseline"] == AR]:
        for one in [r for r in rows if r["way"] == reference["way"]]:
            one["ar_ratio"] = _ratio(one["tokens_per_s"], reference["tokens_per_s"])
            one["ar_ratio_of_floors"] = _floor_ratio(one, reference)


def _ratio(one: float, other: float) -> float | None:
    return round(one / other, 3) if other else None


def _floor_ratio(one: Row, other: Row) -> float | None:
    """Tokens per second of one to the other if both took their floors."""
    return _ratio(one["tokens"] * other["floor_s"], other["tokens"] * one["floor_s"])


def _sub_block_pairs(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """(with, without) the sub-block cache, everything else equal."""
    same = ("policy", "tokens_per_step", "way")
    for without in rows:
        wanted = SUB_BLOCK_CACHES.get(without["baseline"] or without["cache"])
        for one in rows:
            if (one["baseline"] or one["cache"]) == wanted and all(one[k] == without[k] for k in same):
                yield one, without


# ---- Markdown ----------------------------------------------------------------------------------------------------

COLUMNS = {
    "strategy": "strategy",
    "cache": "cache",
    "policy": "policy",
    "way": "way",
    "nfe": "NFE",
    "model_calls": "calls",
    "tokens_per_forward": "tokens/forward",
    "ms_per_forward": "ms/forward",
    "rows": "rows",
    "forwards": "forwards x rows",
    "peak_mib": "peak MiB",
    "gflop": "GFLOP",
    "gib_read": "GiB read",
    "seconds": "median s (min to max)",
    "tokens_per_s": "tokens/s",
    "speedup": "speed-up",
    "ar_ratio": "x AR",
    "ar_ratio_of_floors": "x AR by floors",
    "per_token": "x AR / t (by floors)",
    "floor_s": "floor s",
    "share": "share",
    "strict_share": "strict share",
    "accuracy": "exact match",
    "accuracy_low": "95 % from",
    "accuracy_high": "to",
}
FORMATS = {
    "tokens_per_forward": "{:.2f}",
    "ms_per_forward": "{:.1f}",
    "tokens_per_s": "{:.1f}",
    "ar_ratio": "{:.2f}",
    "ar_ratio_of_floors": "{:.2f}",
    "speedup": "{:.2f}",
    "gflop": "{:.4g}",
    "gib_read": "{:.4g}",
    "share": "{:.1%}",
    "strict_share": "{:.1%}",
}


def markdown(rows: Sequence[Row], crowd: int) -> str:
    """The table, above it what was measured where, below it the sub-block cache's gain where both sides are there."""
    first = rows[0]
    keys = [k for k in COLUMNS if k not in _hidden(rows, crowd)]
    lines = [
        f"{first['model']}, {first['dtype']}: prompt {first['prompt_length']}, answer {first['gen_length']}, "
        f"blocks of {first['block_length']}" + (f", {crowd} requests of mixed lengths" if crowd > 1 else ""),
        f"{first['machine']}, {first['cores']} cores, {first['threads']} threads; torch {first['torch']}, Python "
        f"{first['python']}, {platform.system()}; kernels: {first['kernels']}",
        f"{first['rounds']} interleaved rounds; tokens are visible ones; seconds are {_clock(first)}; "
        "share = floor (bare matrix products) / median; strict: output matrix at the scored rows only."
        + (f" Exact match: {first['items']} held-out items over all synthetic tasks." if "items" in first else ""),
        "",
        "| " + " | ".join(COLUMNS[k] for k in keys) + " |",
        "|" + "---|" * len(keys),
    ]
    lines += ["| " + " | ".join(_cell(r, k) for k in keys) + " |" for r in rows]
    gains = [_gain(*pair) for pair in _sub_block_pairs(rows)]
    lines += ["", "Sub-block cache against none:", "", *gains] if gains else []
    return "\n".join(lines + (["", _products(rows)] if _compared(rows) else []))


def _products(rows: Sequence[Row]) -> str:
    """What the matrix products of one forward take, by its rows."""
    parts = []
    for name in ("layers", "head"):
        times = {int(n): ms for r in rows for n, ms in r["products_ms"][name].items()}
        parts.append(f"{name} " + ", ".join(f"{ms:.1f} ({_counted(n, 'row')})" for n, ms in sorted(times.items())))
    return f"Matrix products of one forward, ms: {'; '.join(parts)}."


def _clock(first: Row) -> str:
    return "wall time" if first["clock"] == "wall" else "processor time of one thread"


def _hidden(rows: Sequence[Row], crowd: int) -> set[str]:
    """Columns that would say nothing here."""
    hidden = set() if crowd > 1 else {"way", "speedup", "model_calls"}
    hidden |= {"rows", "peak_mib", "gflop", "gib_read"} if _compared(rows) else {"strategy", "forwards", "strict_share"}
    hidden |= set() if any("ar_ratio" in r for r in rows) else {"ar_ratio", "ar_ratio_of_floors", "per_token"}
    return hidden | (set() if any("accuracy" in r for r in rows) else {"accuracy", "accuracy_low", "accuracy_high"})


def _compared(rows: Sequence[Row]) -> bool:
    return any(r["baseline"] is not None for r in rows)


def _gain(one: Row, without: Row) -> str:
    tokens = "" if one["tokens_per_step"] is None else f" at {_counted(one['tokens_per_step'], 'token')} per forward"
    name = f"`{one['cache']}`" if one["baseline"] is None else one["strategy"]
    way = "" if one["requests"] == 1 else f", {one['way']}"
    times, allowed = _ratio(one["tokens_per_s"], without["tokens_per_s"]), _floor_ratio(one, without)
    return f"- {name}{tokens}{way}: {times} times the tokens/s (floors alone: {allowed})"


def _cell(row: Row, key: str) -> str:
    if key == "seconds":
        return f"{row['wall_s']:.3f} ({row['wall_min_s']:.3f} to {row['wall_max_s']:.3f})"
    if key == "per_token":
        return _per_token(row)
    value = row.get(key)
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{n} x {rows} {kind}" for kind, counts in value.items() for rows, n in counts.items())
    if key in FORMATS:
        return FORMATS[key].format(value).replace("%", " %")
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _counted(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _per_token(row: Row) -> str:
    """The ratio to the AR baseline, and that of the floors, per token that a forward settles."""
    ratios = [row.get(k) for k in ("ar_ratio", "ar_ratio_of_floors")]
    if None in ratios or not row["tokens_per_forward"]:
        return "-"
    measured, allowed = (r / row["tokens_per_forward"] for r in ratios if r is not None)
    return f"{measured:.2f} ({allowed:.2f})"
