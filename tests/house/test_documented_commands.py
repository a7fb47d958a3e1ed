"""Every `unmask …` line of the README and the guides is understood by the real parser; every Python block compiles."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, body in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)):
            found.append((f"{page.name}#{number}", body))
    return found


def _commands() -> list[str]:
    lines = [line for _, body in _blocks("console") for line in body.splitlines()]
    return sorted({line[2:] for line in lines if line.startswith("$ unmask ")})


@pytest.mark.parametrize("command", _commands())
def test_command_is_understood(command: str) -> None:
    from unmask.cli.main import parser

    words = shlex.split(command, comments=True)[1:]
    if "--help" in words:
        with pytest.raises(SystemExit, match=r"^0$"):
            parser().parse_args(words)
    else:
        parser().parse_args(words)


@pytest.mark.parametrize(("where", "code"), _blocks("python"))
def test_python_block_compiles(where: str, code: str) -> None:
    ast.parse(code, where)


def test_there_is_something_to_check() -> None:
    assert len(_commands()) >= 10
