"""The repository's own promises: files that must exist, one version, no path of a machine, light imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
BINARY = {".safetensors", ".png", ".gif", ".gz", ".zst", ".pt"}
MADE = re.compile(r"(^|/)(__pycache__|build|dist|site|runs|out|[^/]+\.egg-info|\.(?!ci/|github/)[^/]+)/|\.log$")


def _files() -> list[Path]:
    """Tracked files in a clone (untracked ones too, unless ignored); every file in an unpacked archive."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        done = None
    if done is not None and done.returncode == 0 and done.stdout:
        found = [ROOT / name for name in done.stdout.splitlines()]
    else:
        found = [p for p in ROOT.rglob("*") if not MADE.search(p.relative_to(ROOT).as_posix())]
    return [p for p in found if p.is_file() and p.suffix not in BINARY]


@pytest.mark.parametrize(
    "name",
    ["README.md", "LICENSE", "NOTICE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "Makefile",
     "mkdocs.yml", "docs/architecture.md", "src/unmask/py.typed", ".github/workflows/ci.yml"],
)  # fmt: skip
def test_house_file_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0 or name.endswith("py.typed")


def test_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert PYPROJECT["project"]["license"] == "Apache-2.0"


def test_one_version_everywhere() -> None:
    import unmask

    version = PYPROJECT["project"]["version"]
    assert unmask.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == version


def test_ci_script_is_executable_and_calls_the_make_targets() -> None:
    script = ROOT / ".ci" / "run"
    text = script.read_text("utf-8")
    assert "set -euo pipefail" in text and "make check" in text and "make test" in text
    if os.name == "posix":
        assert os.access(script, os.X_OK)


def test_makefile_has_the_promised_targets() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {"demo", "test", "check", "docs", "clean", "help"} <= targets


def test_public_ci_covers_systems_and_both_transformers_majors() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert set(matrix["os"]) == {"ubuntu-latest", "macos-latest", "windows-latest"}
    assert {"3.11", "3.12", "3.13"} <= set(matrix["python"])
    assert any("4.57" in row["transformers"] for row in matrix["include"])


def test_all_extra_drags_in_no_triton() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    heavy = re.compile(r"triton|xgrammar|flash-linear-attention|fla-core|liger|bitsandbytes|vllm", re.IGNORECASE)
    reached, open_names = set(), ["all"]
    while open_names:
        for line in extras[open_names.pop()]:
            nested = re.fullmatch(r"unmask\[(.+)\]", line)
            names = nested.group(1).split(",") if nested else []
            open_names += [n for n in names if n not in reached]
            reached |= set(names) or {line}
    assert not [line for line in reached if heavy.match(line)]


def test_no_path_of_a_machine() -> None:
    # Pieces in brackets keep this file from finding itself.
    places = ("wor[k]/main", "wor[k]/shared", "roo[t]/", "tm[p]/venv", "op[t]/pypi", "op[t]/wheels", "hom[e]/[a-z]")
    machine = re.compile("/(?:" + "|".join(places) + ")")
    bad = []
    for path in _files():
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
            if machine.search(line):
                bad.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not bad, "\n".join(bad)


def test_mkdocs_lists_every_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")]
    assert not [p for p in pages if p not in nav]


def _python(*code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *code], cwd=ROOT, capture_output=True, text=True, timeout=120)


HEAVY = "print(sorted({'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)))"


@pytest.mark.parametrize("statement", ["import unmask", "import unmask.cli.main", "import unmask.core.catalog"])
def test_import_is_light(statement: str) -> None:
    done = _python("-c", f"{statement}; import sys; {HEAVY}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


HELP = """
import sys
from unmask.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
sys.exit(code or ("torch was imported" if "torch" in sys.modules else 0))
"""


@pytest.mark.parametrize("words", [["--help"], ["generate", "--help"], ["ls"], ["--version"]])
def test_command_line_help_imports_no_torch(words: list[str]) -> None:
    done = _python("-c", HELP, *words)
    assert done.returncode == 0, done.stderr
