from __future__ import annotations

import asyncio
import html
import importlib.util
import time
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from demo.served import gradio_serving

from unmask.cli.main import main
from unmask.core.events import Accepted, Finished, Stepped, Work, fold, to_dict
from unmask.demo import spans
from unmask.demo.hub import Hub
from unmask.sinks.palettes import COLOURS, contrast

COST = Work("plain", 8, 4, 0.5)
EVENTS = (
    Accepted("0", (7, -1, -1, 9, -1, -1), (True, False, False, True, False, False), 1, ((1, 3), (3, 6))),
    Stepped("0", 1, COST, ((1, 1, 0.95, 1), (2, 2, 0.1, 1))),
    Stepped("0", 2, COST, ((2, -1, 0.0, 3), (4, 3, 0.5, 1))),
    Stepped("0", 3, COST, ((2, 3, 0.8, 1), (5, 4, 0.2, 1))),
    Finished("0", "stop", 3, 5),
)
PIECES = {
    "7": "ask",
    "1": "<script>alert(1)</script>",
    "2": ' "><img src=x onerror=alert(2)>',
    "3": " blue",
    "9": " kite",
    "4": "\n",
}
"""Tokens that a page would run if they were not escaped."""


class Boxes(HTMLParser):
    """The canvas as a browser would read it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.boxes: dict[int, dict[str, str]] = {}
        self._open: dict[str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = {k: v or "" for k, v in attrs}
        self._open = None
        if "data-position" in found:
            self._open = self.boxes[int(found["data-position"])] = {**found, "text": ""}

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self._open["text"] += data


def after(count: int) -> spans.Live:
    live = spans.Live()
    live.push({"piece": PIECES})
    for event in EVENTS[:count]:
        live.push(to_dict(event))
    return live


# ---- the HTML, without Gradio ----------------------------------------------------------------------------------------


def test_tokens_that_look_like_html_stay_text() -> None:
    page = spans.canvas_html(after(2))
    found = Boxes(page)
    assert found.tags == {"div", "span"}
    assert found.boxes[1]["text"] == "<script>alert(1)</script>"
    assert found.boxes[2]["text"] == '"><img␣src=x␣onerror=alert(2)>'
    assert "onerror" not in found.boxes[2]
    assert '"><img␣src=x␣onerror=alert(2)>' in found.boxes[2]["title"]
    assert Boxes(spans.error_html("<script>no</script>")).tags == {"div", "b"}


@pytest.mark.parametrize("count", range(1, len(EVENTS) + 1))
def test_the_boxes_say_what_the_fold_says(count: int) -> None:
    canvas = fold(EVENTS[:count])["0"]
    boxes = Boxes(spans.canvas_html(after(count))).boxes
    assert sorted(boxes) == [1, 2, 3, 4, 5]
    for position, box in boxes.items():
        assert int(box["data-token"]) == canvas.ids[position]
        assert int(box["data-step"]) == canvas.step[position]
        masked = canvas.ids[position] < 0
        ended = canvas.end is not None and position >= canvas.end
        assert (box["data-kind"] == "mask") == (masked and not ended)
        assert (box["data-kind"] == "after") == ended
        if box["data-kind"] in ("new", "earlier"):
            assert (box["data-kind"] == "new") == (position in canvas.fresh)


def test_kinds_levels_and_block_borders() -> None:
    boxes = Boxes(spans.canvas_html(after(3))).boxes
    seen = {p: (b["data-kind"], b["data-level"]) for p, b in boxes.items()}
    assert seen == {1: ("earlier", "high"), 2: ("mask", ""), 3: ("given", ""), 4: ("new", "middle"), 5: ("mask", "")}
    assert [p for p, b in boxes.items() if "um-edge" in b["class"].split()] == [3]
    assert [p for p, b in boxes.items() if "um-again" in b["class"].split()] == [2]


def test_the_numbers_are_those_of_the_run() -> None:
    live = after(4)
    text = html.unescape(spans.counts_html(live))
    for part in ("3 forwards", "1.33 tokens per forward", "2.7 tokens/s", "24 rows", "1.50 s", "5 of 5 settled"):
        assert part in text
    live.push(to_dict(EVENTS[4]))
    live.push({"answers": {"0": {"text": "red blue", "completion_tokens": 3}}})
    assert "1.00 tokens per forward" in spans.counts_html(live)
    assert "Finished" in spans.counts_html(live)


def test_waiting_stopping_and_errors_are_said() -> None:
    assert "2 ahead" in spans.counts_html(spans.Live(place=3))
    stopped, wrong = spans.Live(), after(2)
    stopped.push({"stopped": True})
    assert "Stopped" in spans.counts_html(stopped)
    wrong.push({"error": {"message": "the forward failed: <b>"}})
    assert "the forward failed: &lt;b&gt;" in spans.counts_html(wrong)


def test_the_style_has_the_palettes_colours_and_a_shape_for_each_level() -> None:
    style = spans.style()
    for (theme, _), colours in COLOURS.items():
        for name, tint in colours.tints().items():
            assert f"--um-{name}: {tint.fill};" in style
            assert contrast(tint.fill, tint.ink) >= 4.5, (theme, name)
    heights = [
        style.split(f'.um-box[data-level="{grade}"]::before {{ height: ')[1][:3] for grade in ("low", "middle", "high")
    ]
    assert len(set(heights)) == 3
    assert "http" not in style and "@import" not in style


# ---- the command -----------------------------------------------------------------------------------------------------


def test_without_gradio_the_command_says_what_to_install(capsys: Any, monkeypatch: Any) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gradio" else real(name, *a))
    assert main(["demo", "--gradio"]) == 2
    assert 'pip install "unmask[gradio]"' in capsys.readouterr().err


def test_the_gradio_app_has_no_gallery(capsys: Any, tmp_path: Any) -> None:
    assert main(["demo", "--gradio", "--recordings", str(tmp_path)]) == 2
    assert "--recordings" in capsys.readouterr().err


# ---- the handlers, with Gradio ---------------------------------------------------------------------------------------


@pytest.fixture
def page(model: Any) -> Iterator[Any]:
    pytest.importorskip("gradio")
    from unmask.demo.asks import Limits
    from unmask.demo.gradio_app import Page

    hub = Hub(model, slots=2)
    yield Page(model, Limits.of(model, 256), hub)
    hub.close()


def form(page: Any, words: str, **given: Any) -> dict[Any, Any]:
    """The form as it is sent when only these fields were touched."""
    parts = {c["name"]: part for c, part in page.controls} | {
        name: getattr(page, name) for name in ("system", "constraints", "delay", "palette")
    }
    values = {part: part.value for part in parts.values()}
    for name, value in given.items():
        values[parts[name]] = value
    return {**values, page.message: words, page.history: given.get("history", [])}


def tab(name: str) -> Any:
    return SimpleNamespace(session_hash=name)


async def everything(steps: AsyncIterator[dict[Any, Any]]) -> list[dict[Any, Any]]:
    return [step async for step in steps]


def test_a_turn_is_drawn_step_by_step_and_ends_with_the_models_answer(page: Any, model: Any) -> None:
    steps = asyncio.run(everything(page.answer(form(page, "Copy: red blue", delay=0.001), tab("a"))))
    pictures = [Boxes(s[page.canvas]).boxes for s in steps if page.canvas in s]
    holes = [sum(b["data-kind"] == "mask" for b in boxes.values()) for boxes in pictures]
    assert len(set(holes)) > 2
    assert holes == sorted(holes, reverse=True)
    said = [{"role": "user", "content": "Copy: red blue"}]
    assert steps[-1][page.history][-1]["content"] == model.generate(said).text
    assert not page.turns
    assert page.hub.status()["finished"] == 1


def test_settings_and_constraints_of_the_form_reach_the_run(page: Any) -> None:
    filled = form(page, "Copy: red <b>blue</b>", max_tokens=16, seed="3", temperature=0.5, constraints="2:kite")
    last = asyncio.run(everything(page.answer(filled, tab("a"))))[-1]
    boxes = Boxes(last[page.canvas]).boxes
    assert len(boxes) == 16
    assert [b["text"] for b in boxes.values() if b["data-kind"] == "given"] == ["kite"]
    assert last[page.chat][0]["content"] == "Copy: red &lt;b&gt;blue&lt;/b&gt;"
    assert last[page.history][0]["content"] == "Copy: red <b>blue</b>"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": "many"}, "seed"),
        ({"top_k": "2.5"}, "Top-k"),
        ({"constraints": "x"}, "constraint"),
        ({"policy": "best"}, "best"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_the_fields_name(page: Any, given: dict[str, Any], message: str) -> None:
    steps = asyncio.run(everything(page.answer(form(page, "Copy: red", **given), tab("a"))))
    assert len(steps) == 1
    assert message in steps[0][page.counts]
    assert 'role="alert"' in steps[0][page.counts]
    assert page.hub.status()["forwards"] == 0


def test_stop_ends_the_work_and_the_playback_of_that_tab_only(page: Any) -> None:
    slow = {"policy": "low_confidence", "max_tokens": 256, "delay": 0.2}

    async def scene() -> tuple[list[Any], float]:
        mine = asyncio.create_task(everything(page.answer(form(page, "Tell a story.", **slow), tab("mine"))))
        other = asyncio.create_task(everything(page.answer(form(page, "Copy: red"), tab("other"))))
        while page.hub.status()["forwards"] < 3:
            await asyncio.sleep(0.005)
        begun = time.perf_counter()
        await page.halt(tab("mine"))
        return [await mine, await other], time.perf_counter() - begun

    (mine, other), seconds = asyncio.run(scene())
    assert "Stopped" in mine[-1][page.counts]
    assert "Finished" in other[-1][page.counts]
    assert seconds < 10
    assert page.hub.status()["cancelled"] == 1


def test_an_abandoned_turn_frees_its_slot(page: Any) -> None:
    async def scene() -> None:
        steps = page.answer(form(page, "Tell a story.", policy="low_confidence", max_tokens=256), tab("a"))
        await anext(steps)
        await steps.aclose()

    asyncio.run(scene())
    while page.hub.status()["running"]:
        time.sleep(0.01)
    assert page.hub.status()["cancelled"] == 1
    assert not page.turns


# ---- its door --------------------------------------------------------------------------------------------------------


def test_the_same_token_as_the_page_opens_the_gradio_app(model: Any) -> None:
    with gradio_serving(model, token="a-long-secret") as (url, _), httpx.Client(base_url=url) as client:
        assert client.get("/").status_code == 401
        assert client.get("/config").status_code == 401
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        assert client.get("/?token=a-long-secret").status_code == 303
        found = client.get("/")
        assert found.status_code == 200
        policy = found.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "http" not in policy
        upload = {"files": ("a.txt", b"x" * 100)}
        assert client.post("/gradio_api/upload", files=upload).status_code == 413


def test_a_foreign_host_is_refused_without_a_token(model: Any) -> None:
    with gradio_serving(model) as (url, _):
        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers={"host": "evil.example"}).status_code == 403
