"""The import contract of docs/architecture.md: kept by the code, and biting when a line breaks it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="import-linter is in the dev extra")

ROOT = Path(__file__).resolve().parents[2]
RUN = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"


def _lint(tree: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(tree / "src")}
    return subprocess.run([sys.executable, "-c", RUN], cwd=tree, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_code_keeps_it(tree: Path) -> None:
    done = _lint(tree)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("core", "import unmask.text"),
        ("models", "import unmask.cache"),
        ("decode", "import unmask.text"),
        ("engine", "import unmask.sinks"),
        ("engine", "import unmask.pipeline"),
        ("ops", "import unmask.sinks"),
        ("train", "import unmask.cli"),
        ("decode", "import transformers"),
        ("engine", "import rich"),
        ("cache", "import triton"),
        ("cli", "import gradio"),
        ("cli", "import unmask.nano"),
    ],
)
def test_a_forbidden_line_breaks_it(tree: Path, room: str, line: str) -> None:
    (tree / "src" / "unmask" / room / "trespass.py").write_text(f'"""Not allowed."""\n{line}\n', "utf-8")
    done = _lint(tree)
    assert done.returncode == 1, done.stdout
    assert "trespass" in done.stdout


def test_nano_stands_alone(tree: Path) -> None:
    nano = tree / "src" / "unmask" / "nano.py"
    nano.write_text(nano.read_text("utf-8") + "\nimport unmask.core.types\n", "utf-8")
    assert _lint(tree).returncode == 1


def test_a_new_room_must_be_drawn_first(tree: Path) -> None:
    (tree / "src" / "unmask" / "attic").mkdir()
    (tree / "src" / "unmask" / "attic" / "__init__.py").write_text('"""A room nobody drew."""\n', "utf-8")
    assert _lint(tree).returncode == 1


def test_the_page_and_the_contract_name_the_same_rooms() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    drawn = page.split("### Allowed imports")[1].split("```")[1].split("```")[0]
    contract = (ROOT / "pyproject.toml").read_text("utf-8").split("layers = [")[1].split("]")[0]
    asides = {"siblings", "none", "imports", "another", "nano", "py", "stands", "alone"}
    assert [word for word in re.findall(r"[a-z]+", drawn) if word not in asides] == re.findall(r"[a-z]+", contract)
