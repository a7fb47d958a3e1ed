"""What pictures show: the cells of every step, their places, and whether they can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import pytest
from settled import PIECES, piece, run

from unmask.core.events import Accepted, Event, Finished, Stepped, Work, fold
from unmask.sinks.cells import label, message
from unmask.sinks.palettes import BASIC, COLOURS, PALETTES, READABLE, TERMINAL, THEMES, contrast, readable
from unmask.sinks.scene import Bar, Cell, Look, Run, Scene, Words, frame, settling

WORK = Work("full", 4, 4, 0.01)


def edits() -> Iterator[Event]:
    """Continuous diffusion in small: every step writes every place, one token changes length, one is masked again."""
    yield Accepted("0", (90, -1, -1, -1, 0), (True, False, False, False, True), 1, ((1, 3), (3, 5)))
    yield Stepped("0", 1, WORK, ((1, 1, 0.1, 2), (2, 2, 0.5, 2), (3, 3, 0.9, 2)))
    yield Stepped("0", 2, WORK, ((1, 4, 0.2, 2), (2, 2, 0.6, 2), (3, 3, 0.0, 3)))
    yield Stepped("0", 3, WORK, ((1, 4, 0.8, 2), (3, 20, 0.9, 1)))
    yield Finished("0", "length", 3, 5)


def early_end() -> Iterator[Event]:
    """An answer of two tokens, two more written after its end and one never."""
    yield Accepted("0", (90, -1, -1, -1, -1, -1), (True, *[False] * 5), 1, ((1, 6),))
    yield Stepped("0", 1, WORK, ((3, 3, 0.9, 1), (4, 4, 0.9, 1)))
    yield Stepped("0", 2, WORK, ((1, 1, 0.9, 1), (2, 2, 0.9, 1)))
    yield Finished("0", "stop", 2, 3)


RUNS = [run, edits, early_end]


def scenes(events: Callable[[], Iterator[Event]], look: Look | None = None) -> Iterator[Scene]:
    """Every picture there is of a run."""
    for whole in (False, True):
        one = Run(events(), piece, look=look, whole=whole)
        yield settling(one)
        for step in range(len(one.moments)):
            yield frame(one, step)
            yield frame(one, step, "steps")


def area(shape: object) -> tuple[float, float, float, float]:
    if isinstance(shape, Words):
        return shape.x, shape.y - shape.size * 0.8, shape.x + shape.wide, shape.y + shape.size * 0.25
    assert isinstance(shape, Cell)
    return shape.x, shape.y, shape.x + shape.wide, shape.y + shape.high


@pytest.mark.parametrize("events", RUNS)
@pytest.mark.parametrize("columns", [8, 30, 78])
def test_nothing_overlaps_and_nothing_is_outside(events: Callable[[], Iterator[Event]], columns: int) -> None:
    for scene in scenes(events, Look(columns=columns)):
        areas = [area(s) for s in scene.shapes if not isinstance(s, Bar)]
        assert areas
        for left, top, right, bottom in areas:
            assert 0 <= left < right <= scene.wide
            assert 0 <= top < bottom <= scene.high
        for a, b in combinations(areas, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)


@pytest.mark.parametrize("events", RUNS)
@pytest.mark.parametrize("style", ["moments", "steps"])
def test_cells_keep_their_places_and_agree_with_fold(events: Callable[[], Iterator[Event]], style: str) -> None:
    happened = list(events())
    one = Run(happened, piece, whole=True)
    places = [[(s.x, s.y, s.wide) for s in frame(one, 0).shapes if isinstance(s, Cell)]]
    steps = [i for i, e in enumerate(happened) if isinstance(e, Stepped)]
    for step in range(len(one.moments)):
        canvas = fold(happened[: 1 if step == 0 else steps[step - 1] + 1])["0"]
        cells = [s for s in frame(one, step, style).shapes if isinstance(s, Cell)]  # type: ignore[arg-type]
        for position, cell in zip(one.boxes, cells):
            token = canvas.ids[position]
            assert cell.hole == (token < 0)
            assert cell.text == (label(PIECES[token]) if token >= 0 else "×" if position in canvas.fresh else "")
        if style == "moments":
            places.append([(c.x, c.y, c.wide) for c in cells])
    assert all(p == places[0] for p in places)


def test_a_token_settles_when_it_gets_its_last_value_and_not_when_it_is_only_confirmed() -> None:
    one = Run(edits(), piece)
    assert one.settled[-1] == [0, 2, 1, 3, 0]
    assert one.last.step == [0, 3, 2, 3, 0]
    cells = [s for s in frame(one, 3, "steps").shapes if isinstance(s, Cell)][:4]
    assert [c.tip for c in cells] == ["step 2 of 3", "step 1 of 3", "step 3 of 3", "given"]
    assert cells[1].tint.fill == "#f0f8ff"
    assert cells[2].tint.fill == "#0c3770"


def test_new_earlier_given_masked_and_late_cells_look_different() -> None:
    tints = COLOURS["light", "published"]
    cells = [s for s in frame(Run(edits(), piece), 2).shapes if isinstance(s, Cell)][:4]
    assert [c.tint for c in cells] == [tints.low, tints.middle, tints.masked, tints.given]
    assert [round(c.bar, 2) for c in cells] == [0.34, 0.67, 0, 0]
    assert cells[2].text == "×"
    last = [s for s in frame(Run(edits(), piece), 3).shapes if isinstance(s, Cell)][:4]
    assert last[1].tint == tints.earlier
    assert not last[1].bold
    assert last[0].bold


def test_what_stands_after_the_end_is_shown_only_in_whole_pictures() -> None:
    assert list(Run(early_end(), piece).boxes) == [1, 2]
    whole = Run(early_end(), piece, whole=True)
    assert list(whole.boxes) == [1, 2, 3, 4]
    cells = [s for s in frame(whole, 2).shapes if isinstance(s, Cell)]
    assert [c.tip for c in cells[2:4]] == ["after the end"] * 2
    words = [s.text for s in frame(whole, 1).shapes if isinstance(s, Words)]
    assert "0/2 settled" in words


def test_counts_are_those_of_the_step() -> None:
    one = Run(run(), piece)
    words = {s.text for s in frame(one, 3).shapes if isinstance(s, Words)}
    assert {"step 3/6", "NFE 3", "12/24 settled", "4.00 tokens/forward"} <= words


def test_blocks_are_told_apart_by_lines() -> None:
    fill = COLOURS["light", "published"].line
    lines = [s for s in frame(Run(edits(), piece), 1).shapes if isinstance(s, Bar) and s.wide == 2 and s.fill == fill]
    cells = [s for s in frame(Run(edits(), piece), 1).shapes if isinstance(s, Cell)]
    assert len(lines) == 1
    assert cells[1].x + cells[1].wide <= lines[0].x
    assert lines[0].x + lines[0].wide <= cells[2].x


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("palette", PALETTES)
def test_every_text_can_be_read(theme: str, palette: str) -> None:
    look = COLOURS[theme, palette]  # type: ignore[index]
    for name, tint in look.tints().items():
        assert contrast(tint.ink, tint.fill) >= READABLE, name
    for k in range(201):
        tint = look.step(k / 200)
        assert contrast(tint.ink, tint.fill) >= READABLE, k
    assert contrast(look.ink, look.card) >= READABLE
    assert contrast(look.quiet, look.card) >= READABLE
    background = "#000000" if theme == "dark" else "#ffffff"
    for name, colour in TERMINAL[theme, palette].items():  # type: ignore[index]
        assert contrast(colour, background) >= READABLE, name
    assert BASIC[theme, palette].keys() == TERMINAL[theme, palette].keys()  # type: ignore[index]


@pytest.mark.parametrize("palette", PALETTES)
def test_the_scale_of_steps_gets_darker_with_every_step(palette: str) -> None:
    look = COLOURS["light", palette]  # type: ignore[index]
    light = [contrast(look.step(k / 63).fill, "#000000") for k in range(64)]
    assert light == sorted(light, reverse=True)
    assert light[0] / light[-1] > 7


def test_black_or_white_can_always_be_read() -> None:
    assert min(contrast(readable(f"#{v:02x}{v:02x}{v:02x}"), f"#{v:02x}{v:02x}{v:02x}") for v in range(256)) >= 4.5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<|user|>Why is\nit blue?<|assistant|>", "Why is it blue?"),
        ("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hi"),
        (
            "<|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "A",
        ),
        ("<s>[INST] Go [/INST]", "Go"),
        ("Once\tupon\x1b[1m\u202e", "Once upon[1m"),
        ("user of the house", "user of the house"),
        ("<|user|>", ""),
        ("", ""),
    ],
)
def test_the_title_is_the_last_message(text: str, found: str) -> None:
    assert message(range(len(text)), text.__getitem__) == found


def test_a_title_without_spaces_loses_nothing_between_its_lines() -> None:
    text = "".join(chr(0x4E00 + k) for k in range(60))
    scene = frame(Run(run(), piece, look=Look(title=text)), 1)
    title = [s.text for s in scene.shapes if isinstance(s, Words) and s.bold]
    assert len(title) == 2
    assert text.startswith("".join(title).rstrip("…"))


def test_a_long_title_takes_two_lines_and_is_cut() -> None:
    scene = frame(Run(run(), piece, look=Look(title="many words " * 60)), 1)
    title = [s for s in scene.shapes if isinstance(s, Words) and s.bold]
    assert len(title) == 2
    assert title[1].text.endswith("…")
