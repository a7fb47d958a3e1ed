"""Samples in the layout of lm-evaluation-harness 0.4 (`samples_TASK.jsonl`), for tools that read those.

Enters: answers and their records. Leaves: one JSON object per item with doc, arguments, resps, filtered_resps and the
metrics by name. Hashes are SHA-256 of the same texts as there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unmask.evals.runner.plan import Asked, Plan, as_messages


def samples(plan: Plan, records: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One object per item, its answers in `resps`."""
    asked = {a.key: a for a in plan.asked}
    by_item: dict[int, list[Mapping[str, Any]]] = {}
    for record in records:
        by_item.setdefault(record["index"], []).append(record)
    for index, own in by_item.items():
        yield _sample(plan, asked[index, 0], own)


def _sample(plan: Plan, asked: Asked, own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    doc, target = dict(asked.item.fields), _target(asked)
    prompt = asked.prompt if isinstance(asked.prompt, str) else _conversation(asked)
    means = {name: sum(r["scores"].get(name, 0.0) for r in own) / len(own) for name in own[0]["scores"]}
    found = [r["extracted"] if r["extracted"] is not None else r.get("text", "") for r in own]
    return {
        "doc_id": asked.index,
        "doc": doc,
        "target": target,
        "arguments": _arguments(plan, asked, prompt),
        "resps": [[r["text"] for r in own]] if "text" in own[0] else [[[v, False]] for v in own[0]["values"]],
        "filtered_resps": found if "text" in own[0] else [[v, False] for v in own[0]["values"]],
        "filter": "none",
        "metrics": list(means),
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False, default=str)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(str(target)),
        **means,
    }


def _conversation(asked: Asked) -> str:
    begun = asked.question.begun
    messages = [*as_messages(asked.prompt), *([{"role": "assistant", "content": begun}] if begun else [])]
    return json.dumps(messages, ensure_ascii=False)


def _arguments(plan: Plan, asked: Asked, prompt: str) -> dict[str, Any]:
    if plan.task.kind == "choice":
        return {f"gen_args_{i}": {"arg_0": prompt, "arg_1": c} for i, c in enumerate(asked.question.choices)}
    given = {"until": list(asked.question.until), "max_gen_toks": plan.max_tokens, "do_sample": False}
    return {"gen_args_0": {"arg_0": prompt, "arg_1": given}}


def _target(asked: Asked) -> Any:
    """The right answer where the record has one under its usual name; HumanEval's is the checking program."""
    fields = asked.item.fields
    if "test" in fields and "entry_point" in fields:
        return f"{fields['test']}\ncheck({fields['entry_point']})"
    return next((fields[n] for n in ("answer", "target", "label", "solution", "test_list") if n in fields), "")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
