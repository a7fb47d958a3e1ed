from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_ran import Run

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


@contextmanager
def started(*argv: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    words = [sys.executable, "-m", "unmask", "demo", "--port", "0", *argv]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def fetch(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        return bytes(answer.read())


def test_it_prints_its_address_serves_and_ends_politely() -> None:
    with started("-q") as (process, address):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        assert json.loads(fetch(address + "api/model"))["name"] == "nano"
        assert b"<!doctype html>" in fetch(address).lower()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode in (0, 130)
        assert out == ""
        assert "Traceback" not in err


def test_an_address_for_others_carries_a_token() -> None:
    with started("--host", "0.0.0.0") as (_, address):
        found = re.fullmatch(r"http://[^/]+:(\d+)/\?token=([\w-]{20,})", address)
        assert found is not None
        port, token = found.groups()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            fetch(f"http://127.0.0.1:{port}/api/model")
        assert (
            json.loads(fetch(f"http://127.0.0.1:{port}/api/model", Authorization=f"Bearer {token}"))["name"] == "nano"
        )


def test_a_model_folder_is_shown_by_its_name_alone(llada: Path) -> None:
    with started("--model", str(llada)) as (process, address):
        if not address:  # the tiny checkpoint has no tokenizer: refused by name
            assert process.stderr is not None
            assert "tokenizer" in process.stderr.read()
            return
        assert json.loads(fetch(address + "api/model"))["name"] == llada.name


def test_bad_options_are_refused_before_a_model_is_loaded(cli: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = cli("demo", "--port", port)
        assert refused.code == 2
        assert "--port 0 finds a free one" in refused.err
    for words, said in [
        (("--recordings", tmp_path / "none"), "mkdir -p"),
        (("--token", "short"), "at least 8"),
        (("--token", "spaces are no good"), "at least 8 letters"),
        (("--host", "not.a.host.invalid", "--port", 0), "an address of this machine"),
        (("--host", "", "--port", 0), "0.0.0.0"),
        (("--port", 70000), "65535"),
        (("--slots", 0), "--slots"),
    ]:
        found = cli("demo", *words)
        assert found.code == 2, words
        assert said in found.err


def test_the_missing_extra_is_named(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name))
    found = cli("demo")
    assert found.code == 2
    assert 'pip install "unmask[demo]"' in found.err


def test_it_ends_at_once_in_the_middle_of_a_run() -> None:
    body = {
        "messages": [{"role": "user", "content": "Copy: red"}],
        "settings": {"max_tokens": 900, "logits_eos_inf": True},
    }
    with started("-q") as (process, address):
        asked = urllib.request.Request(
            address + "api/generate", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=20) as stream:
            while b"Stepped" not in stream.readline():
                pass
            process.send_signal(signal.SIGTERM)
            left = stream.read()
        _, err = process.communicate(timeout=20)
    assert b'"cancelled"' in left
    assert b'"end"' in left
    assert "Traceback" not in err
    assert "Error" not in err
