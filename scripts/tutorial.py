"""Runs the pages of the tutorial as a reader would: all Python blocks of a page in order, in one namespace.

python scripts/tutorial.py              # every page: outputs and pictures are written again
python scripts/tutorial.py 1 3          # these pages only (page 5 trains for a minute or two)

Enters: docs/tutorial/*.md. Leaves: what every block printed, in the ```text block below it, and the pictures that the
code drew, in docs/assets/tutorial/. A ```text block under the comment VARIES is of one run: there, numbers and quoted
texts may be others. tests/house/test_tutorial.py runs the same code and compares.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs/tutorial").glob("[1-9]-*.md"))
PICTURES = ROOT / "docs/assets/tutorial"
VARIES = "<!-- numbers and quoted texts below are of one run -->"
BLOCK = re.compile(
    rf"^```python\n(?P<code>.*?)^```\n(?:\n(?P<varies>{re.escape(VARIES)}\n)?```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
FREE = re.compile(r"""'.*'|".*"|\bnan\b|\d[\d.,:]*""")


@dataclass(frozen=True)
class Block:
    """One Python block of a page and the output shown under it ("" for none). line: of its first statement."""

    page: str
    line: int
    code: str
    shown: str
    varies: bool

    def agrees(self, printed: str) -> bool:
        """Whether the page shows what the code printed; numbers and quoted texts of one run may be others."""
        return _words(printed) == _words(self.shown) if self.varies else printed == self.shown


def blocks(text: str, page: str = "") -> list[Block]:
    """The Python blocks of a page, in order."""
    return [
        Block(page, text.count("\n", 0, m.start()) + 2, m["code"], m["shown"] or "", bool(m["varies"]))
        for m in BLOCK.finditer(text)
    ]


def run(page: list[Block]) -> Iterator[tuple[Block, str]]:
    """Every block with what it printed, in the current directory. The page is a module while it runs: its classes ask
    for theirs."""
    module = sys.modules["tutorial_page"] = ModuleType("tutorial_page")
    try:
        for block in page:
            code = compile("\n" * (block.line - 1) + block.code, block.page, "exec", dont_inherit=True)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(code, module.__dict__)
            yield block, printed.getvalue()
    finally:
        del sys.modules["tutorial_page"]


def write_again(path: Path) -> None:
    """Runs a page in an empty folder, puts the outputs into it and its pictures where the site finds them."""
    text = path.read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        new = dict[int, str]()
        for block, printed in run(blocks(text, path.name)):
            print(f"{path.name}:{block.line}\n{printed}", end="", flush=True)
            new[block.line] = printed
        PICTURES.mkdir(exist_ok=True)
        for picture in Path().glob("*.svg"):
            shutil.copyfile(picture, PICTURES / picture.name)

    def fill(m: re.Match[str]) -> str:
        line = text.count("\n", 0, m.start()) + 2
        shown = f"\n{m['varies'] or ''}```text\n{new[line]}```\n" if new[line] else ""
        return f"```python\n{m['code']}```\n{shown}"

    path.write_text(BLOCK.sub(fill, text), encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    chosen = [p for p in PAGES if not argv or p.name[0] in argv]
    if not chosen or any(not a.isdigit() for a in argv):
        print(__doc__)
        return 2
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for path in chosen:
        write_again(path)
    return 0


def _words(text: str) -> list[str]:
    return FREE.sub("#", text).split()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
