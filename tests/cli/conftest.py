"""The command line called in this process, on tiny models with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_checkpoints
from cli_ran import Piped, Ran, Run

from unmask.cli.main import main


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
