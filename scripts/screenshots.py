"""Takes the pictures of the page for README and docs: `make screenshots`, or python scripts/screenshots.py [--out DIR].

Enters: nothing but the package, playwright and a Chromium on this machine (UNMASK_CHROMIUM names one). Leaves: page.png
and race.png, PNGs of the running page with the embedded models.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STORY = "Tell a story about Bob the rabbit, a kite and a farm."
PROBLEM = (
    "Leo has 24 stamps. Leo gives half of them to Zoe. Zoe gives Leo 15 more stamps. How many stamps does Leo have now?"
)
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()


def main() -> int:
    """Takes both pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/assets"))
    out = parser.parse_args().out
    with served("nano-llada") as url, browser() as chromium:
        page = opened(chromium, url, 1360, 860)
        for name, value in {"max_tokens": "32", "block_length": "32", "policy": "low_confidence(steps=16)"}.items():
            page.fill(f".setting[data-name={name}] input", value)
        page.fill("#message", STORY)
        page.press("#message", "Enter")
        page.wait_for_selector("#chat-stage .pill[data-state=finished]", timeout=60_000)
        page.locator("#chat-stage input[type=range]").first.fill("10")
        page.mouse.move(0, 0)
        page.screenshot(path=out / "page.png")
        page = opened(chromium, url, 1360, 860)
        page.click("#tab-race")
        page.fill("#race-prompt", PROBLEM)
        page.click("#race-start")
        page.wait_for_selector(".race-bar button:not([disabled])", timeout=60_000)
        page.wait_for_timeout(1500)  # into the race as it is played again
        page.screenshot(path=out / "race.png")
    return 0


@contextmanager
def served(model: str) -> Iterator[str]:
    """The page's address, for as long as it is looked at."""
    words = [sys.executable, "-m", "unmask", "demo", "--model", model, "--port", "0", "-q"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium that is on the machine."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("UNMASK_CHROMIUM") or next((p for n in names if (p := shutil.which(n))), None)
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield found
        finally:
            found.close()


def opened(chromium: Any, url: str, wide: int, high: int) -> Any:
    """The page, ready, without a delay between steps."""
    page = chromium.new_context(viewport={"width": wide, "height": high}, color_scheme="light").new_page()
    page.add_init_script("localStorage['unmask-demo'] = '{\"delay\": 0}'")
    page.goto(url)
    page.wait_for_selector("html[data-ready]", state="attached")
    return page


if __name__ == "__main__":
    sys.exit(main())
