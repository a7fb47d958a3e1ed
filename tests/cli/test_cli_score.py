"""`unmask score`: tables, JSON, files that go on, and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cli_ran import Run

from unmask.cli import score
from unmask.cli.score import METHODS, kind
from unmask.evals.likelihood import METHODS as KNOWN
from unmask.evals.likelihood import file

PAIRS = [
    {"id": "right", "prompt": "Copy: red blue green", "answer": "red blue green"},
    {"id": "wrong", "prompt": "Copy: red blue green", "answer": "red green blue"},
    {"id": "one", "prompt": "Copy: red", "answer": "red"},
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(p) + "\n" for p in PAIRS), "utf-8")
    return path


def test_methods_are_the_library_s(cli: Run) -> None:
    assert tuple(KNOWN) == METHODS
    shown = cli("score", "--help").out.split("examples:")[0]
    assert all(f"  {name}" in shown or f", {name}  " in shown for name in METHODS)


@pytest.mark.parametrize(("model", "word"), [("nano-ar", "exact"), ("nano", "bound"), ("nano-llada", "bound")])
def test_the_right_answer_is_likelier(cli: Run, pairs: Path, model: str, word: str) -> None:
    ran = cli("score", "--model", model, "--input", pairs, "--json", "--greedy", "--mc-num", 64)
    right, wrong, one = ran.json
    assert ran.code == 0 and right["value"] > wrong["value"] + 5
    assert (right["greedy"], wrong["greedy"]) == (True, False)
    assert kind(right) == word and (right["error"] == 0) == (word == "exact")
    assert one["tokens"] == 1 and one["exact"] and kind(one) == "exact"
    assert right["bits_per_token"] == pytest.approx(-right["value"] / right["tokens"] / math.log(2))
    assert right["low"] <= right["value"] <= right["high"]


def test_the_table(cli: Run, pairs: Path) -> None:
    lines = cli("score", "--model", "nano-ar", "--input", pairs).out.splitlines()
    assert lines[0].split()[:3] == ["pair", "log", "p"] and len(lines) == 5
    assert lines[1].startswith("right") and "exact" in lines[1] and lines[1].endswith("red blue green")
    assert lines[-1].startswith("3 pairs, 7 tokens: log p -") and "±" not in lines[-1]
    single = cli("score", "--model", "nano-ar", "-p", "Copy: red", "-a", "red", "--json", "-q")
    assert single.json["id"] == "1" and single.err == ""


def test_a_value_does_not_depend_on_the_file_around_it(cli: Run, pairs: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(json.dumps(p) for p in (PAIRS[1], PAIRS[0])), "utf-8")
    words = ("score", "--model", "nano-llada", "--dtype", "fp32", "--json", "--mc-num", 64, "--input")
    first = {r["id"]: r["value"] for r in cli(*words, pairs).json}
    second = {r["id"]: r["value"] for r in cli(*words, turned).json}
    assert second == pytest.approx({k: first[k] for k in second}, abs=1e-5)


def test_a_wanted_error(cli: Run, pairs: Path) -> None:
    ran = cli("score", "--input", pairs, "--error", 0.3, "--json")
    assert all(r["error"] <= 0.3 for r in ran.json) and "did not reach" not in ran.err
    ran = cli("score", "--input", pairs, "--error", 1e-6, "--mc-num", 128, "--json")
    assert "2 of 3 pairs did not reach the error of 1e-06 nats with 128 draws" in ran.err


def test_a_stopped_run_goes_on(cli: Run, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "GROUP", 1)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    words = ("score", "--input", pairs, "--mc-num", 32, "--out")
    assert cli(*words, whole).code == 0
    call, calls = score._Scorer.__call__, []

    def dying(self: score._Scorer, items: list[file.Item]) -> list[file.Record]:
        calls.append(items[0].id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, items)

    monkeypatch.setattr(score._Scorer, "__call__", dying)
    assert cli(*words, parts).code == 130 and not parts.exists()
    ran = cli(*words, parts)
    assert ran.code == 0 and calls == ["right", "wrong", "wrong", "one"]
    assert "1 of 3 pairs are done already" in ran.err
    assert parts.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pairs.jsonl", "parts.jsonl", "whole.jsonl"]
    ran = cli(*words, parts, "--seed", 1)
    assert ran.code == 2 and "other settings: seed" in ran.err and parts.read_bytes() == whole.read_bytes()


def test_strategies(cli: Run, pairs: Path) -> None:
    words = ("score", "--model", "nano-llada", "--input", pairs, "--json")
    stale = cli(*words, "--policy", "left_to_right", "--cache", "dual").json[0]
    assert (stale["method"], stale["approximate"]) == ("strategy", True)
    assert kind(stale) == "strategy, approximate cache"
    fresh = cli(*words, "--policy", "left_to_right").json[0]
    exact = cli(*words, "--method", "left_to_right").json[0]
    assert not fresh["approximate"] and fresh["value"] == pytest.approx(exact["value"], abs=0.05)
    refused = cli(*words, "--method", "bound", "--cache", "dual")
    assert refused.code == 2 and "--cache with --method bound" in refused.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--prompt with --answer, or --input"),
        (("--prompt", "a"), "--prompt with --answer"),
        (("--prompt", "a", "--answer", "b", "--input", "x"), "--prompt with --answer"),
        (("--input", "nowhere.jsonl"), "no such file"),
        (("--prompt", "a", "--answer", "b", "--method", "bond"), "--method"),
        (("--prompt", "a", "--answer", "b", "--mc-num", "10"), "multiple of batch"),
        (("--prompt", "a", "--answer", "b", "--model", "nano-ar", "--method", "bound"), "masked diffusion"),
        (("--prompt", "a", "--answer", "b", "--method", "llada"), "full attention"),
        (("--prompt", "a", "--answer", "b", "--out", "/nowhere/x"), "--out"),
        (("--prompt", "a", "--answer", "b " * 3000), "pair 1: prompt and answer; expected at most"),
    ],
)
def test_refusals(cli: Run, words: tuple[str, ...], message: str) -> None:
    ran = cli("score", *words)
    assert ran.code == 2 and message in ran.err and ran.out == ""


def test_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 10.0])
    score._Bar(20, 4, lambda: next(now))(12)
    shown = capsys.readouterr().err
    assert "12/20 pairs, 10 s, about 10 s left" in shown and shown.count("#") == 18


def test_an_instruct_checkpoint_is_warned_about(cli: Run, llada: Path) -> None:
    ran = cli("score", "--model", llada, "--prompt", "a", "--answer", "b", "--mc-num", 16)
    assert ran.code == 0 and "evaluate by generation" in ran.err
