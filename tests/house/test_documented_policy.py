"""The policy that docs/extending.md shows is a real one: it parses, states its spec, and decides as the page says."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.core.errors import SpecError
from unmask.core.spec import build
from unmask.core.types import Candidates

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


@pytest.fixture
def lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[0]
    (tmp_path / "page_policy.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "page_policy", raising=False)
    return importlib.import_module("page_policy").Lead


def test_it_is_a_component(lead: Any) -> None:
    assert repr(build(lead, [0.3], {})) == "lead(by=0.3)"
    with pytest.raises(SpecError, match="by"):
        build(lead, [1.5], {})


def test_it_decides(lead: Any) -> None:
    margin = torch.tensor([0.1, 0.6, 0.2])
    said = Candidates(token=torch.tensor([5, 6, 7]), prob=torch.ones(3), margin=margin)
    commit, _ = lead(by=0.5).decide(None, None, said, None, None)
    assert (commit.slots.tolist(), commit.tokens.tolist()) == ([1], [6])
    commit, _ = lead(by=0.9).decide(None, None, said, None, None)
    assert commit.slots.tolist() == [1]
