"""Records added up: the score with its interval, what it cost, and everything that a repetition needs.

Enters: records in item order and what the run is. Leaves: the content of `results.json`. Scores that are 0 or 1, or all
the same, get Wilson's interval, others the mean plus or minus 1.96 standard errors over the items. Nothing is a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import fsum, sqrt
from typing import Any

from unmask.evals.intervals import Z95, wilson
from unmask.evals.pass_at_k import mean_pass_at_k

COUNTING = "tokens that a reader sees: no prompt, no EOS or other special token, nothing behind a stop string"
FORMAT = 1
RESULTS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("n", "score", "low", "high", "items_in_data"), (int, float)),
    **dict.fromkeys(("scores", "cost", "run"), dict),
    **dict.fromkeys(("metric", "model"), str),
    "limited": bool,
}
"""What every results file has."""

Record = Mapping[str, Any]


def summary(records: Sequence[Record], metric: str, pass_at: Sequence[int] = ()) -> dict[str, Any]:
    """Scores and costs of a whole run.

    Args:
        metric: the score that the task is known by.
        pass_at: numbers k for pass@k over the answers of an item.
    """
    by_item: dict[int, list[Record]] = {}
    for record in records:
        by_item.setdefault(record["index"], []).append(record)
    names = list(dict.fromkeys([metric, *(n for r in records for n in r["scores"])]))
    scores = {name: _score(name, list(by_item.values())) for name in names}
    out: dict[str, Any] = {"metric": metric, "n": len(by_item), "answers": len(records), **scores[metric]}
    out["scores"] = scores
    if pass_at:
        out["pass_at"] = {str(k): _pass_at(metric, list(by_item.values()), k) for k in pass_at}
    if any("status" in r for r in records):
        out["programs"] = dict(sorted(Counter(r["status"] for r in records if "status" in r).items()))
    out["not_extracted"] = sum(r["extracted"] is None for r in records)
    return {**out, "cost": _cost(records)}


def is_results(value: Mapping[str, Any]) -> bool:
    """Whether a JSON object is the content of a results file."""
    if not all(isinstance(value.get(name), kind) for name, kind in RESULTS.items()):
        return False
    numbers = [value["cost"].get(name) for name in ("nfe", "tokens")]
    return all(isinstance(n, int | float) for n in numbers) and {"task", "protocol", "dtype"} <= value["run"].keys()


def _score(name: str, items: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """Mean over the items of the mean over their answers, with its 95 % interval."""
    means = [fsum(r["scores"].get(name, 0.0) for r in item) / len(item) for item in items]
    n, mean = len(means), fsum(means) / len(means)
    if all(m in (0.0, 1.0) for m in means) or len(set(means)) == 1:  # no spread is seen: that is not certainty
        low, high = wilson(fsum(means), n)
        kind = "Wilson 95 %"
    else:
        half = Z95 * sqrt(fsum((m - mean) ** 2 for m in means) / max(1, n - 1) / n)
        low, high, kind = max(0.0, mean - half), min(1.0, mean + half), "normal 95 % over items"
    return {"score": mean, "low": low, "high": high, "interval": kind}


def _pass_at(metric: str, items: Sequence[Sequence[Record]], k: int) -> dict[str, float]:
    found = mean_pass_at_k([(len(item), sum(r["scores"].get(metric) == 1.0 for r in item)) for item in items], k)
    return {"score": found.value, "low": found.low, "high": found.high}


def _cost(records: Sequence[Record]) -> dict[str, Any]:
    n = len(records)
    tokens, nfe = sum(r["tokens"] for r in records), sum(r["nfe"] for r in records)
    cost: dict[str, Any] = {"nfe": nfe / n, "tokens": tokens / n, "tokens_counted": COUNTING}
    if all("row_layers" in r for r in records):
        cost["tokens_per_forward"] = tokens / nfe if nfe else 0.0
        cost["row_layers"] = sum(r["row_layers"] for r in records) / n
        if all("forwards" in r for r in records):
            kinds: Counter[str] = sum((Counter(r["forwards"]) for r in records), Counter())
            cost["forwards"] = {kind: count / n for kind, count in sorted(kinds.items())}
            cost["head_rows"] = sum(r["head_rows"] for r in records) / n
        cost["finish"] = dict(sorted(Counter(r["finish_reason"] for r in records).items()))
    else:
        cost["tokens_counted"] = "tokens of the choices that were scored"
    return cost


def timing(costs: Sequence[Mapping[str, Any]], sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of timing.json: seconds of decoding as measured, for the groups that are in `costs`.

    Args:
        costs: of the groups, with the process that decoded each. sessions: one per start of a process.
    """
    ranks: dict[str, float] = {}
    for cost in costs:
        ranks[str(cost["rank"])] = ranks.get(str(cost["rank"]), 0.0) + cost["seconds"]
    tokens, wall = sum(c["tokens"] for c in costs), max(ranks.values(), default=0.0)
    return {
        "decoding": {
            "seconds": wall,
            "seconds_of_process": ranks,
            "answers": sum(c["answers"] for c in costs),
            "tokens": tokens,
            "tokens_per_second": tokens / wall if wall else 0.0,
            "counted": f"{COUNTING}; seconds of decoding alone (no loading, tokenising, judging, running of programs), "
            "of several processes those of the longest",
            "model_calls": sum(c["model_calls"] for c in costs),
        },
        "sessions": list(sessions),
    }
