"""Twenty visitors at once: everyone is answered, nobody gets another one's answer, memory stays, closed tabs let go."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from demo_page import DemoPage

VISITORS = 20
ROUNDS = 3
PROMPTS = [f"Sort these numbers: {7 * n % 41} {11 * n % 37} {n} {23 * n % 31}" for n in range(1, VISITORS + 1)]
LONG = {"max_tokens": 900, "policy": "low_confidence", "logits_eos_inf": "true"}
GROWTH = 30
"""MiB that the server may grow by after its first round."""


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[str]

    def rss(self) -> float:
        """MiB of memory that are resident."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        assert found is not None
        return int(found[1]) / 1024


@pytest.fixture
def server() -> Iterator[Server]:
    """`unmask demo` as it comes: the default embedded model."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc: the memory of the server cannot be read here")
    for extra in ("fastapi", "uvicorn"):
        pytest.importorskip(extra, reason=f"{extra} is not installed")
    command = [sys.executable, "-m", "unmask", "demo", "--device", "cpu", "--port", "0", "--quiet"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    try:
        yield Server(process.stdout.readline().strip(), process)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def alone(page: Any, url: str, prompt: str) -> str:
    """The answer to a prompt while nobody else is there."""
    body = {"messages": [{"role": "user", "content": prompt}]}
    stream = page.request.post(f"{url}api/generate", data=body).text()
    lines = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]
    return next(str(line["answers"]["0"]["text"]) for line in lines if "answers" in line)


def test_twenty_visitors_at_once_are_answered_and_memory_is_stable(
    server: Server, open_page: Callable[..., Any]
) -> None:
    pages = [DemoPage.load(open_page(1000, 800), server.url, delay=0) for _ in range(VISITORS)]
    wanted = {prompt: alone(pages[0].page, server.url, prompt) for prompt in PROMPTS}
    assert len(set(wanted.values())) > VISITORS // 2  # an answer tells whose it is
    memory = []
    for turn in range(ROUNDS):
        asked = [PROMPTS[(n + 7 * turn) % VISITORS] for n in range(VISITORS)]
        for demo, prompt in zip(pages, asked, strict=True):
            demo.send(prompt)
        assert [demo.answered() for demo in pages] == [wanted[prompt] for prompt in asked]
        for demo in pages:
            demo.page.click("#chat-clear")
            demo.page.wait_for_selector("#chat-stage .pill[data-state=preview]")
        memory.append(server.rss())
    status = pages[0].status()
    assert (status["running"], status["waiting"], status["failed"]) == (0, 0, 0)
    assert status["finished"] == VISITORS * (ROUNDS + 1)
    print("resident MiB after each round:", [round(m) for m in memory])
    assert max(memory[1:]) - memory[0] < GROWTH, memory


def test_twenty_tabs_closed_in_the_middle_free_every_slot(
    server: Server, browser: Any, open_page: Callable[..., Any]
) -> None:
    watcher = DemoPage.load(open_page(), server.url, delay=0)
    contexts = [browser.new_context() for _ in range(VISITORS)]
    pages = [DemoPage.load(context.new_page(), server.url, delay=0) for context in contexts]
    for demo in pages:
        demo.set(**LONG)
    for demo in pages:
        demo.send("Tell a story about Bob the rabbit, a kite and a farm.")
    deadline = time.monotonic() + 10
    while (status := watcher.status())["running"] + status["waiting"] < VISITORS:
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    assert status["running"] == status["slots"]
    for context in contexts:
        context.close()
    deadline = time.monotonic() + 5
    while (status := watcher.status())["running"] + status["waiting"]:
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    assert status["cancelled"] == VISITORS
    assert watcher.ask("Copy: red")
