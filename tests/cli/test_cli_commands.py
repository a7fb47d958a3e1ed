"""The smaller commands, and that help and lists cost nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cli_ran import Run

from unmask import __version__
from unmask.cli.main import COMMANDS
from unmask.cli.output import for_terminal, one_line, print_json
from unmask.core import catalog
from unmask.evals import verify as checks
from unmask.models.embedded import EMBEDDED


@pytest.mark.parametrize(
    "argv", [["--help"], ["ls"], ["generate", "--help"], ["--version"], ["nonsense"], ["generate", ""]]
)
def test_no_torch_for_help_lists_and_early_refusals(argv: list[str]) -> None:
    heavy = ("torch", "transformers", "numpy", "rich", "tokenizers")
    code = (
        "import sys, unmask\nfrom unmask.cli.main import main\n"
        f"main({argv!r})\nprint([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("argv", [["-m", "unmask", "--help"], ["-m", "unmask", "ls"]])
def test_help_is_quick(argv: list[str]) -> None:
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([sys.executable, *argv], capture_output=True, check=True)
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.5


def test_every_command_has_help_with_an_example(cli: Run) -> None:
    overview = cli("--help").out
    for name in COMMANDS:
        assert f"\n  {name} " in overview
        ran = cli(name, "--help")
        assert ran.code == 0
        assert f"unmask {name}" in ran.out
    for words in (["bench"], ["eval"], ["data"], ["tokenizer"]):
        assert "actions:" in cli(*words).out
    assert cli("--version").out == f"unmask {__version__}\n"


def test_ls_shows_every_line_of_the_catalog(cli: Run) -> None:
    text, table = cli("ls").out, cli("ls", "--json").json
    for kind, plural in catalog.KINDS.items():
        for entry in catalog.entries(kind).values():
            if not entry.experimental:
                assert entry.name in text
                assert table[plural][entry.name] == entry.meaning


def test_ls_shows_what_has_no_measured_win_only_if_asked(cli: Run) -> None:
    plain, every = cli("ls", "caches", "--json").json, cli("ls", "caches", "--experimental", "--json").json
    marked = [row["name"] for row in every if row["meaning"].endswith("(experimental)")]
    assert {"vicinity", "delayed", "drift", "window", "light_entry"} <= set(marked)
    assert [row["name"] for row in every if row["name"] not in marked] == [row["name"] for row in plain]
    short, full = cli("ls", "--json").json["caches"], cli("ls", "--experimental", "--json").json["caches"]
    assert set(full) - set(short) == set(marked)
    assert "dual" in short and "vicinity (" not in cli("ls").out
    refused = cli("ls", "ops", "--experimental")
    assert refused.code == 2 and "--experimental" in refused.err


def test_ls_of_one_kind_looks_inside(cli: Run) -> None:
    policies = {row["name"]: row for row in cli("ls", "policies", "--json").json}
    assert policies["threshold"]["arguments"][0]["default"] == 0.9
    models = {row["name"]: row for row in cli("ls", "models", "--json").json}
    assert any("random" in text for text in models["llada"]["recommended"].values())
    assert models["llada"]["known issues"]
    assert all(models[name]["inside this package"] and models[name]["meaning"] for name in EMBEDDED)
    lines = cli("ls", "models").out.splitlines()
    assert [x.partition(":")[0] for x in lines[: len(EMBEDDED)]] == list(EMBEDDED)
    for kind in ("models", "caches", "schedules", "profiles", "ops"):
        assert cli("ls", kind).out
    assert {"attention", "score"} <= {row["name"] for row in cli("ls", "ops", "--json").json}


def test_json_stays_lossless_on_a_stream_of_another_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="cp1252", errors="replace", write_through=True))
    print_json({"text": "日本 é"})
    assert json.loads(raw.getvalue()) == {"text": "日本 é"}


def test_a_terminal_is_not_steered_by_text() -> None:
    assert for_terminal("a\x1b[31mb\n\tc\x07") == "a\ufffd[31mb\n\tc\ufffd"
    assert one_line("a\nb\r\x1b[0m é") == "a b\\r\\x1b[0m é"


def test_env_names_versions_and_device(cli: Run) -> None:
    found = cli("env", "--json").json
    assert found["unmask"] == __version__
    assert found["torch"] == torch.__version__
    assert {"python", "device", "threads", "cpu", "platform"} <= set(found)
    assert "torch" in cli("env").out


def test_embedded_models_go_by_name_in_every_command(cli: Run) -> None:
    sizes = [cli("plan", name, "--json").json["parameters"] for name in EMBEDDED]
    assert all(1.2e6 < size < 2.1e6 for size in sizes)
    for name in EMBEDDED:
        ran = cli("generate", "-m", name, "Copy: a b", "-n", 16, "--json")
        assert ran.code == 0 and ran.json["text"]
        scored = cli("eval", "synthetic", "--model", name, "--tasks", "copy", "--count", 2)
        assert scored.code == 0 and "| copy |" in scored.out
    infill = [cli("generate", "-m", name, "--infill", "One[[2]] day.").err for name in EMBEDDED]
    assert ["--model nano-llada" in said for said in infill] == [True, True, False, False]
    wrong = cli("generate", "-m", "nano-lada", "Copy: a b")
    assert wrong.code == 2 and "nano-llada" in wrong.err


def test_plan_adds_up(cli: Run, llada: Path) -> None:
    found = cli("plan", "llada-mid", "--batch", 2, "--length", 256, "--json").json
    assert found["total_bytes"] == sum(part["bytes"] for part in found["parts"])
    assert "total" in cli("plan", llada, "--length", 64).out
    assert 0 < cli("plan", llada, "--json").json["length"] <= 2048  # a short context cuts the default


def test_convert_writes_a_checkpoint_that_generates(cli: Run, llada: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(llada / "model.safetensors"), tmp_path / "old.pt")
    ran = cli("convert", tmp_path / "old.pt", "--config", llada / "config.json", "--out", tmp_path / "new")
    assert ran.code == 0, ran.err
    assert ran.out.strip() == str(tmp_path / "new")
    assert (tmp_path / "new" / "model.safetensors").is_file()


def test_tokenizer_train(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two three two one\n" * 20)
    ran = cli("tokenizer", "train", tmp_path / "text.txt", "--out", tmp_path / "tok", "--vocab-size", 300)
    assert ran.code == 0, ran.err
    before = (tmp_path / "tok" / "tokenizer.json").read_bytes()
    again = cli("tokenizer", "train", tmp_path / "text.txt", "--out", tmp_path / "tok")
    assert again.code == 2
    assert "a folder without a tokenizer" in again.err
    assert (tmp_path / "tok" / "tokenizer.json").read_bytes() == before


# ---- verify: the printing and the exit codes; the comparing is tested with the fixtures ----------------------------


def result(name: str, kind: str = "generate", passed: bool = True, error: float | None = None) -> checks.CaseResult:
    return checks.CaseResult("folder", name, kind, passed, "" if passed else "ids differ at 7", error)


def test_verify_prints_kinds_error_and_sum(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    report = checks.Report((result("a", "logits", error=1.2e-6), result("b"), result("c", passed=False)))
    monkeypatch.setattr(checks, "verify_dir", lambda *_: report)
    ran = cli("verify", "somewhere")
    assert ran.code == 1
    lines = ran.out.splitlines()
    assert lines[-1] == "2 passed, 1 failed"
    assert "largest logit error: 1.20e-06" in lines
    assert "generate     1 of    2 passed" in lines
    assert any(line.startswith("FAILED folder c (generate): ids differ") for line in lines)
    found = cli("verify", "somewhere", "--json")
    assert found.code == 1
    assert (found.json["passed"], found.json["failed"]) == (2, 1)


def test_verify_is_quiet_success_otherwise(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "verify_dir", lambda *_: checks.Report((result("a"),)))
    ran = cli("verify", "somewhere")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "1 passed, 0 failed")


# ---- training --------------------------------------------------------------------------------------------------------

RECIPE = """\
# Claim: none, a test; `unmask train tiny.yaml`; seconds.
name: tiny
tokenizer: {vocab_size: 300, samples: 50}
model: {dim: 16, layers: 1, heads: 2, mlp_dim: 32, max_len: 128}
data:
  kind: generator
  source: unmask.evals.tasks.synthetic:stream
  batch_tokens: 128
  stages: [{start: 0, mix: {copy: 1}}]
objective: {kind: llada-sft, eos_weight: 0.05, normalise: batch}
run: {steps: 2, precision: fp32, log_every: 1, save_every: 1, device: cpu}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path / "tiny.yaml"


def test_train_runs_refuses_to_overwrite_and_resumes(cli: Run, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert cli("train", recipe, "--out", out, "--resume").code == 2
    ran = cli("train", recipe, "--out", out)
    assert ran.code == 0, ran.err
    assert Path(ran.out.strip()).is_dir()
    assert "step      2/2" in ran.err
    again = cli("train", recipe, "--out", out)
    assert again.code == 2
    assert "--resume" in again.err
    more = cli("train", recipe, "run.steps=3", "--out", out, "--resume", "--json")
    assert more.code == 0, more.err
    assert "from step 2" in more.err
    assert more.json["step"] == 3


def test_a_run_refused_while_it_is_set_up_leaves_no_folder(cli: Run, recipe: Path, tmp_path: Path) -> None:
    for wrong in ("model.vocab_size=10", "tokenizer.path=missing", "model={path: missing}"):
        ran = cli("train", recipe, wrong, "--out", tmp_path / "deep" / "run")
        assert ran.code == 2, ran
        assert not (tmp_path / "deep").exists()


def test_a_row_longer_than_the_context_is_refused(cli: Run, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two three two one\n" * 200)
    data = f"data={{kind: text, length: 200, source: {{kind: files, paths: [{(tmp_path / 'text.txt').as_posix()}]}}}}"
    ran = cli("train", recipe, data, "objective={kind: llada-pretrain}", "--out", tmp_path / "run")
    assert ran.code == 2
    assert "at most 128" in ran.err
    assert not (tmp_path / "run").exists()


def test_data_inspect_shows_what_the_loss_sees(cli: Run, recipe: Path) -> None:
    before = sorted(recipe.parent.rglob("*"))
    rows = cli("data", "inspect", recipe, "--rows", 4, "--json").json
    kinds = {kind for row in rows for _, kind in row}
    assert len(rows) == 4
    assert {"kept", "masked"} <= kinds
    assert "".join(text for text, kind in rows[0] if kind == "kept").startswith("<|user|>")
    text = cli("data", "inspect", recipe, "--rows", 2).out
    assert "[" in text
    assert "\x1b" not in text
    assert json.dumps(rows)
    assert sorted(recipe.parent.rglob("*")) == before
