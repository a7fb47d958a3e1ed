"""The chat of the demo in a real browser: live canvas, constraints, stop, scrubber, history, keys."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Watch
from demo_page import SLOW, DemoPage

from unmask.core.events import Accepted, Stepped, start_canvas
from unmask.sinks.recorder import read

ASK = "Tell a story about Bob the rabbit, a kite and a farm."

# One sample per frame: when, how many boxes hold a token, whether the answer's text stands in the conversation, and
# where some boxes are.
WATCH_FRAMES = """() => {
  window.frames_seen = [];
  const look = () => {
    const cells = [...document.querySelectorAll("#chat-stage .um-cell[data-position]")];
    const answer = document.querySelector("#talk .turn.assistant:last-child .prose");
    const boxes = cells.filter((c, i) => i % 50 === 0).map(c => {
      const r = c.getBoundingClientRect();
      return [r.x, r.y + document.querySelector("#chat-stage .um-frame").scrollTop, r.width, r.height].map(Math.round);
    });
    window.frames_seen.push({
      at: performance.now(),
      settled: cells.filter(c => c.dataset.kind === "new" || c.dataset.kind === "earlier").length,
      answered: Boolean(answer) && !answer.hasAttribute("aria-busy"),
      boxes: JSON.stringify(boxes), count: cells.length,
    });
    if (!window.frames_enough) requestAnimationFrame(look);
  };
  look();
}"""


@pytest.fixture
def slow(demo: DemoPage) -> DemoPage:
    """A page whose next answer takes 256 forwards."""
    demo.set(**SLOW)
    demo.until("document.querySelectorAll('#chat-stage .um-cell[data-position]').length === 256")
    return demo


def test_cells_settle_over_many_frames_before_the_answer_is_there(slow: DemoPage) -> None:
    """And no box moves meanwhile."""
    slow.page.evaluate(WATCH_FRAMES)
    slow.send(ASK)
    text = slow.answered()
    frames = slow.page.evaluate("() => { window.frames_enough = true; return window.frames_seen; }")
    end = next(f["at"] for f in frames if f["answered"] and f["settled"] == 256)
    during = [f for f in frames if 0 < f["settled"] < 256 and not f["answered"]]
    counts = [f["settled"] for f in during]
    assert len(set(counts)) >= 20
    assert counts == sorted(counts)
    assert all(f["at"] < end for f in during)
    assert end - during[0]["at"] > 300
    assert len(text.split()) > 20
    assert {f["count"] for f in frames} <= {0, 256}
    assert len({f["boxes"] for f in frames if f["count"] and f["settled"]}) == 1


def test_constraints_typed_and_clicked_hold_in_the_answer(demo: DemoPage, tmp_path: Path) -> None:
    page = demo.page
    page.fill("#message", ASK)
    page.fill("#constraints", "3:apple, 7:pear")
    page.press("#constraints", "Enter")
    assert page.locator(".chip").all_text_contents() == ["3apple×", "7pear×"]
    page.wait_for_selector("#chat-stage .um-cell[data-position][data-kind=given]")
    given = [c for c in demo.cells() if c["kind"] == "given"]
    first = demo.cells()[0]["position"]
    assert {c["position"] - first for c in given} >= {3, 7}
    page.click(f"#chat-stage .um-cell[data-position='{first + 12}']")
    page.fill("#cell-word", "boat")
    page.press("#cell-word", "Enter")
    assert page.locator(".chip").count() == 3
    page.wait_for_selector(f"#chat-stage .um-cell[data-position='{first + 12}'][data-kind=given]")
    fixed = {c["position"]: c["id"] for c in demo.cells() if c["kind"] == "given"}
    page.focus("#message")
    page.keyboard.press("Enter")
    text = demo.answered()
    assert demo.bodies()[-1]["constraints"] == {"3": "apple", "7": "pear", "12": "boat"}
    shown = {c["position"]: c["id"] for c in demo.cells()}
    assert {p: shown[p] for p in fixed} == fixed
    saved = read(demo.download("#chat-stage .stage-foot button", tmp_path / "run.jsonl"))
    accepted = next(e for e in saved.events if isinstance(e, Accepted))
    assert {p: i for p, i in enumerate(accepted.canvas) if p >= accepted.prompt_len and i >= 0} == fixed
    assert " apple" in text and " pear" in text and " boat" in text


def test_a_removed_chip_is_not_sent(demo: DemoPage) -> None:
    demo.page.fill("#constraints", "1:red, 4:blue")
    demo.page.press("#constraints", "Enter")
    demo.page.click("button[aria-label='Remove red at place 1']")
    demo.ask(ASK)
    assert demo.bodies()[-1]["constraints"] == {"4": "blue"}


def test_a_bad_constraint_is_explained_and_nothing_is_sent(demo: DemoPage) -> None:
    demo.page.fill("#constraints", "apple at 3")
    demo.page.press("#constraints", "Enter")
    assert "expected position:word" in demo.page.text_content("#constraints-wrong")
    demo.send(ASK)
    demo.page.wait_for_timeout(200)
    assert demo.bodies() == []


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_work_within_a_step(slow: DemoPage, how: str) -> None:
    slow.send(ASK)
    slow.until("document.querySelectorAll('#chat-stage .um-cell[data-position][data-kind=earlier]').length > 5")
    if how == "button":
        slow.page.click("#chat-stop")
    else:
        slow.page.keyboard.press("Escape")
    slow.answered("stopped")
    before = slow.status()
    time.sleep(0.4)
    after = slow.status()
    assert after["forwards"] == before["forwards"]
    assert after["running"] == after["waiting"] == 0
    shown, last = slow.steps()
    assert 5 < shown == last < 250
    assert "stopped" in slow.page.locator(".turn-note").last.text_content()


def test_forwards_after_the_stop_was_confirmed(slow: DemoPage) -> None:
    """The reply to /api/stop may overtake the forward that is under way, and no other."""
    slow.send(ASK)
    slow.until("document.querySelectorAll('#chat-stage .um-cell[data-position][data-kind=earlier]').length > 5")
    with slow.page.expect_response("**/api/stop"):
        slow.page.click("#chat-stop")
    first = slow.status()["forwards"]
    slow.answered("stopped")
    assert slow.status()["forwards"] - first <= 1


def test_a_closed_page_ends_its_work(demo: DemoPage, open_demo: Callable[..., DemoPage]) -> None:
    other = open_demo()
    other.set(**SLOW | {"max_tokens": 900, "steps": 900})
    other.send(ASK)
    other.page.wait_for_selector("#chat-stage .um-cell[data-position][data-kind=earlier]")
    other.page.close()
    deadline = time.monotonic() + 5
    while demo.status()["running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert demo.status()["running"] == 0


def test_the_scrubber_shows_every_step_as_the_saved_recording_says(demo: DemoPage, tmp_path: Path) -> None:
    demo.set(policy="low_confidence")
    demo.ask(ASK)
    recording = read(demo.download("#chat-stage .stage-foot button", tmp_path / "run.jsonl"))
    accepted = next(e for e in recording.events if isinstance(e, Accepted))
    canvas, states = start_canvas(accepted), []
    states.append(list(canvas.ids))
    for event in recording.events:
        if isinstance(event, Stepped):
            canvas.apply(event)
            states.append(list(canvas.ids))
    assert demo.steps() == (len(states) - 1, len(states) - 1)
    for k in [*range(len(states)), 3, 0, len(states) - 1]:
        demo.scrub(k)
        shown = [c["id"] for c in demo.cells()]
        assert shown == states[k][accepted.prompt_len :], f"step {k}"


def test_saved_files_are_those_of_the_server(demo: DemoPage, tmp_path: Path) -> None:
    demo.ask(ASK)
    saved = demo.download("#chat-stage .stage-foot button", tmp_path / "run.jsonl")
    page = demo.download("#chat-stage .stage-foot a", tmp_path / "run.html")
    job = demo.page.get_attribute("#chat-stage .stage-foot a", "href").removesuffix(".html")
    assert saved.read_text() == demo.page.request.get(f"{demo.url.rstrip('/')}{job}.jsonl").text()
    assert page.read_text().lower().startswith("<!doctype html>")


def test_markup_in_a_prompt_stays_text(demo: DemoPage) -> None:
    evil = "<script>window.hacked=1</script><img src=x onerror='window.hacked=2'> [[4]] Copy: <b>red</b>"
    demo.page.fill("#constraints", "2:<img/src=x/onerror=window.hacked=3>")
    demo.page.press("#constraints", "Enter")
    demo.page.click("#system-box summary")
    demo.page.fill("#system", "<i>be brief</i>")
    demo.ask(evil)
    assert demo.page.locator("#talk .turn.user .prose").text_content() == evil
    assert demo.bodies()[-1]["messages"][1]["content"] == evil
    assert demo.page.evaluate("[window.hacked, document.querySelectorAll('main img, main script, main b').length]") == [
        None,
        0,
    ]


# ---- the conversation ------------------------------------------------------------------------------------------------


def test_edited_and_deleted_messages_are_what_is_sent(demo: DemoPage) -> None:
    page = demo.page
    page.click("#system-box summary")
    page.fill("#system", "Answer briefly.")
    first = demo.ask("Copy: red blue green")
    second = demo.ask("Copy: one two")
    assert [m["content"] for m in demo.bodies()[-1]["messages"]] == [
        "Answer briefly.", "Copy: red blue green", first, "Copy: one two",
    ]  # fmt: skip
    page.locator(".turn.user").first.get_by_role("button", name="Edit").click()
    page.fill("#edit-0", "Copy: cat dog")
    page.locator(".turn.user").first.get_by_role("button", name="Save", exact=True).click()
    page.locator(".turn.assistant").first.get_by_role("button", name="Delete").click()
    assert page.locator(".turn .prose").all_text_contents() == ["Copy: cat dog", "Copy: one two", second]
    page.get_by_role("button", name="Resend you message 2").click()
    demo.answered()
    assert demo.bodies()[-1]["messages"] == [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Copy: cat dog"},
        {"role": "user", "content": "Copy: one two"},
    ]


def test_an_edited_answer_is_sent_as_edited(demo: DemoPage) -> None:
    page = demo.page
    demo.ask("Copy: red")
    page.get_by_role("button", name="Edit model message 2").click()
    page.fill("#edit-1", "green")
    page.locator("#edit-1").press("Control+Enter")
    demo.ask("Copy: blue")
    assert [m["content"] for m in demo.bodies()[-1]["messages"]] == ["Copy: red", "green", "Copy: blue"]


def test_resending_an_early_question_takes_later_turns_away(demo: DemoPage) -> None:
    demo.ask("Copy: red")
    demo.ask("Copy: blue")
    demo.page.get_by_role("button", name="Resend you message 1").click()
    demo.answered()
    assert demo.bodies()[-1]["messages"] == [{"role": "user", "content": "Copy: red"}]
    assert demo.page.locator(".turn").count() == 2


def test_regenerate_asks_the_same_again(demo: DemoPage) -> None:
    first = demo.ask(ASK)
    demo.page.get_by_role("button", name="Regenerate").click()
    demo.until("document.querySelectorAll('#talk [aria-busy]').length === 0")
    assert demo.answered() == first
    one, two = demo.bodies()
    assert one["messages"] == two["messages"]
    assert two["seed"] == one["seed"] + 1


def test_clear_forgets_everything(demo: DemoPage) -> None:
    demo.ask("Copy: red")
    demo.page.click("#chat-clear")
    assert demo.page.locator(".turn").count() == 0
    demo.ask("Copy: blue")
    assert demo.bodies()[-1]["messages"] == [{"role": "user", "content": "Copy: blue"}]


def test_raw_form_sends_the_text_alone(demo: DemoPage) -> None:
    demo.ask("Copy: red")
    demo.page.select_option("#prompt-form", "raw")
    demo.ask("Once upon a time")
    body = demo.bodies()[-1]
    assert body["prompt"] == "Once upon a time"
    assert "messages" not in body


# ---- keys, words for who listens, the queue --------------------------------------------------------------------------


def test_the_page_works_with_the_keyboard_alone(demo: DemoPage) -> None:
    page, key = demo.page, demo.page.keyboard
    key.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    key.press("Enter")
    assert page.evaluate("location.hash") == "#message"
    page.focus("#message")
    key.type("Copy: red")
    key.press("Shift+Enter")
    key.type("blue")
    key.press("Enter")
    demo.answered()
    assert demo.bodies()[-1]["messages"][0]["content"] == "Copy: red\nblue"
    assert page.evaluate("document.activeElement.id") == "message"
    page.focus("#tab-chat")
    key.press("ArrowRight")
    assert page.get_attribute("#tab-infill", "aria-selected") == "true"
    assert page.is_visible("#mode-infill") and not page.is_visible("#mode-chat")
    key.press("Home")
    assert page.evaluate("document.activeElement.id") == "tab-chat"
    page.focus("#chat-stage .um-cell[tabindex='0']")
    key.press("ArrowRight")
    key.press("Enter")
    assert page.evaluate("document.activeElement.id") == "cell-word"
    key.press("Escape")
    assert page.locator("#cell-word").count() == 0
    assert "um-cell" in page.evaluate("document.activeElement.className")


def test_focus_can_be_seen_everywhere(demo: DemoPage) -> None:
    demo.ask("Copy: red")
    bad = []
    for _ in range(60):
        demo.page.keyboard.press("Tab")
        seen = demo.page.evaluate(
            """() => { const e = document.activeElement, own = getComputedStyle(e);
              const inner = e.matches(".um-cell") ? getComputedStyle(e.firstElementChild) : own;
              const seen = e === document.body || parseFloat(inner.outlineWidth) >= 2;
              return [e.id || e.className || e.tagName, seen]; }"""
        )
        if not seen[1]:
            bad.append(seen[0])
    assert bad == []


def test_progress_and_the_answer_are_announced(demo: DemoPage) -> None:
    demo.set(**SLOW | {"max_tokens": 100, "steps": 100})
    demo.until("document.querySelectorAll('#chat-stage .um-cell[data-position]').length === 100")
    demo.page.evaluate(
        """() => { window.said = []; const last = new Map(); new MutationObserver(() => {
          for (const r of document.querySelectorAll("[aria-live=polite]")) {
            if (r.textContent && last.get(r) !== r.textContent) window.said.push(r.textContent);
            last.set(r, r.textContent);
          } }).observe(document.body, {subtree: true, childList: true, characterData: true}); }"""
    )
    demo.send(ASK)
    text = demo.answered()
    said = demo.page.evaluate("window.said")
    assert said[0].startswith("Started")
    assert said[-1] == f"Finished after {demo.steps()[1]} steps. {text}"
    assert len(said) < 12


def test_the_place_in_the_queue_is_shown(open_demo: Callable[..., DemoPage], watch: Watch) -> None:
    first, second = open_demo(), open_demo()
    first.page.evaluate(
        """settings => { window.other = new AbortController(); fetch("/api/generate", {
          method: "POST", signal: window.other.signal, headers: {"Content-Type": "application/json"},
          body: JSON.stringify({prompt: "Once", max_tokens: 900, alone: true, client: "other", settings}),
        }).catch(() => 0); }""",
        {"policy": "low_confidence", "steps": 900, "logits_eos_inf": True},
    )
    while not first.status()["running"]:
        time.sleep(0.02)
    second.send("Copy: red")
    second.page.wait_for_selector("#chat-stage .pill[data-state=waiting]")
    assert second.page.text_content("#chat-stage .pill") == "waiting, next in the queue"
    first.page.evaluate("window.other.abort()")
    second.answered()


def test_the_playback_delay_changes_the_display_only(open_demo: Callable[..., DemoPage]) -> None:
    demo = open_demo(delay=250)
    demo.set(policy="low_confidence")
    before = demo.status()["finished"]
    demo.send(ASK)
    demo.page.wait_for_selector("#chat-stage .pill[data-state=showing]")
    assert demo.status()["finished"] == before + 1
    assert demo.steps()[1] < 32
    assert "delay" not in json.dumps(demo.bodies()[-1])
    demo.page.fill("#pref-delay", "0")
    demo.answered()
    assert demo.steps() == (32, 32)


def test_clear_during_a_run_stops_it_and_forgets_it(slow: DemoPage) -> None:
    slow.send(ASK)
    slow.until("document.querySelectorAll('#chat-stage .um-cell[data-position][data-kind=earlier]').length > 5")
    slow.page.click("#chat-clear")
    slow.send("Copy: red")
    slow.page.click("#chat-stop")
    slow.page.wait_for_selector("#chat-stage .pill[data-state=stopped]")
    assert slow.page.locator("#talk .turn.user .prose").all_text_contents() == ["Copy: red"]
    deadline = time.monotonic() + 5
    while slow.status()["running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert slow.status()["running"] == 0
    assert slow.page.is_enabled("#send")


def test_an_edit_that_was_not_saved_is_not_lost_by_sending_or_deleting(demo: DemoPage) -> None:
    page = demo.page
    demo.set(max_tokens=8)
    demo.ask("Copy: red")
    demo.ask("Copy: blue")
    page.get_by_role("button", name="Edit you message 1").click()
    page.fill("#talk textarea", "Copy: green")
    page.get_by_role("button", name="Edit you message 3").click()
    page.fill("#talk textarea", "Copy: pink")
    demo.send("Copy: kite")
    demo.answered()
    users = [m["content"] for m in demo.bodies()[-1]["messages"] if m["role"] == "user"]
    assert users == ["Copy: green", "Copy: pink", "Copy: kite"]
    page.get_by_role("button", name="Edit you message 5").click()
    page.fill("#talk textarea", "Copy: farm")
    page.get_by_role("button", name="Delete you message 1").click()
    assert page.locator("#talk .turn.user .prose").all_text_contents() == ["Copy: pink", "Copy: farm"]
