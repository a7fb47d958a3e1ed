"""Real processes: one killed without warning in the middle of its run, and two that share one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_checkpoints

from unmask.cli.main import main

TASK = "synthetic(task='sort', count=40)"
OPTIONS = ["--dtype", "fp32", "--device", "cpu", "--policy", "low_confidence(steps=48)", "--batch", "2", "--quiet"]
WAIT = 500.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.llada_checkpoint(tmp_path_factory.mktemp("processes") / "tiny", max_sequence_length=512)


def line(model: Path, out: Path) -> list[str]:
    return ["eval", "run", TASK, "--model", str(model), "--out", str(out), *OPTIONS]


def begin(model: Path, out: Path, **environment: str) -> subprocess.Popen[bytes]:
    own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "unmask", *line(model, out)]
    return subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL)


def files(folder: Path) -> dict[str, bytes]:
    return {n: (folder / n).read_bytes() for n in ("items.jsonl", "results.json", "run.json")}


def test_kill_9_in_the_middle_and_two_processes_give_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = begin(model, tmp_path / "killed")
    helper = begin(model, tmp_path / "two", RANK="1", WORLD_SIZE="2")
    part, deadline = tmp_path / "killed" / "parts" / "rank0.jsonl", time.monotonic() + WAIT
    while not part.is_file() or part.read_bytes().count(b"\n") < 4:  # a session line and three groups
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(WAIT) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "results.json").exists()
    assert main(line(model, tmp_path / "whole")) == 0
    expected = files(tmp_path / "whole")
    assert expected["items.jsonl"].count(b"\n") == 40
    assert main(line(model, tmp_path / "killed")) == 0
    assert files(tmp_path / "killed") == expected
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(line(model, tmp_path / "two")) == 0
    assert helper.wait(WAIT) == 0
    assert files(tmp_path / "two") == expected
