"""Launch lines of the published scripts, taken from the docs, on small checkpoints: same answers as our own runner."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints
from eval_items import SCIENCE, STORIES
from harness_tasks import arc_task, gsm8k_task, isolated, lively

from unmask.cli.main import main

pytest.importorskip("lm_eval", reason="lm-eval (extra `harness`) is not installed")

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
SMALLER = {"1024": "32", "256": "64", "128": "16"}
"""Lengths, steps and draws in both columns: the published ones would take minutes."""
SCRIPTS = ("eval_llada.py", "eval.py")


def rows() -> list[tuple[str, str]]:
    """The two columns of the table."""
    section = PAGE.read_text("utf-8").split("### Coming from the published scripts")[1].split("\n## ")[0]
    found = re.findall(r"^\| `(.+)` \| `(.+)` \|$", section, re.M)
    assert len(found) >= 12
    return [(theirs, ours) for theirs, ours in found]


def smaller(text: str) -> str:
    return re.sub(r"(?<![\w.])\d+(?![\w.])", lambda m: SMALLER.get(m[0], m[0]), text)


def family(line: str) -> str:
    return next(n for n in ("llada_dist", "dream", "fast_dllm_v2") if f"--model {n}" in line)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("lines")
    dream = tiny_checkpoints.dream_checkpoint(root / "dream-base")
    config = json.loads((dream / "config.json").read_text())
    (dream / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    found = {
        "Instruct": tiny_checkpoints.llada_checkpoint(root / "llada-instruct", 2, max_sequence_length=4096),
        "LLaDA": tiny_checkpoints.llada_checkpoint(root / "llada-base", 2, max_sequence_length=4096),
        "Dream": dream,
        "Fast_dLLM": tiny_checkpoints.v2_checkpoint(root / "v2", bd_size=32, max_position_embeddings=4096),
    }
    return {name: lively(path) for name, path in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own items in the published formats, and YAML tasks that read the same files."""
    root = tmp_path_factory.mktemp("own")
    gsm8k_task(root, STORIES[:2])
    arc_task(root, SCIENCE)
    return root


def replaced(line: str, models: dict[str, Path], folder: Path, out: Path) -> list[str]:
    """The line behind its script's name, on our checkpoint and our task."""
    words = shlex.split(smaller(line))
    at = next(i for i, w in enumerate(words) if w in SCRIPTS)
    assert words[0] in ("accelerate", "torchrun")
    rest = [own_model(w, models) for w in words[at + 1 :]]
    rest[rest.index("--tasks") + 1] += "_own"
    kept = ["--include-path", str(folder), "--output-path", str(out), "--log-samples"]
    return ["eval", "harness", *rest, *kept, "--dtype", "fp32", "--device", "cpu", "--quiet"]


def own_model(word: str, models: dict[str, Path]) -> str:
    return re.sub(r"(model_path|pretrained)=([^,]+)", lambda m: f"{m[1]}={models[_kind(m[2])]}", word)


def _kind(name: str) -> str:
    return next(kind for kind in ("Instruct", "LLaDA", "Dream", "Fast_dLLM") if kind in name)


def ours(line: str, model: Path, folder: Path, out: Path) -> list[str]:
    words = shlex.split(smaller(line))
    assert words[:3] == ["unmask", "eval", "run"] and "DIR" in words
    words[words.index("DIR")] = str(model)
    data = folder / ("arc" if words[3] == "arc" else "gsm8k")
    return [*words[1:], "--data", str(data), "--out", str(out), "--dtype", "fp32", "--device", "cpu", "--quiet"]


def samples(out: Path) -> list[dict[str, Any]]:
    (path,) = out.rglob("samples_*.jsonl")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    first = lines[0]["filter"]
    return sorted((x for x in lines if x["filter"] == first), key=lambda x: x["doc_id"])


def scores(out: Path) -> dict[str, float]:
    (path,) = out.rglob("results_*.json")
    (found,) = json.loads(path.read_text("utf-8"))["results"].values()
    return found


@pytest.mark.parametrize(("theirs", "own"), rows(), ids=[f"{i}-{family(t)}" for i, (t, _) in enumerate(rows())])
def test_a_published_line_answers_as_our_runner(
    theirs: str, own: str, models: dict[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated(monkeypatch, tmp_path)
    checkpoint = models[_kind(theirs.split("--model_args")[1])]
    assert main(replaced(theirs, models, folder, tmp_path / "theirs")) == 0
    assert main(ours(own, checkpoint, folder, tmp_path / "ours")) == 0
    items = [json.loads(line) for line in (tmp_path / "ours" / "items.jsonl").read_text("utf-8").splitlines()]
    results = json.loads((tmp_path / "ours" / "results.json").read_text())["scores"]
    found, told = samples(tmp_path / "theirs"), scores(tmp_path / "theirs")
    assert len(found) == len(items) == 2
    if "arc" in own:
        for sample, item in zip(found, items):
            values = [float(r[0][0]) for r in sample["resps"]]
            assert values == pytest.approx(item["values"], abs=1e-3)
        assert told["acc,none"] == results["acc"]["score"] and told["acc_norm,none"] == results["acc_norm"]["score"]
        return
    assert [s["resps"][0][0] for s in found] == [i["text"] for i in items]
    assert all(len(set(i["text"])) > 2 for i in items)
    for name in ("strict", "flexible"):
        assert told[f"exact_match,{name}"] == results[name]["score"]


def test_two_processes_answer_as_one(
    models: dict[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated(monkeypatch, tmp_path)
    line = next(theirs for theirs, _ in rows() if "LLaDA-8B-Base',gen" in theirs) + " --batch_size 1"
    assert main(replaced(line, models, folder, tmp_path / "one")) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    place |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    words = replaced(line, models, folder, tmp_path / "two")
    helper = subprocess.Popen(
        [sys.executable, "-m", "unmask", *words], env={**os.environ, **place, "RANK": "1", "LOCAL_RANK": "1"}
    )
    for name, value in {**place, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    try:
        assert main(words) == 0
        assert helper.wait(300) == 0
    finally:
        helper.kill()
    assert [s["resps"] for s in samples(tmp_path / "two")] == [s["resps"] for s in samples(tmp_path / "one")]
    assert scores(tmp_path / "two") == scores(tmp_path / "one")


LAUNCHERS = {
    "accelerate": ["launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
    "torchrun": ["--standalone", "--nproc_per_node=2"],
}
"""Where two processes are asked for: the lines of the table leave it to the machine's settings, or its GPUs."""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_published_line_runs_under_its_own_launcher(
    launcher: str, models: dict[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launcher == "accelerate":
        pytest.importorskip("accelerate", reason="accelerate is not installed")
    isolated(monkeypatch, tmp_path)
    line = next(theirs for theirs, _ in rows() if theirs.startswith(launcher)) + " --batch_size 1"
    assert main(replaced(line, models, folder, tmp_path / "one")) == 0
    module = ["torch.distributed.run"] if launcher == "torchrun" else ["accelerate.commands.accelerate_cli"]
    words = [*module, *LAUNCHERS[launcher], "-m", "unmask", *replaced(line, models, folder, tmp_path / "two")]
    place = {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", *words], env={**os.environ, **place}, check=True, timeout=600)
    assert [s["resps"] for s in samples(tmp_path / "two")] == [s["resps"] for s in samples(tmp_path / "one")]
    assert scores(tmp_path / "two") == scores(tmp_path / "one")
