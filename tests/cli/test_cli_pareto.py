"""`unmask pareto` and `--settings` as command lines, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_ran import Run

TASK = "synthetic(task='copy', count=8)"
SHORT = (
    "--max-tokens",
    "8",
    "--block-length",
    "4,8",
    "--policy",
    "threshold(0.0001)",
    "--device",
    "cpu",
    "--dtype",
    "fp32",
)


def test_a_comparison_is_printed_kept_and_gone_on_with(cli: Run, llada: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = ("pareto", TASK, "--model", llada, *SHORT, "--out", out, "--no-png")
    ran = cli(*line, "--speed", "nfe")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("| strategy | correct |")
    assert ran.out.count("\n| ") == 4  # the line, the baseline, blocks of 4 and of 8
    assert "24/24" in ran.err
    assert {p.name for p in out.iterdir()} == {
        "strategies", "starts.json", "pareto.json", "pareto.md", "pareto.html", "profile.toml",
    }  # fmt: skip
    again = cli(*line, "--speed", "nfe", "--json", "--quiet")
    assert again.json == json.loads((out / "pareto.json").read_text("utf-8"))
    assert "going on" not in again.err
    assert cli(*line, "--seed", "3").code == 2


def test_the_profile_is_used_by_other_commands(cli: Run, llada: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    cli("pareto", TASK, "--model", llada, *SHORT, "--out", out, "--no-png", "--speed", "nfe")
    use = ("generate", "hi", "--model", llada, "--device", "cpu", "--dtype", "fp32", "--settings", out / "profile.toml")
    ran = cli(*use)
    assert ran.code == 0, ran.err
    assert "gen_length 8 (given)" in ran.err
    assert "policy threshold(threshold=0.0001" in ran.err, ran.err
    assert "gen_length 4 (given)" in cli(*use, "--max-tokens", "4", "--schedule", "blocks(4)").err
    said = cli("eval", "run", TASK, "--model", llada, "--dry-run", "--json", "--settings", out / "profile.toml").json
    assert "threshold=0.0001" in said["settings.policy"]
    (tmp_path / "x.toml").write_text("[decoding]\nthreshold = 'high'\n")
    bad = cli(*use[:-1], tmp_path / "x.toml")
    assert bad.code == 2
    assert "threshold; expected float" in bad.err
    assert cli(*use[:-1], tmp_path / "none.toml").code == 2


def test_a_dry_run_names_the_strategies(cli: Run, llada: Path) -> None:
    ran = cli("pareto", TASK, "--model", llada, *SHORT, "--dry-run")
    assert ran.code == 0
    assert "3 strategies, 8 of 8 items each" in ran.out
    assert "64 to 64" in ran.out
    assert "16 to 64" in ran.out
    assert len(cli("pareto", TASK, "--model", llada, *SHORT, "--dry-run", "--json").json) == 3


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ((), "--out"),
        (("--out", "o", "--max-loss", "1"), "1pt"),
        (("--out", "o", "--max-loss", "0pt"), "1pt"),
        (("--out", "o", "--policy", "thrshold(0.5)"), "thrshold"),
        (("--out", "o", "--strategies", "none.yaml"), "none.yaml"),
        (("--out", "o", "--strategies", "x", "--cache", "dual"), "alone"),
        (("--out", "o", "--block-length", "8,x"), "8,16,32"),
        (("--out", "o", "--speed", "fast"), "tokens_per_s"),
    ],
)
def test_wrong_lines_are_refused_before_the_model(cli: Run, given: tuple[str, ...], word: str) -> None:
    ran = cli("pareto", TASK, "--model", "no-such-model", *given)
    assert ran.code == 2
    assert word in ran.err
    assert "no-such-model" not in ran.err


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_an_unknown_score_is_refused_before_anything_is_decoded(
    cli: Run, llada: Path, tmp_path: Path, dry: tuple[str, ...]
) -> None:
    ran = cli("pareto", TASK, "--model", llada, *SHORT, "--out", tmp_path / "o", "--no-png", "--score", "nosuch", *dry)
    assert ran.code == 2
    assert "--score; expected one of: " in ran.err
    assert not (tmp_path / "o").exists()


def test_without_matplotlib_the_picture_is_refused_and_may_be_left_out(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = cli("pareto", TASK, "--out", tmp_path / "o")
    assert ran.code == 2
    assert "unmask[plot]" in ran.err
    assert "--no-png" in ran.err


def test_a_terminal_gets_a_table(cli: Run, llada: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("pareto", TASK, "--model", llada, *SHORT, "--out", tmp_path / "run", "--no-png", "--speed", "nfe")
    assert cli(*line).code == 0
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    drawn = cli(*line)
    assert "exact baseline" in drawn.out
    assert "| ---" not in drawn.out
    assert "Frontier: nothing is at least as good" in drawn.out.replace("\n", " ")
    assert "| ---" in cli(*line, "--markdown").out
