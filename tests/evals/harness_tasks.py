"""Small YAML tasks for lm-eval with items of our own, in the formats of GSM8K, HumanEval and ARC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from unmask.text.codec import Codec

TRAIN = [
    {"question": f"Ada has {n} cups and buys {n + 2}. How many has she?", "answer": f"{n} + {n + 2}.\n#### {2 * n + 2}"}
    for n in range(3, 15)
]

GSM8K = """\
task: gsm8k_own
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
output_type: generate_until
training_split: train
fewshot_split: train
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["Question:", "</s>", "<|im_end|>"], do_sample: false, temperature: 0.0}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
filter_list:
  - name: strict
    filter: [{{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}, {{function: take_first}}]
  - name: flexible
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{{2,}})|(-?[0-9]+)"}}
      - {{function: take_first}}
"""

ARC = """\
task: arc_challenge_own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/yaml.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: gold
doc_to_choice: texts
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""

CODE = """\
task: humaneval_own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/humaneval.jsonl}}}}
unsafe_code: true
output_type: generate_until
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{test}}}}\\ncheck({{{{entry_point}}}})"
generation_kwargs: {{until: ["\\nclass", "\\ndef"], do_sample: false, max_gen_toks: 64}}
metric_list: [{{metric: !function own_code.pass_at_1, aggregation: mean, higher_is_better: true}}]
filter_list: [{{name: whole, filter: [{{function: custom, filter_fn: !function own_code.whole}}]}}]
"""

OWN_CODE = """\
from unmask.evals.harness.code import pass_at_1 as run


def pass_at_1(references, predictions):
    return run(references, predictions, weak=True)


def whole(resps, docs):
    return [[doc["prompt"] + text for text in texts] for texts, doc in zip(resps, docs)]
"""


def isolated(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """lm-eval's data cache in a folder of the test's own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")


def lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")


def gsm8k_task(root: Path, items: list[dict[str, Any]]) -> Path:
    """A YAML task under `root`, and the same items in root/gsm8k for our own task."""
    lines(root / "gsm8k" / "test.jsonl", items)
    lines(root / "gsm8k" / "train.jsonl", TRAIN)
    (root / "gsm8k.yaml").write_text(GSM8K.format(folder=root / "gsm8k"), "utf-8")
    return root


def arc_task(root: Path, items: list[dict[str, Any]]) -> Path:
    """The same for ARC; our task reads both published forms, lm-eval's templates a flat one."""
    lines(root / "arc" / "ARC-Challenge-Test.jsonl", items)
    lines(root / "arc" / "yaml.jsonl", [_flat(item) for item in items])
    (root / "arc.yaml").write_text(ARC.format(folder=root / "arc"), "utf-8")
    return root


def _flat(item: dict[str, Any]) -> dict[str, Any]:
    if isinstance(item["question"], dict):
        question, choices = item["question"]["stem"], item["question"]["choices"]
        texts, labels = [c["text"] for c in choices], [c["label"] for c in choices]
    else:
        question, texts, labels = item["question"], item["choices"]["text"], item["choices"]["label"]
    return {"question": question, "texts": texts, "gold": labels.index(item["answerKey"])}


def code_task(root: Path, items: list[dict[str, Any]]) -> Path:
    """HumanEval's format, run in our sandbox."""
    lines(root / "code" / "humaneval.jsonl", items)
    (root / "humaneval.yaml").write_text(CODE.format(folder=root / "code"), "utf-8")
    (root / "own_code.py").write_text(OWN_CODE, "utf-8")
    return root


def lively(checkpoint: Path) -> Path:
    """Random weights with loud attention, and bytes that are no characters made unlikely: answers that depend on their
    prompt and can be told apart."""
    codec, path = Codec.from_dir(checkpoint), checkpoint / "model.safetensors"
    tensors = {n: t * _louder(n) if t.ndim == 2 else t for n, t in load_file(path).items()}
    heads = [n for n, t in tensors.items() if t.ndim == 2 and t.shape[0] == codec.size]
    head = next((n for n in heads if "head" in n or n.endswith("transformer.ff_out.weight")), heads[0])
    for token in range(codec.size):
        if "\ufffd" in codec.piece(token):
            tensors[head][token] = 0
    mask = json.loads((checkpoint / "config.json").read_text()).get("mask_token_id")
    for name in heads if mask is not None else ():
        if name != head:
            tensors[name][mask] *= 0.01  # what is written in a hole comes from its surroundings
    save_file(tensors, path, {"format": "pt"})
    return checkpoint


def _louder(name: str) -> float:
    if "q_proj" in name or "k_proj" in name:
        return 10.0
    return 20.0 if any(part in name for part in ("v_proj", "o_proj", "attn_out")) else 1.0
