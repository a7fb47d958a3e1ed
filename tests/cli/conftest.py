"""The command line called in this process, on tiny models with random weights."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints

from unmask.cli.main import main


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


class Piped(io.TextIOWrapper):
    """A stdin made of bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """cli("ls", "--json", stdin=b"..."): exit code, stdout, stderr."""

    def run(*argv: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr("sys.stdin", Piped(stdin))
        code = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture(scope="session")
def llada(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.llada_checkpoint(tmp_path_factory.mktemp("cli") / "llada")


@pytest.fixture(scope="session")
def dream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.dream_checkpoint(tmp_path_factory.mktemp("cli") / "dream")
