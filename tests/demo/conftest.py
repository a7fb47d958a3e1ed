"""A server with the embedded full-attention model: what a browser talks to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from demo.served import Served, serving

import unmask


@pytest.fixture(scope="session")
def model() -> Any:
    return unmask.load("nano-llada", dtype="fp32")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="session")
def served(model: Any, folder: Path) -> Iterator[Served]:
    with serving(model, folder=folder, slots=8) as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60) as found:
        yield found
