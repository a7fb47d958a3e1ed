"""A real Chromium for every test of this folder, and pages that fail their test if anything leaves the machine or
anything goes wrong inside.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from demo_page import DemoPage

PLACES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
INSIDE = re.compile(r"(file|data|blob|about):|https?://(127\.0\.0\.1|localhost)[:/]")
OpenPage = Callable[..., Any]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium: the one that UNMASK_CHROMIUM names, or one in the usual places."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get("UNMASK_CHROMIUM") or next(filter(None, map(shutil.which, PLACES)), None)
    if found is None or not Path(found).is_file():
        pytest.skip(f"no Chromium: UNMASK_CHROMIUM is {found!r} and none of {', '.join(PLACES)} is on the path")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()


class Watch:
    """Everything that must not happen on a page: requests that leave, errors on the console, uncaught errors.

    `expect(pattern)` allows console errors that a test provokes, such as a refused request.
    """

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self._expected: list[re.Pattern[str]] = []

    def expect(self, pattern: str) -> None:
        self._expected.append(re.compile(pattern))

    def on(self, page: Any) -> None:
        page.on("request", lambda r: INSIDE.match(r.url) or self.wrong.append(f"request {r.url}"))
        page.on("websocket", lambda w: self.wrong.append(f"websocket {w.url}"))
        page.on("console", lambda m: m.type == "error" and self.wrong.append(f"console {m.text}"))
        page.on("pageerror", lambda e: self.wrong.append(f"error {e}"))

    def unexpected(self) -> list[str]:
        return [w for w in self.wrong if not any(p.search(w) for p in self._expected)]


@pytest.fixture
def watch() -> Iterator[Watch]:
    """What went wrong on the pages of this test; anything unexpected fails it."""
    found = Watch()
    yield found
    assert found.unexpected() == []


@pytest.fixture
def open_page(browser: Any, watch: Watch) -> Iterator[OpenPage]:
    """Opens watched pages, each in its own context: `open_page(width=360, height=800, **context options)`."""
    contexts = []

    def opened(width: int = 1000, height: int = 800, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        watch.on(page)
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: OpenPage) -> Any:
    """One watched page."""
    return open_page()


@pytest.fixture(scope="session")
def demo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `unmask demo` with the small whole-canvas model and a folder for recordings."""
    for extra in ("fastapi", "uvicorn"):
        pytest.importorskip(extra, reason=f"{extra} is not installed")
    folder = tmp_path_factory.mktemp("recordings")
    command = [sys.executable, "-m", "unmask", "demo", "--model", "nano-llada", "--device", "cpu", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--recordings", str(folder), "--quiet"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"},
    )
    assert server.stdout is not None
    try:
        url = server.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), url
        yield url
    finally:
        server.terminate()
        server.wait(20)
        server.stdout.close()


@pytest.fixture
def open_demo(open_page: OpenPage, demo_url: str) -> Callable[..., DemoPage]:
    """Opens the demo's page: `open_demo(width=360, delay=0)`; the delay is the playback's, in milliseconds."""

    def opened(delay: int = 0, **options: Any) -> DemoPage:
        page = open_page(**{"width": 1400, "height": 1000, **options})
        return DemoPage.load(page, demo_url, delay)

    return opened


@pytest.fixture
def demo(open_demo: Callable[..., DemoPage]) -> DemoPage:
    """The demo's page, without playback delay."""
    return open_demo()
