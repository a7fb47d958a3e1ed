"""Every script of examples/ runs, on a tiny checkpoint, and the README names each of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from tiny_checkpoints import llada_checkpoint

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def _run(script: Path, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(llada_checkpoint(tmp_path_factory.mktemp("model") / "tiny"))


def test_the_readme_names_every_script() -> None:
    text = (ROOT / "examples" / "README.md").read_text("utf-8")
    assert [p.name for p in EXAMPLES if f"`{p.name}`" not in text] == []


def test_custom_policy(checkpoint: str) -> None:
    out = _run(ROOT / "examples" / "custom_policy.py", checkpoint)
    assert "passes the checks" in out and "policy=outside_in" in out


def test_probes_and_trace(checkpoint: str, tmp_path: Path) -> None:
    out = _run(ROOT / "examples" / "probes_and_trace.py", str(tmp_path / "trace.safetensors"), checkpoint)
    assert "mean entropy" in out and "cosine of keys" in out
    with safe_open(tmp_path / "trace.safetensors", framework="pt") as file:
        kinds = {name.split("/")[2] for name in file.keys()}  # noqa: SIM118
    assert kinds == {"logits", "hidden", "kv_cosine"}


def test_race(checkpoint: str) -> None:
    out = _run(ROOT / "examples" / "race.py", "Why is the sky blue?", checkpoint)
    assert out.count("\n") == 6 and "dual cache" in out
