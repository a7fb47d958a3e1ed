"""What is drawn: the terminal in place, plain lines, SVG; and what is counted."""

from __future__ import annotations

import errno
import io
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console
from settled import WORDS, piece, run

from unmask.core.errors import InputError, RecordingError
from unmask.core.events import Accepted, Event, Failed, Finished, Stepped, Work, tee
from unmask.sinks.cells import fit, label, level, width
from unmask.sinks.console import LiveCanvas, PlainCanvas, canvas_sink
from unmask.sinks.files import WholeFile, check_writable, write_text
from unmask.sinks.metrics import Metrics
from unmask.sinks.picture import by_step, settling
from unmask.sinks.scene import Look


def live(columns: int = 80, rows: int = 30, colour: str | None = "truecolor", encoding: str = "utf-8") -> LiveCanvas:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(
        file=stream, force_terminal=True, width=columns, height=rows, color_system=colour, legacy_windows=False
    )
    return LiveCanvas(piece, console)


def frames(sink: LiveCanvas, events: list[Event]) -> list[str]:
    found = []
    for event in events:
        sink(event)
        found.append(sink.frame().plain)
    sink.close()
    return found


def test_every_token_keeps_its_cell_from_the_first_frame_to_the_last() -> None:
    events = list(run())
    steps = [f for f, e in zip(frames(live(), events), events) if isinstance(e, Stepped)]
    last = steps[-1].split("\n")
    for frame in steps:
        for now, then in zip(frame.split("\n")[1:4], last[1:4]):
            cells = [now[i + 1 : i + 8] for i in range(0, len(now), 9)]
            final = [then[i + 1 : i + 8] for i in range(0, len(then), 9)]
            assert all(c == f or set(c) == {"░"} for c, f in zip(cells, final))


@pytest.mark.parametrize("columns", [1, 5, 9, 17, 40, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    for frame in frames(live(columns), list(run())):
        assert all(width(line) <= columns for line in frame.split("\n"))


def test_a_low_terminal_shows_the_rows_around_the_first_hole() -> None:
    for frame in frames(live(9, 10), list(run())):
        assert len(frame.split("\n")) <= 10


def test_new_tokens_have_a_bar_by_confidence_and_a_colour() -> None:
    sink = live()
    sink(Accepted("0", (-1, -1, -1, -1), (False,) * 4, 0, ((0, 4),)))
    sink(Stepped("0", 1, Work("full", 4, 4, 0.1), ((0, 0, 0.1, 1), (1, 1, 0.5, 1), (2, 2, 0.95, 1))))
    frame = sink.frame()
    row = frame.plain.split("\n")[0]
    assert [row[0], row[9], row[18]] == ["▁", "▄", "█"]
    styles = {frame.plain[s.start] if s.start < 36 else "": str(s.style) for s in frame.spans}
    assert "#FF6666" in styles["▁"]
    assert "#FFAA33" in styles["▄"]
    assert "#66CC66" in styles["█"]
    sink(Stepped("0", 2, Work("full", 4, 1, 0.1), ((3, 3, 0.9, 1),)))
    assert sink.frame().plain[0] == " "
    sink.close()


def test_a_stream_without_our_signs_gets_ascii() -> None:
    assert all(frame.isascii() for frame in frames(live(encoding="ascii"), list(run())))


def test_remasked_and_cut_places_are_drawn() -> None:
    sink = live()
    events: list[Event] = [
        Accepted("0", (-1, -1), (False, False), 0, ((0, 2),)),
        Stepped("0", 1, Work("full", 2, 2, 0.1), ((0, 0, 0.9, 1),)),
        Stepped("0", 2, Work("full", 2, 2, 0.1), ((0, 0, 0.2, 3), (1, 1, 0.9, 1))),
        Finished("0", "stop", 2, 1),
    ]
    texts = frames(sink, events)
    assert texts[2].startswith("x░")
    assert "·" in texts[3]


def test_plain_lines_have_no_escape_codes_and_one_line_per_step() -> None:
    stream = io.StringIO()
    sink = canvas_sink(piece, stream)
    assert isinstance(sink, PlainCanvas)
    for _ in tee(run(), sink):
        pass
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert len(lines) == 7
    assert lines[5].endswith("".join((" " if i else "") + w for i, w in enumerate(WORDS)))
    assert lines[0].split()[:3] == ["step", "1", "4/24"]


def test_several_requests_are_told_apart() -> None:
    stream = io.StringIO()
    sink = PlainCanvas(piece, stream)
    for pair in zip(run("a"), run("b")):
        for event in pair:
            sink(event)
    assert "[a] step" in stream.getvalue()
    assert "[b] step" in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (" the", "the"),
        ("\n", "↵"),
        (" ", "␣"),
        ("", "∅"),
        ("\x00", "?"),
        ("<|eos|>", "∎"),
        ("<|mask|>", "<|mask|>"),
        ("a\u200bb", "ab"),
        ("  x", "␣x"),
        ("é", "é"),
    ],
)
def test_labels_show_what_is_invisible(text: str, seen: str) -> None:
    assert label(text) == seen
    assert label(text, ascii_only=True).isascii()


def test_names_and_errors_of_a_recording_do_not_steer_the_terminal() -> None:
    for odd in ("\x1b[2J", "a\nb", "\u202eb", "\x9b31m"):
        for draw in (PlainCanvas, lambda p, s: LiveCanvas(p, Console(file=s, width=60), pause=lambda _: None)):
            stream = io.StringIO()
            sink = draw(piece, stream)
            for event in (*run("a"), next(run(odd)), Failed(odd, f"no {odd}")):
                sink(event)
            sink.close()
            assert odd not in stream.getvalue()


def test_vowel_signs_and_variation_selectors_take_no_column() -> None:
    for text, columns in (("กั", 1), ("कु", 1), ("☁\ufe0f", 1), ("e\u0301", 1)):
        assert width(text) == columns


def test_fit_counts_columns_not_characters() -> None:
    assert fit("日本語", 5) == "日本…"
    assert fit("ab", 4) == "ab  "
    assert width(fit("日本語", 4)) == 4


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        (0.0, "low"),
        (0.29, "low"),
        (0.3, "middle"),
        (0.69, "middle"),
        (0.7, "high"),
        (1.0, "high"),
        (-3.0, "low"),
        (-0.01, "high"),
    ],
)
def test_levels(confidence: float, expected: str) -> None:
    assert level(confidence) == expected


@pytest.mark.parametrize("draw", [settling, by_step])
def test_pictures_are_valid_and_need_nothing_from_outside(draw: object) -> None:
    text = draw(run(), piece, look=Look(title="a < b & c"))  # type: ignore[operator]
    root = ET.fromstring(text)
    assert root.tag.endswith("svg")
    rest = text.replace("http://www.w3.org/2000/svg", "")
    assert not [word for word in ("http", "href", "url(", "@import", "<script", "<image") if word in rest]
    shown = "".join(root.itertext())
    assert all(w in shown for w in WORDS)
    assert "a < b & c" in shown


def test_a_picture_has_the_first_and_the_last_moment() -> None:
    text = settling(run(per_step=1), piece, rows=5)
    assert ">start<" in text
    assert ">step 24<" in text
    assert text.count('font-weight="600">step') == 4


@pytest.mark.parametrize("odd", ["\x00\x1b", "]]>", "\ud800", "&amp;", "\ufffe", "日本", "e\u0301"])
def test_odd_tokens_do_not_break_a_picture(odd: str) -> None:
    ET.fromstring(settling(run(), lambda i: odd))
    ET.fromstring(by_step(run(), lambda i: odd))


@pytest.mark.parametrize("draw", [settling, by_step])
@pytest.mark.parametrize("title", ["", "short", "a title that is longer than every line of cells " * 3])
def test_nothing_is_drawn_beyond_the_edge(draw: Callable[..., str], title: str) -> None:
    root = ET.fromstring(draw(list(run()), piece, look=Look(title=title)))
    wide = float(root.attrib["width"])
    cells = [e for e in root.iter() if e.tag.endswith("rect") and "x" in e.attrib]
    assert cells
    assert all(float(e.attrib["x"]) + float(e.attrib["width"]) <= wide for e in cells)
    narrow = draw(list(run()), piece, look=Look(title=title, columns=30))
    assert float(ET.fromstring(narrow).attrib["width"]) < wide


def test_a_picture_needs_a_step() -> None:
    with pytest.raises(RecordingError):
        settling(list(run())[:2], piece)


def test_metrics_count_tokens_forwards_and_shared_seconds_once() -> None:
    metrics = Metrics()
    for pair in zip(run("a", sharing=2), run("b", sharing=2)):
        for event in pair:
            metrics(event)
    one, both = metrics.of("a"), metrics.total()
    assert (one.tokens, one.nfe, round(one.seconds, 6)) == (24, 6, 0.06)
    assert (both.tokens, both.nfe, round(both.seconds, 6)) == (48, 6, 0.06)
    assert both.tokens_per_forward == 8
    assert round(both.tokens_per_second) == 800
    assert Metrics().total().tokens_per_second == 0


def test_given_places_do_not_count_as_tokens() -> None:
    metrics = Metrics()
    metrics(Accepted("0", (1, 2, -1), (True, True, False), 1, ((1, 3),)))
    metrics(Finished("0", "length", 1, 3))
    assert metrics.of("0").tokens == 1


# ---- files -----------------------------------------------------------------------------------------------------------


def test_whole_files_appear_at_the_end_or_never(tmp_path: Path) -> None:
    with WholeFile(tmp_path / "a.txt") as file:
        file.write("one")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "one"
    with suppress(ZeroDivisionError), WholeFile(tmp_path / "b.txt") as file:
        file.write("two")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_devices_are_written_to_and_not_replaced() -> None:
    device = Path("/dev/null")
    if not device.is_char_device():
        pytest.skip("no such device here")
    write_text(device, "x")
    assert device.is_char_device()


def test_a_pipe_is_written_to_under_its_own_name() -> None:
    if not Path("/dev/fd").is_dir():
        pytest.skip("no such folder here")
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader:
        check_writable(f"/dev/fd/{write_end}", "--svg")
        write_text(f"/dev/fd/{write_end}", "x")
        os.close(write_end)
        assert reader.read() == b"x"


def test_a_full_disk_is_told_with_the_name() -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no such device here")
    with pytest.raises(OSError, match="/dev/full") as caught:
        write_text("/dev/full", "x")
    assert caught.value.errno == errno.ENOSPC


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.txt"
    try:
        link.symlink_to(tmp_path / "there" / "real.txt")
    except OSError:
        pytest.skip("no links here")
    write_text(link, "x")
    assert link.is_symlink()
    assert (tmp_path / "there" / "real.txt").read_text() == "x"


def test_unwritable_paths_are_refused_without_a_trace(tmp_path: Path) -> None:
    for bad in (tmp_path, tmp_path / "missing" / "a.txt", ""):
        with pytest.raises(InputError, match="--record"):
            check_writable(bad, "--record")
    check_writable(tmp_path / "fine.txt", "--record")
    assert list(tmp_path.iterdir()) == []


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    sink = live()
    stream = sink._console.file
    for event in run():
        sink(event)
    sink.close()
    stream.flush()
    written = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert "\x1b[38;" not in written
    assert "█" in written
