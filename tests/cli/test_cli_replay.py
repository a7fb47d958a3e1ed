"""`unmask replay`: the files it writes, together or not at all, and what a real terminal shows."""

from __future__ import annotations

import os
import re
import select
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_ran import Run as Cli

from unmask.cli.pictures import FIRST, LAST, LONGEST, SHORTEST, durations
from unmask.core.events import Accepted, Event, Failed, Finished, Stepped, Work
from unmask.sinks.files import WholeFolder
from unmask.sinks.recorder import Answer, Recorder

WORDS = [" one", " two", " three", " four", "\n", " six"]


def events(name: str = "0", shift: int = 0) -> Iterator[Event]:
    n = len(WORDS)
    yield Accepted(name, (n, *[-1] * n), (True, *[False] * n), 1, ((1, 4), (4, n + 1)))
    for k in range(3):
        writes = tuple((1 + p, (p + shift) % n, 0.2 + 0.3 * k, 1) for p in (k, k + 3))
        yield Stepped(name, k + 1, Work("full", 7, 2, 0.01), writes)
    yield Finished(name, "length", 3, n + 1)


def record(path: Path, *streams: Iterator[Event]) -> Path:
    table = dict(enumerate([*WORDS, "<|user|>Count.<|assistant|>"]))
    recorder = Recorder(path, {"model": "toy"}, table.__getitem__, lambda: {"0": Answer("one two", 6)})
    for stream in streams:
        for event in stream:
            recorder(event)
    recorder.close()
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return record(tmp_path / "run.jsonl", events())


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_several_files_at_once(cli: Cli, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from PIL import Image

    paths = {k: tmp_path / f"r.{k}" for k in ("html", "gif", "svg", "png")}
    flags = [word for k, path in paths.items() for word in (f"--{k}", path)]
    ran = cli("replay", run, *flags, "--png-steps", tmp_path / "steps", "--theme", "dark", "--width", 400)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    steps = [f"steps/step_00{k}.png" for k in range(4)]
    assert names(tmp_path) == sorted(["run.jsonl", *(p.name for p in paths.values()), "steps", *steps])
    assert ET.parse(paths["svg"]).getroot().attrib["width"] == "400"
    assert paths["html"].read_text().lower().startswith("<!doctype html>")
    with Image.open(paths["gif"]) as gif, Image.open(paths["png"]) as png:
        assert (gif.n_frames, gif.width, png.width) == (4, 400, 400)
        assert png.convert("RGB").getpixel((1, 1)) == (0x15, 0x18, 0x1D)
    sizes = {Image.open(tmp_path / s).size for s in steps}
    assert len(sizes) == 1
    if os.name == "posix":
        readable = paths["gif"].stat().st_mode & 0o444
        assert (tmp_path / "steps").stat().st_mode & 0o444 == readable


def test_styles_palettes_and_titles_change_the_picture(cli: Cli, run: Path, tmp_path: Path) -> None:
    found = set()
    for k, words in enumerate(["", "--style steps", "--palette safe", "--title Hello", "--columns 20", "--theme dark"]):
        cli("replay", run, "--svg", tmp_path / f"{k}.svg", *words.split())
        found.add((tmp_path / f"{k}.svg").read_text())
    assert len(found) == 6
    assert ">Count.</text>" in (tmp_path / "0.svg").read_text()
    assert ">Hello</text>" in (tmp_path / "3.svg").read_text()


def test_the_narrowest_pictures_can_be_drawn(cli: Cli, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    files = ["--gif", tmp_path / "a.gif", "--png", tmp_path / "a.png", "--png-steps", tmp_path / "steps"]
    ran = cli("replay", run, *files, "--style", "steps", "--width", 100)
    assert (ran.code, ran.err) == (0, "")


def test_json_stays_readable_beside_the_drawing(cli: Cli, run: Path) -> None:
    ran = cli("replay", run, "--json", "--show")
    assert ran.json["runs"][0]["text"] == "one two"
    assert "step" in ran.err


def test_an_animation_that_is_too_large_is_refused_before_its_frames_are_laid_out(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")
    from unmask.sinks import scene

    laid, frame = [0], scene.frame

    def counted(*args: Any) -> Any:
        laid[0] += 1
        return frame(*args)

    monkeypatch.setattr(scene, "frame", counted)
    monkeypatch.setattr("unmask.cli.pictures.MOST_PIXELS", 10)
    ran = cli("replay", run, "--gif", tmp_path / "a.gif")
    assert ran.code == 2
    assert "in all frames" in ran.err
    assert laid[0] == 1


def test_one_of_several_requests_is_drawn_and_said(cli: Cli, tmp_path: Path) -> None:
    run = record(tmp_path / "two.jsonl", events(), events("b", shift=1))
    assert "request 0 of 0, b; --request ID" in cli("replay", run, "--svg", tmp_path / "0.svg").err
    assert cli("replay", run, "--svg", tmp_path / "b.svg", "--request", "b").err == ""
    assert (tmp_path / "0.svg").read_text() != (tmp_path / "b.svg").read_text()
    assert cli("replay", run, "--html", tmp_path / "all.html").err == ""


def test_a_failure_leaves_no_file_and_no_folder(cli: Cli, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "font.ttf").write_text("none")
    before = names(tmp_path)
    files = ["--svg", tmp_path / "a.svg", "--png-steps", tmp_path / "steps", "--gif", tmp_path / "a.gif"]
    ran = cli("replay", run, *files, "--font", tmp_path / "font.ttf")
    assert ran.code == 2
    assert "TrueType" in ran.err
    assert names(tmp_path) == before


def test_a_request_without_a_step_is_refused(cli: Cli, tmp_path: Path) -> None:
    first = [next(events()), Failed("0", "too long")]
    run = record(tmp_path / "failed.jsonl", iter(first), events("1"))
    for kind in ("svg", "gif", "png"):
        ran = cli("replay", run, f"--{kind}", tmp_path / "x")
        assert ran.code == 2
        assert "at least one step" in ran.err
    assert names(tmp_path) == ["failed.jsonl"]
    assert cli("replay", run, "--svg", tmp_path / "x.svg", "--request", "1").code == 0


def test_a_folder_that_holds_something_is_refused_and_an_empty_one_is_filled(
    cli: Cli, run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("PIL")
    steps = tmp_path / "steps"
    steps.mkdir()
    assert cli("replay", run, "--png-steps", steps).code == 0
    assert len(names(steps)) == 4
    ran = cli("replay", run, "--png-steps", steps)
    assert ran.code == 2
    assert "one that holds 4 files" in ran.err
    ran = cli("replay", steps.parent / "run.jsonl", "--png-steps", tmp_path)
    assert ran.code == 2
    assert len(names(steps)) == 4


def test_a_half_written_folder_never_appears(tmp_path: Path) -> None:
    folder = WholeFolder(tmp_path / "steps")
    folder.write("a", b"1")
    assert not (tmp_path / "steps").exists()
    folder.discard()
    assert names(tmp_path) == []
    folder = WholeFolder(tmp_path / "steps")
    folder.write("a", b"1")
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "other").touch()
    with pytest.raises(OSError):
        folder.commit()
    folder.discard()
    assert names(tmp_path) == ["steps", "steps/other"]


def test_a_damaged_recording_writes_nothing(cli: Cli, run: Path, tmp_path: Path) -> None:
    text = run.read_text().splitlines()
    for bad in (text[:-1], text[:3], [*text[:4], text[4].replace("[1,", "[99,"), *text[5:]]):
        run.write_text("\n".join(bad) + "\n")
        ran = cli("replay", run, "--html", tmp_path / "a.html", "--svg", tmp_path / "a.svg")
        assert ran.code == 2
        assert "expected" in ran.err
        assert names(tmp_path) == ["run.jsonl"]


def test_frames_follow_the_recorded_clock() -> None:
    assert durations([0.5, 1.0, 0.5], 1.0) == [FIRST, 1.0, 0.5, LAST]
    assert durations([0.5, 1.0, 0.5], 2.0) == [FIRST, 0.5, 0.25, LAST]
    assert durations([100.0, 0.0], 1.0) == [LONGEST, SHORTEST, LAST]
    slow = durations([0.004] * 40, None)
    assert slow[1:-1] == [pytest.approx(0.25)] * 39
    assert sum(durations([3.0] * 100, None)) == pytest.approx(12 + FIRST + LAST, abs=0.5)
    assert durations([0.0, 0.0], None)[1:] == [SHORTEST, LAST]


# ---- a real terminal -------------------------------------------------------------------------------------------------


class Screen:
    """A terminal as far as the drawing needs one: signs with wrapping, cursor up, erase, clear."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows, self.row, self.column = columns, rows, 0, 0
        self.lines = [""] * rows
        self.widest = 0

    def feed(self, text: str) -> None:
        for part in re.split(r"(\x1b\[[?\d;]*[A-Za-z])", text):
            if part.startswith("\x1b["):
                self.control(part[2:-1], part[-1])
            else:
                for sign in part:
                    self.put(sign)

    def control(self, number: str, kind: str) -> None:
        if kind == "A":
            self.row = max(self.row - int(number or 1), 0)
        elif kind == "K":
            self.lines[self.row] = ""
        elif kind == "H":
            self.row = self.column = 0
        elif kind == "J":
            self.lines = [""] * self.rows

    def put(self, sign: str) -> None:
        if sign == "\r":
            self.column = 0
        elif sign == "\n" or self.column >= self.columns:
            self.row, self.column = self.row + 1, 0
            if self.row == self.rows:
                self.lines, self.row = [*self.lines[1:], ""], self.rows - 1
            if sign != "\n":
                self.put(sign)
        else:
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + sign + line[self.column + 1 :]
            self.column += 1


def at_terminal(columns: int, *argv: object, narrower: int = 0, rows: int = 24, **env: str) -> tuple[Screen, str]:
    """The screen after a command, and what it wrote; the window may change its width on the way."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    kept = {
        k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "COLORFGBG")
    }
    settings = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONIOENCODING": "utf-8", **env}
    words = [sys.executable, "-m", "unmask", *map(str, argv)]
    child = subprocess.Popen(words, stdin=inside, stdout=inside, stderr=inside, env=kept | settings)
    os.close(inside)
    screen, written, end = Screen(columns, rows), b"", time.monotonic() + 60
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        written += data
        if narrower and b"2/6" in written:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, narrower, 0, 0))
            screen.columns, narrower = narrower, 0
    os.close(terminal)
    assert child.wait(30) == 0, written
    screen.feed(written.decode())
    return screen, written.decode()


@pytest.mark.parametrize("columns", [20, 40, 200])
def test_a_terminal_shows_each_line_once(run: Path, columns: int) -> None:
    screen, written = at_terminal(columns, "replay", run, "--speed", 100)
    shown = [line.rstrip() for line in screen.lines]
    text = "\n".join(shown)
    assert "\x1b[38;2;" in written
    assert [text.count(word) for word in ("Count.", " one", " three", " six", "6/6")] == [1] * 5
    assert ("sure" in text) and ("below 0.3" in text) == (columns == 200)
    assert "?25h" in written[-200:]


def test_a_window_that_changes_its_width_is_drawn_anew(run: Path) -> None:
    screen, written = at_terminal(60, "replay", run, "--speed", 0.02, narrower=30)
    text = "\n".join(screen.lines)
    assert "\x1b[2J" in written
    assert [text.count(word) for word in ("Count.", " one", " three", " six", "6/6")] == [1] * 5


def test_palette_and_background_change_the_colours(run: Path) -> None:
    colours = set()
    for words, env in (
        ([], {}),
        (["--palette", "safe"], {}),
        (["--theme", "light"], {}),
        ([], {"COLORFGBG": "0;15"}),
        ([], {"COLORTERM": "", "TERM": "xterm"}),
    ):
        written = at_terminal(80, "replay", run, "--speed", 100, *words, **env)[1]
        colours.add(tuple(re.findall(r"\x1b\[([\d;]*)m█", written)))
    assert len(colours) == 4  # the terminal's word for a light background is as good as the option


def test_no_colour_and_dumb_terminals(run: Path) -> None:
    _, written = at_terminal(80, "replay", run, "--speed", 100, NO_COLOR="1")
    assert "38;" not in written
    assert "█" in written
    _, written = at_terminal(80, "replay", run, "--speed", 100, TERM="dumb")
    assert "\x1b" not in written
    assert written.count("step ") == 3


def test_a_pipe_gets_plain_lines_even_where_colours_are_forced(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    ran = cli("replay", run)
    assert "\x1b" not in ran.out
    assert ran.out.count("step ") == 3
