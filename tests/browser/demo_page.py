"""The demo's page as its tests use it: what a visitor does, and what stands on the page then."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SLOW = {"max_tokens": 256, "policy": "low_confidence", "steps": 256, "logits_eos_inf": "true"}
"""One token per forward, 256 of them: long enough to look at while it runs."""

CELLS = """() => [...document.querySelectorAll("[role=tabpanel]:not([hidden]) .um-cell[data-position]")].map(
  c => ({position: +c.dataset.position, id: +c.dataset.token, kind: c.dataset.kind, step: +c.dataset.step,
         text: c.textContent}))"""


@dataclass
class DemoPage:
    """A page of `unmask demo`. sent: the bodies of its POSTs, as (path, JSON)."""

    page: Any
    url: str
    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @classmethod
    def load(cls, page: Any, url: str, delay: int) -> DemoPage:
        """Opens the page and waits until it can be used."""
        prefs = json.dumps({"delay": delay})
        page.add_init_script(f"if (!localStorage['unmask-demo']) localStorage['unmask-demo'] = {prefs!r}")
        self = cls(page, url)
        page.on("request", self._note)
        page.goto(url)
        page.wait_for_selector("html[data-ready]", state="attached")
        page.wait_for_selector("#chat-stage .um-cell[data-position]")
        return self

    def _note(self, request: Any) -> None:
        if request.method == "POST":
            self.sent.append((request.url.removeprefix(self.url.rstrip("/")), request.post_data_json))

    def bodies(self, path: str = "/api/generate") -> list[dict[str, Any]]:
        """What was sent to a path, in order."""
        return [body for where, body in self.sent if where == path]

    # ---- what a visitor does -----------------------------------------------------------------------------------------

    def set(self, **values: Any) -> None:
        """Fills in settings."""
        for name, value in values.items():
            control = self.page.locator(f".setting[data-name={name}] :is(input, select)")
            if control.evaluate("e => e.tagName") == "SELECT":
                control.select_option(str(value))
            else:
                control.fill(str(value))

    def send(self, text: str) -> None:
        """Writes a message and presses Enter."""
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")

    def ask(self, text: str) -> str:
        """Sends a message and waits for the answer's text."""
        self.send(text)
        return self.answered()

    def answered(self, state: str = "finished") -> str:
        """Waits for the end of the run on the chat's stage; the text of the last answer."""
        self.page.wait_for_selector(f"#chat-stage .pill[data-state={state}]", timeout=60_000)
        return str(self.page.locator("#talk .turn.assistant .prose").last.text_content())

    def mode(self, name: str) -> None:
        """Opens a tab."""
        self.page.click(f"#tab-{name}")

    def download(self, selector: str, path: Path) -> Path:
        """Presses a button that saves a file; the file."""
        with self.page.expect_download() as waiting:
            self.page.click(selector)
        waiting.value.save_as(path)
        return path

    # ---- what stands there -------------------------------------------------------------------------------------------

    def cells(self) -> list[dict[str, Any]]:
        """Every box of the open mode's canvas."""
        found: list[dict[str, Any]] = self.page.evaluate(CELLS)
        return found

    def steps(self, stage: str = "#chat-stage") -> tuple[int, int]:
        """The step on show, and the last one so far."""
        shown, last = self.page.text_content(f"{stage} .um-place").split("/")
        return int(shown), int(last)

    def scrub(self, k: int, stage: str = "#chat-stage") -> None:
        """Moves the scrubber to step k."""
        self.page.locator(f"{stage} .um-range").evaluate(
            "(e, k) => { e.value = k; e.dispatchEvent(new Event('input', {bubbles: true})); }", k
        )

    def until(self, expression: str, seconds: float = 20) -> None:
        """Waits until an expression is true. (Playwright's own waiting evaluates strings in the page, which the page's
        content policy forbids.)"""
        deadline = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"still not true: {expression}"
            time.sleep(0.02)

    def status(self) -> dict[str, Any]:
        """The server's counters."""
        found: dict[str, Any] = self.page.request.get(f"{self.url}api/status").json()
        return found
