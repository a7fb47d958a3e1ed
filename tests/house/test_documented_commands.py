"""Every `unmask …` line of the README and the guides is understood by the real parser; every Python block compiles."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from unmask.cli.main import main
from unmask.cli.parsing import Parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/tutorial").glob("*.md"))]


def _blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, body in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)):
            found.append((f"{page.name}#{number}", body))
    return found


def _commands() -> list[str]:
    lines = [line for _, body in _blocks("console") for line in body.splitlines()]
    return sorted({line[2:] for line in lines if line.startswith("$ unmask ")})


class Understood(BaseException):
    """Raised where a command would begin to work."""


@pytest.mark.parametrize("command", _commands())
def test_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = Parser.parse

    def parse_only(self: Parser, argv: Sequence[str]) -> None:
        raise Understood(parse(self, argv))

    monkeypatch.setattr(Parser, "parse", parse_only)
    words = shlex.split(command, comments=True)[1:]
    if "--help" in words:
        assert main(words) == 0
    else:
        with pytest.raises(Understood):
            main(words)


@pytest.mark.parametrize(("where", "code"), _blocks("python"))
def test_python_block_compiles(where: str, code: str) -> None:
    ast.parse(code, where)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    assert not [t for t in targets if t and not (page.parent / t).exists()]


def test_there_is_something_to_check() -> None:
    assert len(_commands()) >= 10
