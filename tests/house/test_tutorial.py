"""The pages of docs/tutorial run as they stand, print what they show, draw the pictures they show, and lead on."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "tutorial"
NAMES = ["1-masks.md", "2-schedule.md", "3-policy.md", "4-cache.md", "5-training.md"]
MACHINE = re.compile(r"/(work|tmp|home|root|Users|mnt)\b|[A-Z]:\\\\")


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tutorial_script", ROOT / "scripts" / "tutorial.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["tutorial_script"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _script()


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; torch's settings as they were, afterwards."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [*NAMES[:4], pytest.param(NAMES[4], marks=pytest.mark.slow)])
def test_page_does_what_it_shows(name: str, empty: Path) -> None:
    text = (FOLDER / name).read_text("utf-8")
    for block, printed in script.run(script.blocks(text, name)):
        shown = f"{name}, line {block.line}: the page shows\n{block.shown}\nthe code prints\n{printed}"
        assert block.agrees(printed), shown
    drawn = {p.name for p in empty.glob("*.svg")}
    assert drawn == set(re.findall(r"!\[[^\]]+\]\(\.\./assets/tutorial/([\w-]+\.svg)\)", text))
    for picture in drawn:
        kept = (ROOT / "docs/assets/tutorial" / picture).read_text("utf-8")
        assert kept.startswith("<svg ") and len(kept) < 100_000


def test_every_block_is_found() -> None:
    """No fence is overlooked by the pattern: one Python block each, and each ```text block belongs to one."""
    for name in NAMES:
        text = (FOLDER / name).read_text("utf-8")
        found = script.blocks(text, name)
        assert len(found) == len(re.findall(r"^```python$", text, re.MULTILINE)) >= 4
        assert sum(bool(b.shown) for b in found) == len(re.findall(r"^```text$", text, re.MULTILINE))
        assert sum(b.varies for b in found) == text.count(script.VARIES)
        assert "\n```" not in re.sub(r"^```(python|text)\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("shown", "varies", "printed", "agrees"),
    [
        ("3 tokens\n", False, "3 tokens\n", True),
        ("3 tokens\n", False, "4 tokens\n", False),
        ("3 tokens\n", False, "3 tokens", False),
        ("3 tokens\n", False, "", False),
        ("", False, "3 tokens\n", False),
        ("none  6.6 s\n", True, "none 12.25 s\n", True),
        ("none 6.6 s\n", True, "dual 6.6 s\n", False),
        ("none 6.6 s\n", True, "none 6.6 s\ndual 1.0 s\n", False),
        ("step 50 'Bob ran'\n", True, "step 50 'Mia sat.'\n", True),
        ("step 50 'Bob ran'\n", True, "step 50\n", False),
    ],
)
def test_a_wrong_output_is_noticed(shown: str, varies: bool, printed: str, agrees: bool) -> None:
    assert script.Block("page", 1, "", shown, varies).agrees(printed) is agrees


def test_a_page_with_a_wrong_output_fails(empty: Path) -> None:
    page = "```python\nx = 2\nprint(x)\n```\n\n```text\n2\n```\n\n```python\nprint(x + 1)\n```\n\n```text\n4\n```\n"
    assert [b.agrees(printed) for b, printed in script.run(script.blocks(page))] == [True, False]


def test_pages_follow_one_another() -> None:
    """Each links to the next and ends with two or three exercises; none names a path of a machine."""
    assert [p.name for p in script.PAGES] == NAMES
    for name, following in zip(NAMES, [*NAMES[1:], "../training.md"]):
        text = (FOLDER / name).read_text("utf-8")
        end = text.split("\n## Exercises\n")[1]
        assert len(re.findall(r"^\d\. ", end, re.MULTILINE)) in (2, 3) and f"]({following})" in end
        assert not MACHINE.search(text)
