"""The view in a real Chromium: it folds as Python does, its boxes stay where they are, it can be read, used without a
mouse and heard, and text is never markup.
"""

from __future__ import annotations

import math
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from golden_recordings import FOLDER, NAMES, kinds_of, steps_of

from unmask.core.events import Accepted, BlockDone, Event, Failed, Finished, Opened, Stepped, Work, fold
from unmask.sinks.cells import label, level
from unmask.sinks.html import SCRIPTS, page, web_asset
from unmask.sinks.recorder import Answer, Lines, Recording, as_text, read

HEADER = {"format": "unmask-recording", "version": 1, "model": "toy"}
STRANGE = {
    0: " plain",
    1: "\n",
    2: "مرحبا",
    3: " שלום",
    4: "e\u0301\u0323\u0308",
    5: "👩‍👩‍👧‍👦",
    6: "a\x07b",
    7: "日本語テキスト",
    8: "antidisestablishmentarianism-and-more",
    9: "<|eos|>",
    10: "\u202eevil\u202c",
}


def toy(seed: int, blocks: int = 3, size: int = 8, steps: int = 6, end: int | None = None) -> Recording:
    """A run with everything events allow: fills, edits, remasks, given tokens, a confidence that JSON cannot say."""
    rnd = random.Random(seed)
    n = 2 + blocks * size
    given = {4, 11}
    canvas = tuple(rnd.choice(list(STRANGE)) if p < 2 or p in given else -1 for p in range(n))
    spans = tuple((2 + b * size, 2 + (b + 1) * size) for b in range(blocks))
    events: list[Event] = [Accepted("0", canvas, tuple(p < 2 or p in given for p in range(n)), 2, spans)]
    nfe = 0
    for block, (start, stop) in enumerate(spans):
        events.append(Opened("0", block, start, stop))
        for _ in range(steps):
            nfe += rnd.choice((1, 1, 2))
            places = rnd.sample([p for p in range(2, stop) if p not in given], rnd.randrange(0, 7))
            writes = tuple((p, rnd.choice(list(STRANGE)), _sureness(rnd), rnd.choice((1, 1, 2, 3))) for p in places)
            events.append(Stepped("0", nfe, Work("full", 2 * n, len(writes), 0.002, 1), writes))
        events.append(BlockDone("0", start, stop, steps))
    events.append(Finished("0", "stop", nfe, n if end is None else end))
    return Recording(HEADER, tuple(events), STRANGE, {"0": Answer("the answer", 7)})


def _sureness(rnd: random.Random) -> float:
    return rnd.choice((rnd.random(), rnd.random(), -3 * rnd.random(), 0.0, 0.3, 0.7, 1.0, -math.inf))


def lines_of(recording: Recording) -> list[str]:
    lines = Lines({}, recording.pieces.__getitem__)
    rows = [{**lines.begin(), **recording.header}]
    for event in recording.events:
        rows += lines.of(event)
    return [as_text(row) for row in (*rows, *lines.finish(recording.answers))]


def show(tab: Any, recording: Recording, folder: Path, title: str = "") -> None:
    """Opens the exported page of a recording from disk."""
    file = folder / "run.html"
    file.write_text(page(recording, title=title), encoding="utf-8")
    tab.goto(file.as_uri())


def bare(tab: Any, folder: Path) -> None:
    """A page with the view alone."""
    scripts = "".join(f"<script>{web_asset(name)}</script>" for name in SCRIPTS)
    file = folder / "bare.html"
    file.write_text(
        f'<!doctype html><meta charset="utf-8"><style>{web_asset("view.css")}</style>'
        f'<body class="um-theme"><div id="player"></div>{scripts}',
        encoding="utf-8",
    )
    tab.goto(file.as_uri())


def close(a: float, b: float) -> bool:
    return a == b or math.isclose(a, b, rel_tol=1e-12)


# ------------------------------------------------------------------------------------------ the same fold as Python's

STATES = """() => {
  const recording = Unmask.player.recording, all = {};
  for (const id of recording.ids()) {
    const run = recording.run(id), up = [], stats = [];
    for (let k = 0; k <= run.steps; k++) { up.push(run.state(k)); stats.push(run.stats(k)); }
    const down = [];
    for (let k = run.steps; k >= 0; k--) down.unshift(run.state(k));
    const same = JSON.stringify(up) === JSON.stringify(down);
    const jumps = [run.steps, 0, run.steps >> 1].every((k) => JSON.stringify(run.state(k)) === JSON.stringify(up[k]));
    all[id] = {up, stats, same, jumps};
  }
  return all;
}"""


def same_as_python(recording: Recording, found: dict[str, Any]) -> None:
    assert list(found) == list(fold(recording.events))
    for request, run in found.items():
        canvases = steps_of(recording, request)
        assert len(run["up"]) == len(canvases)
        assert run["same"] and run["jumps"]
        for canvas, cells, stats in zip(canvases, run["up"], run["stats"], strict=True):
            assert [c["id"] for c in cells] == canvas.ids
            assert [c["step"] for c in cells] == canvas.step
            assert all(close(c["confidence"], x) for c, x in zip(cells, canvas.confidence, strict=True))
            assert [c["kind"] for c in cells] == kinds_of(canvas)
            again = [p for p in canvas.fresh if canvas.ids[p] < 0]
            assert [p for p, c in enumerate(cells) if c["remasked"]] == sorted(again)
            assert stats["nfe"] == canvas.nfe
            assert stats["holes"] == sum(i < 0 for i in canvas.ids[canvas.prompt_len :])


@pytest.mark.parametrize("name", NAMES)
def test_every_step_of_a_golden_recording_is_pythons(page: Any, tmp_path: Path, name: str) -> None:
    recording = read(FOLDER / f"{name}.jsonl")
    show(page, recording, tmp_path)
    found = page.evaluate(STATES)
    same_as_python(recording, found)
    for request, answer in recording.answers.items():
        assert found[request]["stats"][-1]["tokens"] == answer.completion_tokens


@pytest.mark.parametrize("seed", range(6))
def test_every_step_of_a_run_with_edits_and_remasks_is_pythons(page: Any, tmp_path: Path, seed: int) -> None:
    recording = toy(seed, end=20 if seed % 2 else None)
    assert any(kind == 3 for e in recording.events if isinstance(e, Stepped) for *_, kind in e.writes)
    show(page, recording, tmp_path)
    same_as_python(recording, page.evaluate(STATES))


def test_the_scrubber_shows_step_k_exactly(page: Any, tmp_path: Path) -> None:
    for recording, request in ((read(FOLDER / "birwkv.jsonl"), "0"), (toy(1, end=20), "0")):
        show(page, recording, tmp_path)
        canvases = steps_of(recording, request)
        for k in random.Random(0).sample(range(len(canvases)), min(len(canvases), 12)):
            page.locator("input[type=range]").fill(str(k))
            cells = page.evaluate(
                """() => [...document.querySelectorAll('[role=gridcell]')]
                .map((c) => ({...c.dataset, text: c.textContent}))"""
            )
            canvas, kinds = canvases[k], kinds_of(canvases[k])
            assert [int(c["position"]) for c in cells] == list(range(canvas.prompt_len, len(canvas.ids)))
            for cell in cells:
                p = int(cell["position"])
                said = (int(cell["token"]), int(cell["step"]), cell["kind"])
                assert said == (canvas.ids[p], canvas.step[p], kinds[p])
                settled = kinds[p] in ("new", "earlier")
                assert cell["level"] == (level(canvas.confidence[p]) if settled else "")
                shown = settled or kinds[p] == "given"
                assert cell["text"] == (label(recording.pieces[canvas.ids[p]]) if shown else "")
            assert page.locator("[data-count=nfe]").inner_text() == str(canvas.nfe)


def test_labels_and_levels_are_pythons(page: Any, tmp_path: Path) -> None:
    bare(page, tmp_path)
    rnd = random.Random(3)
    signs = [chr(c) for c in range(0x30000) if unicodedata.category(chr(c)) != "Cn"]
    pieces = [p for name in NAMES for p in read(FOLDER / f"{name}.jsonl").pieces.values()]
    pieces += [
        *STRANGE.values(),
        "",
        " ",
        "  ",
        " \n",
        "\x1c",
        " \x85",
        " \x1c",
        " \x1f\x1d",
        "\ufeff",
        " \ufeff",
        "\ud83d",
        "\ufffe",
        "\u2028",
    ]
    pieces += [
        "<|endoftext|>",
        "<|im_end|>",
        "</s>",
        "</s> ",
        " </s>",
        "<|eot_id|>\n",
        "\r\t",
        "\xa0",
        " \u3000",
        "\xad",
    ]
    pieces += ["".join(rnd.choices(signs, k=rnd.randrange(1, 5))) for _ in range(3000)]
    units = [[ord(c) for c in p] for p in pieces]
    made = "(all) => all.map((units) => Unmask.label(units.map((u) => String.fromCodePoint(u)).join('')))"
    codes = page.evaluate(f"(all) => ({made})(all).map((s) => [...s].map((c) => c.codePointAt(0)))", units)
    wrong = [(p, c) for p, c in zip(pieces, codes, strict=True) if [ord(x) for x in label(p)] != c]
    assert wrong == []
    values = [
        0.0,
        0.3,
        0.7,
        1.0,
        1.5,
        -0.0,
        -5.0,
        -1.2039,
        -1.204,
        -0.3566,
        -0.3567,
        *(rnd.uniform(-4, 1) for _ in range(500)),
    ]
    assert page.evaluate("(all) => all.map(Unmask.level)", values) == [level(v) for v in values]
    assert page.evaluate("() => [NaN, -Infinity].map(Unmask.level)") == [level(math.nan), level(-math.inf)]


def test_a_recording_of_another_version_is_refused_in_words(page: Any, tmp_path: Path) -> None:
    bare(page, tmp_path)
    refused = (
        """(header) => { try { new Unmask.Recording().push(header); return null } catch (e) { return e.message } }"""
    )
    assert page.evaluate(refused, {**HEADER, "version": 1}) is None
    assert "version 2; this page reads version 1" in page.evaluate(refused, {**HEADER, "version": 2})
    assert "Not a recording" in page.evaluate(refused, {**HEADER, "format": "other"})


# -------------------------------------------------------------------------------------------- where everything stands

BOXES = """() => [...document.querySelectorAll('[role=gridcell], .um-cells .um-chip')].map((c) => {
  const r = c.getBoundingClientRect(); return [r.x, r.y, r.width, r.height];
})"""
PARTS = """() => ['prompt', 'frame', 'detail', 'buttons', 'slide', 'speed', 'counts', 'foot'].map((s) => '.um-' + s)
  .map((s) => document.querySelector(s).getBoundingClientRect()).map((r) => [r.x, r.y, r.width, r.height])"""


def overlapping(boxes: Sequence[Sequence[float]], slack: float = 0.02) -> list[tuple[int, int]]:
    def meet(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(a[i] + slack < b[i] + b[i + 2] and b[i] + slack < a[i] + a[i + 2] for i in (0, 1))

    return [(i, j) for i in range(len(boxes)) for j in range(i) if meet(boxes[i], boxes[j])]


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("name", [*NAMES, "toy"])
def test_boxes_never_move_and_nothing_overlaps(open_page: Any, tmp_path: Path, name: str, width: int) -> None:
    recording = toy(2, end=20) if name == "toy" else read(FOLDER / f"{name}.jsonl")
    tab = open_page(width=width)
    show(tab, recording, tmp_path)
    tab.evaluate("() => Unmask.player.view._frame.style.maxHeight = 'none'")
    first, parts = tab.evaluate(BOXES), tab.evaluate(PARTS)
    steps = tab.evaluate("() => Unmask.player.recording.run(Unmask.player.request).steps")
    for k in range(steps + 1):
        tab.evaluate("(k) => Unmask.player.seek(k)", k)
        assert tab.evaluate(BOXES) == first
        assert tab.evaluate(PARTS) == parts
    slots, chips = first[0::2], first[1::2]
    assert overlapping(slots) == [] and overlapping(chips) == []
    assert overlapping(parts) == []
    assert all(x >= 0 and x + w <= width for x, _, w, _ in chips)
    assert tab.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [360, 1600])
def test_boxes_of_a_live_run_never_move(open_page: Any, tmp_path: Path, width: int) -> None:
    tab = open_page(width=width)
    bare(tab, tmp_path)
    lines = lines_of(toy(4, end=20))
    tab.evaluate(LIVE)
    first = None
    for line in lines:
        tab.evaluate("(line) => { rec.push(Unmask.parse(line)); player.update(); }", line)
        boxes = tab.evaluate(BOXES)
        if boxes:
            first = first or boxes
            assert boxes == first
    assert first is not None and len({w for _, _, w, _ in first[0::2]}) <= 2  # equal but for half pixels
    assert overlapping(first[1::2]) == []
    assert tab.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255); };
  const light = ([r, g, b]) => [r, g, b].map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 1) return colour;
      if (colour[3] > 0) throw new Error('half transparent: ' + e.className);
    }
    throw new Error('no background');
  };
  const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const e = node.parentElement, style = getComputedStyle(e);
    if (!node.textContent.trim() || e.closest('script, noscript') || !e.checkVisibility()) continue;
    for (let up = e; up; up = up.parentElement) if (getComputedStyle(up).opacity !== '1') throw new Error('opacity');
    const [a, b] = [light(rgba(style.color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const cell = e.closest('.um-cell');
    found.push([ratio, cell ? `${cell.dataset.kind} ${cell.dataset.level}` : e.tagName + '.' + e.className]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("forced", [False, True])
def test_every_text_can_be_read(open_page: Any, tmp_path: Path, scheme: str, forced: bool) -> None:
    """Contrast of at least 4.5 in both themes and palettes; a forced theme wins over the system's."""
    system = {"light": "dark", "dark": "light"}[scheme] if forced else scheme
    tab = open_page(color_scheme=system)
    show(tab, read(FOLDER / "nano-llada.jsonl"), tmp_path, title="Apples")
    if forced:
        tab.evaluate("(theme) => document.documentElement.dataset.theme = theme", scheme)
    tab.evaluate("() => document.querySelector('details').open = true")
    tab.evaluate(
        """() => { const more = document.querySelector('#player').appendChild(document.createElement('div'));
        window.view = new Unmask.CanvasView(more, {showPrompt: true}); }"""
    )
    dark = tab.evaluate("() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((v) => v < 128)")
    assert dark == (scheme == "dark")
    seen: set[str] = set()
    for palette in ("published", "safe"):
        for recording in (read(FOLDER / "nano-llada.jsonl"), toy(1)):
            tab.evaluate(
                """([lines, palette]) => { window.rec = new Unmask.Recording();
                lines.forEach((l) => rec.push(Unmask.parse(l)));
                view.palette = Unmask.player.palette = palette; }""",
                [lines_of(recording), palette],
            )
            for k in range(12):
                tab.evaluate("(k) => { Unmask.player.seek(k); view.show(rec.run('0'), k, rec.pieces) }", k)
                found = tab.evaluate(CONTRAST)
                assert [f for f in found if f[0] < 4.5] == []
                seen |= {where for _, where in found}
    assert {"new low", "new middle", "new high", "earlier low", "earlier high", "given ", "prompt "} <= seen


# --------------------------------------------------------------------------------------- playing, keys and listening

LIVE = """() => {
  window.rec = new Unmask.Recording();
  window.player = new Unmask.Player(document.getElementById('player'), rec, {live: true});
  window.heard = []; window.steps = [];
  new MutationObserver(() => heard.push(document.querySelector('[aria-live]').textContent))
    .observe(document.querySelector('[aria-live]'), {childList: true, characterData: true, subtree: true});
  document.getElementById('player').addEventListener('unmask-step', (e) => steps.push(e.detail.k));
}"""


def test_an_exported_file_plays_from_disk_without_a_network(open_page: Any, tmp_path: Path) -> None:
    recording = read(FOLDER / "nano.jsonl")
    tab = open_page(offline=True)
    show(tab, recording, tmp_path)
    assert tab.locator("#answer p").inner_text() == recording.answers["0"].text
    tab.evaluate(
        """() => { window.seen = []; document.getElementById('player')
        .addEventListener('unmask-step', (e) => seen.push([e.detail.k, performance.now()])); }"""
    )
    tab.locator(".um-speed select").select_option("4")
    tab.get_by_role("button", name="Play").click()
    last = len(steps_of(recording, "0")) - 1
    tab.wait_for_function("(k) => Unmask.player.k === k && !Unmask.player.playing && seen.length > 2", arg=last)
    seen = tab.evaluate("() => seen")
    assert [k for k, _ in seen] == list(range(last + 1))
    assert seen[-1][1] - seen[0][1] > 20 * last  # one by one, not all at once
    assert tab.get_by_role("button", name="Play").is_visible()
    assert "Finished" in tab.locator("[aria-live]").text_content()


def test_every_request_of_a_recording_can_be_picked(page: Any, tmp_path: Path) -> None:
    recording = read(FOLDER / "nano-llada-three.jsonl")
    show(page, recording, tmp_path)
    for number, request in enumerate(recording.answers, 1):
        page.get_by_label("Answer").first.select_option(label=f"{number} of 3")
        assert page.locator("#answer p").text_content() == recording.answers[request].text
        words = "".join(recording.pieces[i] for i in fold(recording.events)[request].ids[:3])
        assert words.split(">")[-1].strip() in page.locator(".um-prompt").inner_text()


def test_it_is_used_from_the_keyboard(page: Any, tmp_path: Path) -> None:
    show(page, read(FOLDER / "nano.jsonl"), tmp_path)
    k = "() => Unmask.player.k"
    last = page.evaluate(k)
    page.locator("input[type=range]").focus()
    for key, expected in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", last)):
        page.keyboard.press(key)
        assert page.evaluate(k) == expected
    page.keyboard.press("Space")
    assert page.evaluate("() => Unmask.player.playing")
    page.keyboard.press("Space")
    assert not page.evaluate("() => Unmask.player.playing")
    page.get_by_role("button", name="First step").focus()
    page.keyboard.press("Space")
    assert page.evaluate("() => [Unmask.player.k, Unmask.player.playing]") == [0, False]  # a button keeps its own key
    page.keyboard.press("End")
    assert page.locator("[role=gridcell][tabindex='0']").count() == 1
    page.locator("[role=gridcell][tabindex='0']").focus()
    focused = "() => Number(document.activeElement.dataset.position)"
    start = page.evaluate(focused)
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == start + 1
    detail = page.locator(".um-detail").inner_text()
    first = page.locator("[data-position]").first.evaluate("e => Number(e.dataset.position)")
    assert f"position {start + 1 - first} " in detail and "confidence" in detail and "step" in detail
    page.keyboard.press("ArrowDown")
    below = page.evaluate(focused)
    assert below > start + 1
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) < below
    page.keyboard.press("End")
    assert page.evaluate(focused) == start + 47
    page.keyboard.press("Home")
    assert page.evaluate(focused) == start
    assert page.locator("[role=gridcell][tabindex='0']").count() == 1
    assert page.evaluate(k) == last  # the boxes' keys are their own
    page.keyboard.press("Space")
    assert page.evaluate("() => Unmask.player.playing")


def test_every_control_has_a_name_and_can_be_reached_with_tab(page: Any, tmp_path: Path) -> None:
    show(page, read(FOLDER / "nano.jsonl"), tmp_path)
    names = []
    for _ in range(12):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                """() => { const e = document.activeElement;
                return e.getAttribute('aria-label') || (e.labels && e.labels[0] && e.labels[0].textContent.trim())
                  || e.textContent.trim() || e.title; }"""
            )
        )
    for name in ("Bob", "First step", "One step back", "Play", "One step forward", "Last step", "Step"):
        assert name in names
    assert any("Speed" in n for n in names) and "Colour-blind safe" in names and "How it was made" in names


def test_hovering_tells_token_confidence_and_step(page: Any, tmp_path: Path) -> None:
    recording = read(FOLDER / "nano.jsonl")
    show(page, recording, tmp_path)
    canvas = fold(recording.events)["0"]
    p = canvas.prompt_len + 2
    page.locator(f"[data-position='{p}']").hover()
    expected = f"position 2 · “rabbit” · confidence {canvas.confidence[p]:.2f} · step {canvas.step[p]}"
    assert page.locator(".um-detail").inner_text() == expected
    assert page.locator(f"[data-position='{p}']").get_attribute("title") == expected


def test_a_live_run_is_followed_until_the_user_scrubs(page: Any, tmp_path: Path) -> None:
    bare(page, tmp_path)
    lines = lines_of(toy(5))
    page.evaluate(LIVE)
    push = "(lines) => { for (const l of lines) rec.push(Unmask.parse(l)); player.update(); }"
    k, steps = "() => player.k", "() => rec.run('0').steps"
    page.evaluate(push, lines[:8])
    assert page.evaluate(k) == page.evaluate(steps) > 0
    page.locator("input[type=range]").fill("1")
    page.evaluate(push, lines[8:12])
    assert page.evaluate(k) == 1 < page.evaluate(steps)
    assert page.locator("input[type=range]").get_attribute("max") == str(page.evaluate(steps))
    page.get_by_role("button", name="Last step").click()
    page.evaluate(push, lines[12:15])
    assert page.evaluate(k) == page.evaluate(steps)
    page.get_by_role("button", name="Pause").click()
    held = page.evaluate(k)
    page.evaluate(push, lines[15:])
    assert page.evaluate(k) == held < page.evaluate(steps)


@pytest.mark.parametrize("width", [700, 1000, 1120, 1400])
def test_how_it_ended_stands_beside_nothing_else(page: Any, tmp_path: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    show(page, read(FOLDER / "nano-llada.jsonl"), tmp_path)
    spot = "s => document.querySelector(s).getBoundingClientRect().toJSON()"
    page.evaluate("() => { document.querySelector('.um-state').textContent = 'Finished: the canvas is full'; }")
    said, box = page.evaluate(spot, ".um-state"), page.evaluate(spot, ".um-safe")
    assert said["right"] <= box["left"] or said["bottom"] <= box["top"] or said["top"] >= box["bottom"]
    assert said["height"] < 30, "one line"


def test_a_live_run_that_ended_is_no_longer_followed(page: Any, tmp_path: Path) -> None:
    bare(page, tmp_path)
    lines = lines_of(toy(5))
    page.evaluate(LIVE)
    push = "(lines) => { for (const l of lines) rec.push(Unmask.parse(l)); player.update(); }"
    page.evaluate(push, lines[:8])
    assert page.get_by_role("button", name="Pause").is_visible()
    page.evaluate(push, lines[8:])
    assert page.get_by_role("button", name="Play").is_visible()
    assert page.evaluate("() => player.k") == page.evaluate("() => rec.run('0').steps")


def test_the_prompts_boxes_say_that_they_are_the_prompt(page: Any, tmp_path: Path) -> None:
    bare(page, tmp_path)
    titles = page.evaluate(
        """(lines) => {
      const rec = new Unmask.Recording();
      for (const l of lines) rec.push(Unmask.parse(l));
      const view = new Unmask.CanvasView(document.body.appendChild(document.createElement("div")), {showPrompt: true});
      const run = rec.run(rec.ids()[0]);
      view.show(run, 0, rec.pieces);
      return [view.cell(0).title, view.cell(run.promptLen).title];
    }""",
        (FOLDER / "nano.jsonl").read_text(encoding="utf-8").splitlines(),
    )
    assert titles[0].startswith("prompt \u00b7")
    assert titles[1] == "position 0 \u00b7 masked"


def test_who_listens_hears_the_start_some_progress_and_the_answer(page: Any, tmp_path: Path) -> None:
    bare(page, tmp_path)
    lines = lines_of(toy(5))
    page.evaluate(LIVE)
    push = "(line) => { rec.push(Unmask.parse(line)); player.update(); }"
    for line in lines[:12]:
        page.evaluate(push, line)
    page.wait_for_timeout(2100)
    for line in lines[12:]:
        page.evaluate(push, line)
    heard = page.evaluate("() => heard")
    assert heard[0].startswith("Started: 24 positions")
    assert any("settled" in words and "masked" in words for words in heard[1:-1])
    assert heard[-1].startswith("Finished") and "the answer" in heard[-1]
    assert len(heard) <= 4  # sparingly
    live = page.locator("[aria-live=polite]")
    assert live.count() == 1 and "the answer" in live.text_content()


def test_a_cell_can_be_chosen_by_mouse_and_by_key(page: Any, tmp_path: Path) -> None:
    bare(page, tmp_path)
    page.evaluate(
        """(lines) => { window.chosen = []; window.rec = new Unmask.Recording();
        lines.forEach((l) => rec.push(Unmask.parse(l)));
        new Unmask.Player(document.getElementById('player'), rec,
          {canvas: {onCell: (position, info) => chosen.push([position, info.kind])}}); }""",
        lines_of(toy(0)),
    )
    page.locator("[data-position='4']").click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    chosen = page.evaluate("() => chosen")
    assert chosen[0] == [4, "given"] and chosen[1][0] == 5


def test_the_canvas_is_a_grid_of_blocks_for_who_listens(page: Any, tmp_path: Path) -> None:
    recording = read(FOLDER / "nano.jsonl")
    show(page, recording, tmp_path)
    canvas = fold(recording.events)["0"]
    grid = page.get_by_role("grid", name="Canvas of tokens")
    assert grid.get_by_role("row").count() == sum(stop > canvas.prompt_len for _, stop in canvas.blocks)
    assert grid.get_by_role("gridcell").count() == len(canvas.ids) - canvas.prompt_len
    page.evaluate("() => Unmask.player.seek(0)")
    assert grid.get_by_role("gridcell", name="masked").count() == len(canvas.ids) - canvas.prompt_len
    assert page.locator("input[type=range]").get_attribute("aria-valuetext") == "step 0 of 12, 0 settled, 48 masked"


ODD: list[list[Event]] = [
    [],
    [Accepted("0", (0, -1), (True, False), 1, ((1, 2),))],
    [Accepted("0", (0, -1), (True, False), 1, ((1, 2),)), Finished("0", "cancelled", 0, 1)],
    [Accepted("0", (0, -1), (True, False), 1, ((1, 2),)), Failed("0", "out of <b>memory</b>")],
    [Accepted("0", (-1,), (False,), 0, ()), Stepped("0", 1, Work("full", 1, 1, 0.0), ((0, 9, 0.5, 1),))],
    [Accepted("0", (0,), (True,), 1, ()), Finished("0", "length", 0, 1)],
]


@pytest.mark.parametrize("events", ODD, ids=["nothing", "accepted", "cancelled", "failed", "no prompt", "no answer"])
def test_odd_runs_are_shown_and_every_control_does_something_harmless(
    page: Any, tmp_path: Path, events: list[Event]
) -> None:
    bare(page, tmp_path)
    page.evaluate(LIVE)
    for line in lines_of(Recording(HEADER, tuple(events), STRANGE)):
        page.evaluate("(line) => { rec.push(Unmask.parse(line)); player.update(); }", line)
    for name in ("First step", "One step forward", "Last step", "One step back"):
        page.get_by_role("button", name=name).click()
    page.keyboard.press("Space")
    page.keyboard.press("End")
    if any(isinstance(e, Failed) for e in events):
        assert page.locator(".um-state").text_content() == "Failed: out of <b>memory</b>"
    if any(isinstance(e, Finished) and e.reason == "cancelled" for e in events):
        assert page.locator(".um-state").text_content() == "Stopped"
        assert page.locator("[data-kind=after]").count() == 1


# ------------------------------------------------------------------------------------------------- text stays text


def test_markup_in_pieces_prompts_and_answers_never_runs(page: Any, tmp_path: Path) -> None:
    evil = [
        "</script><script>window.hacked = 1</script>",
        "<img src=x onerror='window.hacked = 1'>",
        "<!--<script>",
        "]]><svg onload=window.hacked=1>",
    ]
    pieces = dict(enumerate(evil))
    steps = [Stepped("0", k, Work("full", 2, 1, 0.1), ((k, k, 0.5, 1),)) for k in (1, 2, 3)]
    events = (
        Accepted("0", (0, -1, -1, -1), (True, False, False, False), 1, ((1, 4),)),
        *steps,
        Finished("0", "stop", 3, 4),
    )
    header = {**HEADER, "model": evil[1], "family": evil[0], "settings": {"0": {evil[0]: evil[1]}}}
    show(page, Recording(header, events, pieces, {"0": Answer("".join(evil), 3)}), tmp_path, title=evil[0])
    page.locator("[data-position='2']").hover()
    page.evaluate("() => document.querySelector('details').open = true")
    assert page.evaluate("() => window.hacked") is None
    assert page.evaluate("() => document.querySelectorAll('img, svg[onload]').length") == 0
    assert page.evaluate("() => document.scripts.length") == 2
    assert page.title() == evil[0]
    assert page.locator("[data-position='1']").text_content() == label(evil[1])
    assert page.locator(".um-prompt").text_content() == evil[0]
    assert page.locator("#answer p").text_content() == "".join(evil)


# ------------------------------------------------------------------------------------------------------ long runs


def test_a_long_run_stays_smooth(page: Any, tmp_path: Path) -> None:
    """2048 positions and 512 steps: another step is drawn within two frames."""
    rnd, events = random.Random(0), []
    events.append(Accepted("0", (-1,) * 2048, (False,) * 2048, 0, tuple((b, b + 64) for b in range(0, 2048, 64))))
    for k in range(512):
        if k % 16 == 0:
            events.append(Opened("0", k // 16, 4 * k, 4 * k + 64))
        fills = [(4 * k + i, rnd.randrange(9), rnd.random(), 1) for i in range(4)]
        edits = [(rnd.randrange(4 * k + 4), rnd.randrange(9), rnd.random(), 2) for _ in range(28)]
        events.append(Stepped("0", k + 1, Work("full", 2048, 4, 0.01), (*fills, *edits)))
    events.append(Finished("0", "length", 512, 2048))
    show(page, Recording(HEADER, tuple(events), {i: f" word{i}" for i in range(9)}), tmp_path)
    times = page.evaluate(
        """() => { const times = []; Unmask.player.seek(0); document.body.offsetHeight;
        for (let k = 1; k <= 256; k++) { const t = performance.now(); Unmask.player.seek(k);
          document.querySelector('.um-cells').getBoundingClientRect(); times.push(performance.now() - t); }
        return times.sort((a, b) => a - b); }"""
    )
    assert times[len(times) // 10] < 30  # the machine may be busy; drawing everything anew would never be that fast
    inside = """(p) => { const box = (e) => e.getBoundingClientRect(), frame = box(document.querySelector('.um-frame'));
      const cell = box(document.querySelector(`[data-position="${p}"]`));
      return cell.top >= frame.top && cell.bottom <= frame.bottom; }"""
    for k in (256, 500, 3):  # what a step wrote is in sight, without scrolling the page
        page.evaluate("(k) => Unmask.player.seek(k)", k)
        assert page.evaluate(inside, 4 * (k - 1))
    assert page.evaluate("() => scrollY") == 0
