"""`unmask eval run`, `eval --protocol` and `eval show` as command lines, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_ran import Run

TASK = "synthetic(task='copy', count=6)"
FAST = ("--threshold", "0.3", "--max-tokens", "8", "--block-length", "8", "--device", "cpu", "--dtype", "fp32")


def test_a_run_is_printed_kept_and_shown(cli: Run, llada: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = ("eval", "run", TASK, "--model", llada, *FAST, "--batch", "4", "--out", out, "--samples")
    ran = cli(*line)
    assert ran.code == 0
    assert "correct 0.0% (0.0% to 39.0%), 6 items" in ran.out
    assert "settings:" in ran.err
    assert "6/6" in ran.err
    assert {p.name for p in out.iterdir()} >= {"run.json", "items.jsonl", "results.json", "timing.json"}
    assert (out / "samples_synthetic.jsonl").is_file()
    again = cli(*line, "--json", "--quiet")
    assert again.json == json.loads((out / "results.json").read_text("utf-8"))
    shown = cli("eval", "show", out)
    assert TASK in shown.out
    assert "| 6 |" in shown.out
    assert cli("eval", "show", out, "--json").json[0]["timing"]["decoding"]["answers"] == 6
    other = cli(*line, "--seed", "3")
    assert other.code == 2
    assert "0 (seed)" in other.err
    (out / "timing.json").write_text("{}")
    damaged = cli("eval", "show", out)
    assert damaged.code == 2
    assert "timing.json; expected the times" in damaged.err


def test_a_part_says_that_it_is_one(cli: Run, llada: Path, tmp_path: Path) -> None:
    line = ("eval", "run", TASK, "--model", llada, *FAST, "--out", tmp_path / "run")
    part = cli(*line, "--limit", "50%")
    assert "first 3 of 6 items - A PART OF THE ITEMS" in part.out
    whole = cli(*line)
    assert whole.code == 2
    assert "--extend" in whole.err
    assert cli(*line, "--extend").code == 0
    assert "first 3 of 6" in cli("eval", "show", tmp_path / "run").out


def test_a_dry_run_decodes_nothing(cli: Run, llada: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ran = cli("eval", "run", TASK, "--model", llada, *FAST, "--out", out, "--dry-run", "--limit", "2")
    assert ran.code == 0
    assert "2 of 6" in ran.out
    assert "2 to 16 (1 to 8 per answer" in ran.out
    assert "<|start_header_id|>user" in ran.out
    assert not out.exists()
    assert len(cli("eval", "run", TASK, "--model", llada, *FAST, "--dry-run", "--json").json["prompts"]) == 2


def test_an_instruct_model_without_template_is_warned_about(cli: Run, llada: Path) -> None:
    ran = cli("eval", "run", TASK, "--model", llada, *FAST, "--raw", "--limit", "1")
    assert ran.code == 0
    assert "warning: an Instruct checkpoint without its chat template" in ran.err
    assert "nothing was kept" in ran.err


def test_an_audit_is_printed_or_refused_as_pointless(cli: Run, llada: Path) -> None:
    line = ("eval", "run", TASK, "--model", llada, *FAST[:4], "--block-length", "4", *FAST[6:], "--audit", "50%")
    stale = cli(*line, "--cache", "dual")
    assert stale.code == 0
    assert "against an exact cache on 3 items" in stale.out
    exact = cli(*line)
    assert exact.code == 2
    assert "pointless" in exact.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("run",), "task"),
        (("run", "gsm9k"), "gsm8k"),
        (("run", TASK, "--limit", "0"), "--limit"),
        (("run", TASK, "--limit", "1.5"), "--limit"),
        (("run", TASK, "--audit", "200%"), "--audit"),
        (("run", TASK, "--compare"), "--protocol"),
        (("run", TASK, "--mc-num", "8"), "choices are scored"),
        (("run", "humaneval"), "consent"),
        (("--protocol", "fast-dllm/nothing"), "unknown protocol"),
        (("--protocol", "fast-dllm/gsm8k-5shot/prefix", "--threshold", "0.5"), "--threshold"),
        (("--protocol", "fast-dllm/gsm8k-5shot/prefix", "--raw"), "--raw"),
        (("run", TASK, "--protocol", "fast-dllm/gsm8k-5shot/prefix"), "a task"),
        (("show", "nowhere"), "results.json"),
    ],
)
def test_refusals(cli: Run, llada: Path, line: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    ran = cli("eval", *line, *(("--model", llada) if line[0] != "show" else ()))
    assert ran.code == 2
    assert words in ran.err
    assert ran.out == ""


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("x", "2"), ("0", "0")])
def test_a_wrong_place_is_refused(
    cli: Run, llada: Path, rank: str, world: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    ran = cli("eval", "run", TASK, "--model", llada)
    assert ran.code == 2
    assert "RANK" in ran.err


def test_processes_without_a_common_folder_are_refused(cli: Run, llada: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ran = cli("eval", "run", TASK, "--model", llada, *FAST)
    assert ran.code == 2
    assert "--out" in ran.err


def test_a_protocol_runs_and_is_compared(cli: Run, llada: Path, tmp_path: Path) -> None:
    data = tmp_path / "poems.json"
    data.write_text(json.dumps([{"first": f"one {i}", "second": f"two {i}", "source": "x"} for i in range(3)]), "utf-8")
    out, name = tmp_path / "run", "llada-instruct/reversal-forward"
    ran = cli(
        "eval", "--protocol", name, "--model", llada, "--data", data, "--out", out, "--compare", "--dtype", "fp32"
    )
    assert ran.code == 0, ran.err
    assert "no figure was published for it" in ran.out
    assert "| ours |" in ran.out
    assert json.loads((out / "results.json").read_text("utf-8"))["run"]["protocol"] == name
    assert "| published |" in cli("eval", "show", out, "--compare").out


def test_protocols_are_listed(cli: Run) -> None:
    assert "fast-dllm/gsm8k-5shot/prefix+parallel" in cli("ls", "protocols").out
    rows = {r["name"]: r for r in cli("ls", "protocols", "--json").json}
    assert rows["fast-dllm/gsm8k-5shot/prefix"]["published"]["accuracy"] == 79.5


@pytest.mark.parametrize("given", [("--samples",), ("--extend",), ("--out", "")])
def test_options_about_files_need_a_folder(cli: Run, llada: Path, given: tuple[str, ...]) -> None:
    ran = cli("eval", "run", TASK, "--model", llada, *FAST, *given)
    assert ran.code == 2
    assert f"{given[0]}; expected " in ran.err
