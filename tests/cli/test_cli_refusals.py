"""Bad input: one clear line, a hint, exit code 2, the folder as it was. Failures and interrupts: their own codes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_ran import Ran, Run

from unmask.core.errors import RunError


@pytest.fixture(autouse=True)
def unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test here runs in a folder that must look the same afterwards."""
    (tmp_path / "latin1.txt").write_bytes("Bär".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("not a recording\n")
    monkeypatch.chdir(tmp_path)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    yield tmp_path
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def refused(ran: Ran, said: str) -> None:
    assert ran.code == 2, ran
    lines = ran.err.strip().splitlines()
    mine = [line for line in lines if line.startswith("unmask: error: ")]
    assert len(mine) == 1, ran.err
    assert lines[-1].startswith(("unmask: error: ", "hint: "))
    assert said.lower() in ran.err.lower(), ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


def named(value: object) -> str:
    """A test's name from its command line."""
    return " ".join(value)[:60] if isinstance(value, list) else ""


BEFORE_LOADING = [
    # no model is named in these: they are refused before any is looked for
    (["generate"], "some text"),
    (["generate", ""], "an empty one"),
    (["generate", " \n "], "white space"),
    (["generate", "a", ""], "an empty one"),
    (["generate", "a\0b"], "NUL"),
    (["generate", "a\udce4b"], "another encoding"),
    (["generate", "-f", "missing.txt"], "no such file"),
    (["generate", "-f", "folder"], "folder"),
    (["generate", "-f", "latin1.txt"], "0xe4 at offset 1"),
    (["generate", "-f", "empty.txt"], "empty"),
    (["generate", "-f", "nul.txt"], "NUL"),
    (["generate", "hi", "--steps", "0"], "--steps: expected an integer from 1"),
    (["generate", "hi", "--steps", "many"], "got 'many'"),
    (["generate", "hi", "--threshold", "1.5"], "from 0 to 1"),
    (["generate", "hi", "--threshold", "nan"], "number"),
    (["generate", "hi", "--temperature", "-1"], "from 0 to 100"),
    (["generate", "hi", "--temperature", "inf"], "number"),
    (["generate", "hi", "--top-p", "0"], "above 0"),
    (["generate", "hi", "--top-k", "0"], "at least 1"),
    (["generate", "hi", "--seed", "-1"], "--seed"),
    (["generate", "hi", "-n", "99999999999"], "--max-tokens"),
    (["generate", "hi", "--n", "0"], "--n"),
    (["generate", "hi", "--factor", "0"], "above 0"),
    (["generate", "hi", "--eps", "2"], "--eps"),
    (["generate", "hi", "--dtype", "int4"], "invalid choice"),
    (["generate", "hi", "--remasking", "best"], "invalid choice"),
    (["generate", "hi", "--alg", "best"], "invalid choice"),
    (["generate", "hi", "--policy", "treshold(0.9)"], "did you mean threshold"),
    (["generate", "hi", "--policy", "threshold(0.9"], "does not parse"),
    (["generate", "hi", "--policy", "threshold(2)"], "<= 1"),
    (["generate", "hi", "--policy", "threshold(x=1)"], "unknown"),
    (["generate", "hi", "--policy", "__import__('os')"], "unknown policy"),
    (["generate", "hi", "--cache", "everything"], "unknown cache"),
    (["generate", "hi", "--cache", ""], "does not parse"),
    (["generate", "hi", "--policy", "random(steps=99999999999)"], "steps"),
    (["generate", "hi", "--temperature", "1e300"], "from 0 to 100"),
    (["generate", "hi", "--cfg-scale", "1e30"], "from 0 to 999"),
    (["generate", "hi", "--model", ""], "a directory or a hub id"),
    (["generate", "hi", "--model", "a\x1b[31mb\rc"], "a\\x1b[31mb\\rc"),
    (["generate", "hi", "--schedule", "blocks(0)"], ">= 1"),
    (["generate", "hi", "--profile", "lada"], "did you mean llada"),
    (["generate", "hi", "--constraint", "fox"], "no colon"),
    (["generate", "hi", "--constraint=-1:fox"], "position"),
    (["generate", "hi", "--constraint", ""], "position:word"),
    (["generate", "--infill", "no holes"], "without holes"),
    (["generate", "--infill", "a [[0]]"], "[[n]]"),
    (["generate", "--infill", "a [[2]]", "--constraint", "0:a"], "both"),
    (["generate", "hi", "--stop", ""], "--stop"),
    (["generate", "hi", "--chat", "--raw"], "not allowed with"),
    (["generate", "hi", "--raw", "--system", "x"], "--system"),
    (["generate", "hi", "--max-tokens", "8", "--gen-length", "9"], "8 and 9"),
    (["generate", "hi", "--delay", "1"], "--show"),
    (["generate", "hi", "--record", "missing/run.jsonl"], "folder that exists"),
    (["generate", "hi", "--record", "folder"], "a file name"),
    (["generate", "hi", "--svg", "x", "--record", "./x"], "two different files"),
    (["generate", "hi", "--svg", "missing/run.svg"], "folder that exists"),
    (["generate", "hi", "--tempurature", "1"], "did you mean --temperature"),
    (["generate", "hi", "--temp"], "--temp: expected one argument"),
    (["generate", "hi", "--model", "nowhere"], "nowhere"),
    (["generate", "hi", "--model", "folder"], "config.json"),
    (["generate", "hi", "--model", "random:huge"], "llada-mid"),
    (["chat", "--threshold", "7"], "from 0 to 1"),
    (["chat", "--model", "nowhere"], "nowhere"),
    (["chat", "surprise"], "unexpected argument"),
    (["replay"], "FILE"),
    (["replay", "missing.jsonl"], "no such file"),
    (["replay", "folder"], "folder"),
    (["replay", "notes.txt"], "JSON object"),
    (["replay", "empty.txt"], "an empty file"),
    (["replay", "latin1.txt"], "UTF-8"),
    (["replay", "notes.txt", "--speed", "0"], "above 0"),
    (["replay", "notes.txt", "--svg", "missing/a.svg"], "folder that exists"),
    *[(["replay", "notes.txt", f, "./notes.txt"], "another file") for f in ("--svg", "--html", "--gif", "--png")],
    (["replay", "notes.txt", "--svg", "a.svg", "--png", "./a.svg"], "another file than --svg"),
    (["replay", "notes.txt", "--png-steps", "folder", "--svg", "folder/a.svg"], "a folder of its own"),
    (["replay", "notes.txt", "--png-steps", "notes.txt"], "a new or empty folder"),
    (["replay", "notes.txt", "--png-steps", "."], "a new folder"),
    (["replay", "notes.txt", "--png-steps", "missing/steps"], "a folder in one that exists"),
    (["replay", "notes.txt", "--style", "steps"], "--svg, --png, --gif or --png-steps beside it"),
    (["replay", "notes.txt", "--html", "a.html", "--palette", "safe"], "--svg, --png, --gif, --png-steps or --show"),
    (["replay", "notes.txt", "--svg", "a.svg", "--font", "f.ttf"], "--png, --gif or --png-steps beside it"),
    (["replay", "notes.txt", "--svg", "a.svg", "--no-loop"], "--gif beside it"),
    (["replay", "notes.txt", "--title", "x"], "--html, --svg, --png, --gif or --png-steps beside it"),
    (["replay", "notes.txt", "--svg", "a.svg", "--width", "0"], "from 100 to 8000"),
    (["replay", "notes.txt", "--svg", "a.svg", "--columns", "7"], "from 8 to 1000"),
    (["replay", "notes.txt", "--json", "--speed", "2"], "--gif or --show beside it"),
    (["replay", "notes.txt", "--gif", "a.gif"], "JSON object"),
    (["generate", "x", "--theme", "light"], "--show or --svg beside it"),
    (["chat", "--palette", "safe"], "--show beside it"),
    (["replay", ""], "FILE"),
    (["verify"], "--real"),
    (["verify", "missing"], "missing"),
    (["verify", "folder"], "no case"),
    (["verify", "notes.txt"], "a file"),
    (["verify", ""], "--real"),
    (["verify", "--real", "nowhere"], "nowhere"),
    (["plan"], "MODEL"),
    (["plan", "nowhere"], "nowhere"),
    (["plan", "llada-mid", "--batch", "0"], "--batch"),
    (["plan", "llada-mid", "--revision", "main"], "hub id"),
    (["plan", ""], "a directory or a hub id"),
    (["plan", "llada-mid", "--length", "1000000"], "at most"),
    (["convert", "missing.pt"], "no such file"),
    (["convert", "folder"], "got a folder"),
    (["convert", "notes.txt", "--out", ""], "--out"),
    (["convert", "notes.txt", "--out", "."], "one with files"),
    (["convert", "notes.txt", "--dtype", "int4"], "invalid choice"),
    (["convert", "notes.txt", "--out", "there"], "config.json"),
    (["train"], "RECIPE"),
    (["train", "missing.yaml"], "no such file"),
    (["train", "notes.txt", "optim.lr"], "key=value"),
    (["train", "notes.txt"], "recipe"),
    (["train", "latin1.txt"], "utf-8"),
    (["train", "notes.txt", "--out", ""], "--out"),
    (["train", "folder"], "got a folder"),
    (["data", "inspekt"], "data inspect"),
    (["data", "inspect", "missing.yaml"], "no such file"),
    (["tokenizer", "train", "missing.txt", "--out", "x"], "no such file"),
    (["tokenizer", "train", "notes.txt"], "--out"),
    (["tokenizer", "train", "notes.txt", "--out", "notes.txt"], "a folder"),
    (["tokenizer", "train", "notes.txt", "--out", "x", "--vocab-size", "9"], "261"),
    (["bench", "decod"], "bench decode"),
    (["eval", "gsm9k"], "synthetic"),
    (["eval", "synthetic", "--count", "0"], "at least 1"),
    (["ls", "polices"], "invalid choice"),
    (["env", "--jsn"], "did you mean --json"),
    (["generat"], "did you mean generate"),
    (["--nonsense"], "unknown option"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "said"), BEFORE_LOADING, ids=named)
def test_bad_input_is_refused_in_one_line(cli: Run, argv: list[str], said: str) -> None:
    refused(cli(*argv), said)


@pytest.mark.parametrize("argv", [["generate"], ["generate", "-"], ["generate", "-f", "-"], ["chat"]])
def test_stdin_that_is_not_text_is_refused(cli: Run, llada: Path, argv: list[str]) -> None:
    refused(cli(*argv, "-m", llada, stdin="Bär".encode("latin-1")), "0xe4 at offset 1")
    refused(cli(*argv, "-m", llada, stdin=b"a\0b"), "NUL")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["word " * 200], "at most 128 tokens"),
        (["hi", "-n", "500"], "at most 128 tokens"),
        (["hi", "-n", "4", "--constraint", "4:fox"], "positions 0 to 3"),
        (["hi", "-n", "8", "--constraint", "0:fox, 0:dog"], "taken by"),
        (["hi", "--profile", "llada", "-n", "10", "--block-length", "4"], "block-length"),
        (["hi", "--profile", "llada", "-n", "8", "--block-length", "4", "--steps", "3"], "steps"),
        (["hi", "--profile", "llada", "--cache", "dual"], "without effect"),
        (["hi", "--threshold", "0.5", "--steps", "4"], "without effect: --steps"),
        (["hi", "--top-p", "0.5"], "temperature above 0"),
        (["hi", "--cfg-scale", "1", "--guidance-scale", "2"], "both"),
        (["hi", "--device", "warp"], "device"),
    ],
    ids=named,
)
def test_what_only_the_model_can_tell_is_refused_too(cli: Run, llada: Path, more: list[str], said: str) -> None:
    refused(cli("generate", "-m", llada, *more, "--record", "run.jsonl", "--svg", "run.svg"), said)


def test_damaged_checkpoints_are_refused(cli: Run, llada: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(llada, copy)
    weights = copy / "model.safetensors"
    data = weights.read_bytes()
    for broken in (data[:-100], data[:4], b"", b"\xff" * 100):
        weights.write_bytes(broken)
        refused(cli("generate", "-m", copy, "hi"), "model.safetensors")
        refused(cli("plan", copy), "")
    weights.unlink()
    refused(cli("generate", "-m", copy, "hi"), "safetensors")
    (copy / "config.json").write_text("{")
    refused(cli("generate", "-m", copy, "hi"), "config.json")


# ---- failures on the way ---------------------------------------------------------------------------------------------


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, error: BaseException) -> None:
    """The engine fails at a step."""
    from unmask.engine.engine import Engine

    step, count = Engine.step, [0]

    def failing(self: Any) -> Any:
        count[0] += 1
        if count[0] > steps:
            raise error
        return step(self)

    monkeypatch.setattr(Engine, "step", failing)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (RunError("the gradient exploded"), 1, "exploded"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 bytes"), 1, "out of memory"),
        (OSError(28, "No space left on device"), 2, "no space left"),
    ],
)
def test_a_run_that_fails_leaves_no_file(
    cli: Run, llada: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    stop_after(monkeypatch, 3, error)
    ran = cli("generate", "-m", llada, "hi", "-n", 16, "--record", "run.jsonl", "--svg", "run.svg")
    assert ran.code == code
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_a_polite_kill_leaves_no_file(cli: Run, llada: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.engine.engine import Engine

    step = Engine.step
    before = signal.getsignal(signal.SIGTERM)

    def killed(self: Any) -> Any:
        if self.stats.model_calls == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(Engine, "step", killed)
    ran = cli("generate", "-m", llada, "hi", "-n", 16, "--record", "run.jsonl", "--svg", "run.svg")
    assert ran.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("flag", ["--record", "--svg"])
def test_a_full_disk_leaves_no_file(cli: Run, llada: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    ran = cli("generate", "-m", llada, "hi", "-n", 4, flag, "out.file")
    assert ran.code == 2
    assert "no space left on device" in ran.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_outputs_that_cannot_be_written(cli: Run, llada: Path) -> None:
    ran = cli("generate", "-m", llada, "hi", "-n", 4, "--record", "/dev/full")
    assert ran.code == 2
    assert "no space left" in ran.err
    assert Path("/dev/full").is_char_device()
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "unmask", "ls"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("unmask: error: no space left on device")
    assert len(done.stderr.strip().splitlines()) == 2


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX pipe")
def test_a_reader_that_goes_away_is_no_error() -> None:
    out = subprocess.Popen([sys.executable, "-m", "unmask", "ls"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert out.stdout is not None
    assert out.stderr is not None
    out.stdout.close()
    assert out.stderr.read() == b""
    out.stderr.close()
    assert out.wait() in (0, 141)


def test_debug_shows_the_traceback(cli: Run) -> None:
    from unmask.core.errors import InputError

    with pytest.raises(InputError):
        cli("generate", "--debug", "")
    assert cli("generate", "--", "--debug", "").code == 2
