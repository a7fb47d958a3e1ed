"""Infilling, races and the gallery of the demo in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from demo_page import DemoPage

from unmask.core.events import Accepted, Finished, fold
from unmask.sinks.recorder import read

ASK = "Tell a story about Bob the rabbit, a kite and a farm."
TEXT = "Bob the rabbit lived near a farm. One day Bob found a red kite. Bob was very happy."


# ---- infilling -------------------------------------------------------------------------------------------------------


def select(demo: DemoPage, words: str) -> None:
    """Selects words in the text to fill."""
    demo.page.locator("#infill-text").evaluate(
        "(e, w) => { const at = e.value.indexOf(w); e.focus(); e.setSelectionRange(at, at + w.length); }", words
    )


def filling(demo: DemoPage, text: str) -> None:
    """Opens the mode with a text of our own and no holes."""
    demo.mode("infill")
    demo.page.click("#infill-clear")
    demo.page.fill("#infill-text", text)
    demo.page.fill("#infill-ask", "")


def filled(demo: DemoPage) -> str:
    demo.page.click("#infill-fill")
    demo.page.wait_for_selector("#infill-stage .pill[data-state=finished]")
    return str(demo.page.text_content("#infill-out"))


def test_selected_spans_are_filled_and_the_rest_stands(demo: DemoPage, tmp_path: Path) -> None:
    filling(demo, TEXT)
    select(demo, " red kite")
    demo.page.keyboard.press("Control+k")
    select(demo, "very happy")
    demo.page.fill("#infill-length", "3")
    demo.page.click("#infill-hole")
    out = filled(demo)
    assert demo.bodies()[-1]["template"] == (
        "Bob the rabbit lived near a farm. One day Bob found a[[2]]. Bob was[[3]]."
    )
    head, middle = "Bob the rabbit lived near a farm. One day Bob found a", ". Bob was"
    assert out.startswith(head) and middle in out and out.endswith(".")
    saved = read(demo.download("#infill-stage .stage-foot button", tmp_path / "fill.jsonl"))
    accepted = next(e for e in saved.events if isinstance(e, Accepted))
    final = fold(saved.events)[accepted.id]
    assert all(final.ids[p] == i for p, i in enumerate(accepted.canvas) if i >= 0)
    assert sum(i < 0 for i in accepted.canvas) == 5
    assert "".join(demo.page.locator("#infill-out mark").all_text_contents()) == out.replace(head, "").replace(
        middle, ""
    ).removesuffix(".")


def test_holes_move_with_the_text_and_go_when_it_is_changed(demo: DemoPage) -> None:
    filling(demo, TEXT)
    for words in ("red kite", "very happy"):
        select(demo, words)
        demo.page.keyboard.press("Control+k")
    demo.page.locator("#infill-text").evaluate("e => e.setSelectionRange(0, 0)")
    demo.page.keyboard.type("Once. ")
    assert demo.page.locator(".hole-words").all_text_contents() == ["red kite", "very happy"]
    select(demo, "kite")
    demo.page.keyboard.type("ball")
    assert demo.page.locator(".hole-words").all_text_contents() == ["very happy"]
    demo.page.get_by_role("button", name="Close hole 1").click()
    assert demo.page.is_disabled("#infill-fill")


def test_a_hole_at_the_cursor_and_its_length(demo: DemoPage) -> None:
    filling(demo, "Bob was. The end.")
    demo.page.locator("#infill-text").evaluate("e => { e.focus(); e.setSelectionRange(7, 7); }")
    demo.page.keyboard.press("Control+k")
    demo.page.fill("#hole-1", "6")
    demo.page.press("#hole-1", "Enter")
    filled(demo)
    assert demo.bodies()[-1]["template"] == "Bob was[[6]]. The end."


def test_brackets_of_the_text_stay_literal(demo: DemoPage) -> None:
    filling(demo, "He wrote [[4]] on a red kite.")
    select(demo, "red")
    demo.page.keyboard.press("Control+k")
    out = filled(demo)
    assert demo.bodies()[-1]["template"].startswith("He wrote \\[[4]] on a[[")
    assert out.startswith("He wrote [[4]] on a") and out.endswith(" kite.")


def test_the_request_before_the_text_is_sent(demo: DemoPage) -> None:
    demo.mode("infill")
    demo.page.fill("#infill-ask", ASK)
    filled(demo)
    assert demo.bodies()[-1]["messages"] == [{"role": "user", "content": ASK}]


# ---- races -----------------------------------------------------------------------------------------------------------


def race(demo: DemoPage, *lanes: str) -> list[dict[str, str]]:
    """Runs a race of these presets; the rows of its table."""
    page = demo.page
    demo.mode("race")
    page.fill("#race-prompt", ASK)
    for number, name in enumerate(lanes, 1):
        if number == 3:
            page.get_by_role("button", name="Add a third lane").click()
        page.select_option(f"#lane-{number}", label=name)
    page.click("#race-start")
    page.wait_for_selector(".race-bar button:not([disabled])", timeout=60_000)
    rows = [row.locator("th, td").all_text_contents() for row in page.locator(".race-table tbody tr").all()]
    head = page.locator(".race-table thead th").all_text_contents()
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_a_race_shows_two_different_nfe(demo: DemoPage) -> None:
    slow, fast = race(demo, "one token per step", "recommended")
    assert int(slow["NFE"]) == 32
    assert int(fast["NFE"].removesuffix(" best")) < 20
    assert "best" in fast["NFE"] and "best" not in slow["NFE"]
    assert all(float(row["Seconds"].removesuffix(" best")) > 0 for row in (slow, fast))


def test_lanes_run_in_turn_and_alone(demo: DemoPage) -> None:
    moments: list[tuple[str, str]] = []
    demo.page.on("request", lambda r: r.url.endswith("generate") and moments.append(("begins", r.url)))
    demo.page.on("requestfinished", lambda r: r.url.endswith("generate") and moments.append(("ends", r.url)))
    race(demo, "one token per step", "recommended", "random order")
    assert [what for what, _ in moments] == ["begins", "ends"] * 3
    bodies = demo.bodies()
    assert all(b["alone"] is True for b in bodies)
    assert len({json.dumps(b["messages"]) for b in bodies}) == 1
    assert [b["settings"] for b in bodies] == [{"policy": "low_confidence"}, {}, {"policy": "random"}]


def test_words_that_differ_are_marked_and_not_by_colour_alone(demo: DemoPage) -> None:
    race(demo, "one token per step", "random order")
    texts = demo.page.locator(".lane-text").all_text_contents()
    assert texts[0] != texts[1]
    for lane, other in ((0, 1), (1, 0)):
        marks = demo.page.locator(".lane-text").nth(lane).locator("mark.differs")
        kept = (
            demo.page.locator(".lane-text")
            .nth(lane)
            .evaluate("e => [...e.childNodes].filter(n => n.nodeType === 3).flatMap(n => n.data.match(/\\S+/g) || [])")
        )
        assert marks.count() > 0
        assert marks.first.evaluate("e => getComputedStyle(e).textDecorationLine") == "underline"
        rest = iter(texts[other].split())
        assert all(word in rest for word in kept), "unmarked words stand in the other text, in the same order"


def test_lanes_play_together_on_their_own_clocks(demo: DemoPage) -> None:
    race(demo, "one token per step", "recommended")
    demo.page.click(".race-bar button")
    shown = []
    for _ in range(12):
        demo.page.wait_for_timeout(500)
        shown.append(
            demo.page.evaluate(
                """() => [document.querySelector(".clock").textContent,
                   ...[...document.querySelectorAll(".lane .um-place")].map(
                     e => e.textContent.split("/").map(Number))]"""
            )
        )
    slow, fast = [[s[i][0] for s in shown] for i in (1, 2)]
    assert slow == sorted(slow) and fast == sorted(fast)
    assert any(s[1][0] < s[1][1] for s in shown) and len(set(slow)) > 5
    demo.until("document.querySelector('.lane .um-place').textContent.startsWith('32 ')")
    assert [a for a, b in pairwise(shown) if float(a[0].split()[0]) > float(b[0].split()[0])] == []


def test_a_race_can_be_stopped(demo: DemoPage) -> None:
    demo.set(max_tokens=900, logits_eos_inf="true")
    demo.mode("race")
    demo.page.select_option("#lane-1", label="the settings beside")
    demo.set(policy="low_confidence", steps=900)
    demo.page.click("#race-start")
    demo.page.wait_for_selector(".lane .um-cell[data-position][data-kind=earlier]")
    demo.page.keyboard.press("Escape")
    demo.page.wait_for_selector(".lane .pill[data-state=stopped]")
    demo.page.wait_for_selector("#race-start:not([disabled])")
    assert len(demo.bodies()) == 1
    assert demo.bodies()[0]["settings"] == {"policy": "low_confidence", "steps": 900, "logits_eos_inf": True}


# ---- gallery ---------------------------------------------------------------------------------------------------------


def test_a_run_can_be_kept_and_stands_in_the_gallery(demo: DemoPage) -> None:
    text = demo.ask(ASK)
    demo.page.get_by_role("button", name="Keep in the gallery").click()
    demo.page.fill("#keep-name", "bob and the kite")
    demo.page.press("#keep-name", "Enter")
    demo.page.get_by_text("kept", exact=True).wait_for()
    demo.mode("gallery")
    card = demo.page.locator(".card[data-name='bob and the kite']")
    assert text.startswith(card.locator(".card-title").text_content().removesuffix("…")[:60])
    card.click()
    demo.page.wait_for_selector(".card[aria-current=true][data-name='bob and the kite']")
    demo.page.locator("#gallery-stage .um-last").click()
    assert demo.steps("#gallery-stage")[0] == demo.steps("#gallery-stage")[1] > 0


def test_a_recording_from_disk_is_opened_by_picker_and_by_drop(demo: DemoPage, tmp_path: Path) -> None:
    demo.ask(ASK)
    file = demo.download("#chat-stage .stage-foot button", tmp_path / "mine.jsonl")
    end = next(e for e in read(file).events if isinstance(e, Finished))
    sent = len(demo.sent)
    demo.mode("gallery")
    demo.page.set_input_files("#gallery-file", str(file))
    demo.page.locator("#gallery-stage h2", has_text="mine.jsonl").wait_for()
    demo.page.locator("#gallery-stage .um-last").click()
    assert demo.page.text_content("#gallery-stage [data-count=nfe]") == str(end.nfe)
    demo.mode("chat")
    demo.page.evaluate(
        """text => { const data = new DataTransfer(); data.items.add(new File([text], "dropped.jsonl"));
          const how = {dataTransfer: data, bubbles: true, cancelable: true};
          document.body.dispatchEvent(new DragEvent("drop", how)); }""",
        file.read_text(),
    )
    demo.page.locator("#gallery-stage h2", has_text="dropped.jsonl").wait_for()
    assert len(demo.sent) == sent, "a file stays on this computer"


def test_other_and_cut_files_are_refused_in_words(demo: DemoPage, tmp_path: Path) -> None:
    demo.ask(ASK)
    whole = demo.download("#chat-stage .stage-foot button", tmp_path / "run.jsonl").read_text()
    cases = {
        "other.jsonl": ("hello\n", "a line of a recording"),
        "cut.jsonl": (whole[: whole.rindex('{"end"')], "the recording is cut"),
        "later.jsonl": (whole.replace('"version":1', '"version":9', 1), "version 9"),
        "empty.jsonl": ("", "a recording of unmask"),
        "list.jsonl": (whole.replace("\n", "\n[]\n", 1), "an object"),
        "silent.jsonl": (re.sub(r'\{"piece".*\n', "", whole), "a text for token"),
        "far.jsonl": (whole.replace('"writes":[[', '"writes":[[99999,3,0.5,1],[', 1), "writes within the canvas"),
        "giant.jsonl": (whole.replace('"canvas":[', '"canvas":[' + "-1," * 70_000, 1), "at most 65536 positions"),
    }
    demo.mode("gallery")
    for name, (text, word) in cases.items():
        (tmp_path / name).write_text(text)
        demo.page.set_input_files("#gallery-file", str(tmp_path / name))
        demo.page.locator("#gallery-problem", has_text=name).wait_for()
        assert word in demo.page.text_content("#gallery-problem")


def test_older_answers_can_be_shown_again(open_demo: Callable[..., DemoPage]) -> None:
    demo = open_demo()
    demo.ask(ASK)
    first = demo.cells()
    demo.ask("Copy: red blue green")
    demo.page.get_by_role("button", name="Show the canvas of model message 2").click()
    assert [c["id"] for c in demo.cells()] == [c["id"] for c in first]


def test_a_recording_that_comes_late_does_not_replace_a_file_opened_since(demo: DemoPage, tmp_path: Path) -> None:
    demo.ask(ASK)
    file = demo.download("#chat-stage .stage-foot button", tmp_path / "mine.jsonl")
    held: list[Any] = []
    demo.page.route("**/api/gallery/*.jsonl", lambda route: held.append(route))  # a list cannot be called
    with demo.page.expect_request("**/api/gallery/*.jsonl"):
        demo.mode("gallery")
    demo.page.set_input_files("#gallery-file", str(file))
    heading = demo.page.locator("#gallery-stage h2")
    heading.get_by_text("mine.jsonl").wait_for()
    with demo.page.expect_response("**/api/gallery/*.jsonl"):
        held[0].continue_()
    demo.page.wait_for_timeout(200)
    assert heading.text_content() == "mine.jsonl"
