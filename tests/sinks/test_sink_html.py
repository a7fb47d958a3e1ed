"""The exported page as text: complete in itself, faithful to its recording, and no prompt or answer is markup in it.
What it does in a browser is in tests/browser.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from golden_recordings import FOLDER, NAMES

from unmask.core.errors import RecordingError
from unmask.core.events import Accepted, Finished, Stepped, Work
from unmask.sinks.html import SCRIPTS, page, web_asset
from unmask.sinks.recorder import Answer, Recording, read, read_lines

EVIL = "</script><script>document.title='no'</script><img src=x onerror=alert(1)><!--"


class Elements(HTMLParser):
    """Tags with their attributes, and the text of every script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts.append(data)
            self._inside = False


def evil_recording() -> Recording:
    events = (
        Accepted("0", (0, -1), (True, False), 1, ((1, 2),)),
        Stepped("0", 1, Work("full", 2, 1, 0.1), ((1, 1, 0.5, 1),)),
        Finished("0", "length", 1, 2),
    )
    header = {"format": "unmask-recording", "version": 1, "model": EVIL, "settings": {"0": {EVIL: EVIL}}}
    return Recording(header, events, {0: EVIL, 1: "\ud800\x00" + EVIL}, {"0": Answer("\ud800\x00" + EVIL, 1)})


@pytest.mark.parametrize("name", NAMES)
def test_the_recording_inside_is_the_recording(name: str) -> None:
    path = FOLDER / f"{name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    text = page(lines)
    assert text == page(read(path))
    inside = Elements(text).scripts[0].strip().split("\n")
    assert read_lines(inside) == read(path)
    assert [json.loads(line) for line in inside] == [json.loads(line) for line in lines]


def test_it_loads_nothing() -> None:
    text = page(read(FOLDER / "nano.jsonl"))
    found = Elements(text)
    outward = {"src", "href", "action", "data", "srcset", "poster", "background"}
    assert not [(tag, names) for tag, names in found.tags if outward & set(names) or tag in ("link", "base", "iframe")]
    assert not [name for _, names in found.tags for name in names if name.startswith("on") or name == "style"]
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|EventSource|\bimport\(", text)
    (policy,) = (n["content"] for t, n in found.tags if t == "meta" and n.get("http-equiv"))
    expected = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
    assert policy == expected


def test_markup_in_prompts_answers_and_headers_stays_text() -> None:
    text = page(evil_recording(), title=EVIL)
    tags = [tag for tag, _ in Elements(text).tags]
    assert tags.count("script") == 2 and "img" not in tags
    assert "<!--" not in text
    text.encode("utf-8")  # half characters and control signs do not survive into the file
    assert "\x00" not in text
    inside = Elements(text).scripts[0].strip().split("\n")
    assert read_lines(inside) == evil_recording()


def test_without_javascript_the_answers_can_be_read() -> None:
    recording = read(FOLDER / "nano-llada-three.jsonl")
    without = re.search(r"<noscript>(.*?)</noscript>", page(recording), re.S)
    assert without is not None
    for answer in recording.answers.values():
        assert f"<p>{answer.text}</p>" in without[1]


def test_facts_of_the_header_are_on_the_page() -> None:
    text = page(read(FOLDER / "nano-llada.jsonl"), title="Apples")
    assert "<title>Apples</title>" in text and '<h1 dir="auto">Apples</h1>' in text
    for fact in ("nano-llada", "LLaDA", "unmask 0.1.0"):
        assert f"<span>{fact}</span>" in text
    assert "<dt>gen length</dt><dd>32 (given)</dd>" in text
    assert '<h1 dir="auto">A run of nano-llada</h1>' in page(read(FOLDER / "nano-llada.jsonl"))


def test_requests_with_the_same_settings_are_told_once() -> None:
    recording = read(FOLDER / "nano-llada-three.jsonl")
    assert page(recording).count("<h3>") == 1
    recording.header["settings"]["1"] = {"temperature": "1 (given)"}
    text = page(recording)
    assert "<h3>Settings of 0, 2</h3>" in text and "<h3>Settings of 1</h3>" in text


def test_a_recording_without_facts_or_answers_is_a_page_too() -> None:
    found = evil_recording()
    text = page(Recording({"format": "unmask-recording", "version": 1}, found.events, {0: "a", 1: " b"}))
    assert "A recorded run" in text and "<p> b</p>" in text


def test_lines_that_are_no_recording_are_refused() -> None:
    lines = (FOLDER / "nano.jsonl").read_text().splitlines()
    with pytest.raises(RecordingError, match="a last line") as cut:
        page(lines[:-1])
    assert cut.value.remedy == "The recording is cut."
    with pytest.raises(RecordingError, match="expected version 1; got 7"):
        page([lines[0].replace('"version":1', '"version":7'), *lines[1:]])


def test_the_view_is_part_of_the_package() -> None:
    for name in (*SCRIPTS, "view.css", "export.js", "export.css", "export.html"):
        text = web_asset(name)
        assert text.strip()
        assert name == "export.html" or "</script" not in text
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
