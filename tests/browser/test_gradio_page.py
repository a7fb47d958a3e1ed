"""The Gradio app in a real browser. The fixture `page` fails a test whose page asks another host or logs an error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the extra gradio is not installed")

from demo.served import gradio_serving

import unmask


@pytest.fixture(scope="module")
def model() -> Any:
    return unmask.load("nano-llada", dtype="fp32")


def until(true: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_in_a_browser_it_settles_stays_text_calls_nobody_and_stops(model: Any, page: Any) -> None:
    with gradio_serving(model) as (url, hub):
        page.goto(url)
        masks = "document.querySelectorAll('.um-boxes .um-mask').length"
        page.get_by_role("textbox", name="Message").fill(
            "<script>window.ran=1</script><img src=x onerror=window.ran=2> ${window.ran=3}"
        )
        page.get_by_label("Constraints").fill("2:kite")
        page.get_by_role("button", name="Send").click()
        seen: set[int] = set()
        while not page.locator(".um-state", has_text="Finished").count():
            seen.add(page.evaluate(masks))
        assert len(seen) > 3
        assert page.locator(".um-boxes .um-given").all_inner_texts() == ["kite"]
        chat = page.locator("[data-testid=user]").inner_text()
        assert chat == "<script>window.ran=1</script><img src=x onerror=window.ran=2> ${window.ran=3}"
        assert page.evaluate("window.ran") is None
        page.get_by_label("Policy").fill("low_confidence")
        page.keyboard.press("Enter")
        page.get_by_role("textbox", name="Message").fill("Tell a story.")
        page.get_by_label("number input for Answer length").fill("400")
        page.keyboard.press("Tab")
        page.get_by_role("button", name="Send").click()
        until(lambda: hub.status()["running"])
        page.get_by_role("button", name="Stop").click()
        page.locator(".um-state", has_text="Stopped").wait_for()
        until(lambda: hub.status()["cancelled"] == 1)
        assert not hub.status()["running"]


def test_a_closed_tab_frees_its_slot(model: Any, page: Any) -> None:
    with gradio_serving(model) as (url, hub):
        page.goto(url)
        page.get_by_role("textbox", name="Message").fill("Tell a story.")
        page.get_by_label("number input for Answer length").fill("900")
        page.get_by_label("Steps").fill("900")
        page.get_by_label("Remasking").fill("random")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Send").click()
        until(lambda: hub.status()["forwards"] > 2)
        page.close()
        until(lambda: hub.status()["cancelled"] == 1, 5)
        assert not hub.status()["running"]
