"""The model inside the package: complete, small, and as good as its card says."""

import json
from xml.etree import ElementTree as ET

import pytest

from unmask.evals.synthetic_eval import evaluate, trivial
from unmask.evals.tasks.synthetic import TASKS
from unmask.pipeline import load
from unmask.pipeline.model import embedded

TARGETS = {"copy": 0.98, "reverse": 0.98, "sudoku": 0.98, "one_step": 0.98, "sort": 0.90, "two_step": 0.80}


def scores():
    return json.loads((embedded() / "scores.json").read_text(encoding="utf-8"))


def test_files_are_complete_and_small():
    names = {p.name for p in embedded().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "loss.svg", "scores.json"} <= names
    assert sum(p.stat().st_size for p in embedded().iterdir()) < 25e6
    ET.parse(embedded() / "loss.svg")


def test_the_card_shows_every_task_and_meets_the_targets():
    card = (embedded() / "README.md").read_text(encoding="utf-8")
    one_per_step = {s["task"]: s for s in scores() if s["strategy"].startswith("1 token/step")}
    assert set(one_per_step) == set(TASKS)
    for task, score in one_per_step.items():
        assert score["n"] == 500
        assert f"| {task} |" in card
        assert f"{score['accuracy']:.1%}" in card
        assert score["accuracy"] >= TARGETS.get(task, 0.0)


@pytest.mark.slow
def test_a_sample_of_the_scores_is_reproduced():
    want = {s["task"]: s for s in scores() if s["strategy"].startswith("1 token/step")}
    rules = trivial(count=40)
    for found in evaluate(load(device="cpu", slots=40), count=40):
        assert found.accuracy >= want[found.task]["accuracy"] - 0.12, found.task
        assert found.task == "copy" or found.accuracy > rules[found.task]


@pytest.mark.parametrize("prompt", ["", "\x00", "żółć 日本語 🙂", "<|mask|><|eos|>", "1" * 300])
def test_any_text_is_taken(prompt):
    model = load(device="cpu")
    assert model.generate(f"Copy: {prompt}", max_tokens=16).finish_reason in ("stop", "length")
