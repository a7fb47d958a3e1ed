"""Recordings: round trip, whole or absent, and every damage is refused by name."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path

import pytest
from settled import PIECES, piece, run

from unmask.core.errors import RecordingError
from unmask.core.events import Event, Failed, fold, tee
from unmask.sinks.recorder import Answer, Recorder, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "run.jsonl"
    for _ in tee(run(), Recorder(target, {"seed": 3}, piece)):
        pass
    return target


def test_a_recording_reads_back_as_the_run(path: Path) -> None:
    found = read(path)
    assert found.events == tuple(run())
    assert found.header == {"format": "unmask-recording", "version": 1, "seed": 3}
    assert found.pieces == PIECES
    assert fold(found.events) == fold(run())


def test_answers_are_kept_as_they_were_printed(tmp_path: Path) -> None:
    target = tmp_path / "run.jsonl"
    first = next(iter(fold(run())))
    for _ in tee(run(), Recorder(target, {}, piece, lambda: {first: Answer("日本", 2)})):
        pass
    assert read(target).answers == {first: Answer("日本", 2)}
    for wrong in ('"completion_tokens":-1', '"completion_tokens":"2"', '"tokens":2'):
        target.write_text(target.read_text().replace('"completion_tokens":2', wrong))
        with pytest.raises(RecordingError, match="a valid event"):
            read(target)
        target.write_text(target.read_text().replace(wrong, '"completion_tokens":2'))


def test_a_sink_that_fails_to_close_does_not_keep_the_others_open(tmp_path: Path) -> None:
    class Broken:
        def __call__(self, event: Event) -> None: ...

        def close(self) -> None:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        for _ in tee(run(), Broken(), Recorder(tmp_path / "run.jsonl", {}, piece)):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["run.jsonl"]


def test_pieces_come_before_their_first_use(path: Path) -> None:
    known: set[int] = set()
    for line in path.read_text().splitlines():
        row = json.loads(line)
        known |= {int(i) for i in row.get("piece", {})}
        assert {w[1] for w in row.get("writes", ())} <= known
        assert {i for i in row.get("canvas", ()) if i >= 0} <= known


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    events = tee(run(), Recorder(tmp_path / "run.jsonl", {}, piece))
    for _, _ in zip(range(5), events):
        pass
    assert len(list(tmp_path.iterdir())) == 1  # the hidden partial file
    events.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_events_leaves_nothing(tmp_path: Path) -> None:
    Recorder(tmp_path / "run.jsonl", {}, piece).close()
    assert list(tmp_path.iterdir()) == []


def test_an_old_recording_survives_a_failed_new_one(path: Path) -> None:
    before = path.read_bytes()
    recorder = Recorder(path, {}, piece)
    recorder(next(run()))
    recorder.close()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_request_is_part_of_a_whole_recording(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.jsonl", {}, piece)
    recorder(next(run()))
    recorder(Failed("0", "no row speaks"))
    recorder.close()
    assert fold(read(tmp_path / "run.jsonl").events)["0"].error == "no row speaks"


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    recorder = Recorder(tmp_path / "run.jsonl", {}, piece)
    for event in run():
        recorder(event)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        recorder.close()
    assert list(tmp_path.iterdir()) == []


def edit(path: Path, line: int, **changes: object) -> None:
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    rows[line].update(changes)
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n")


@pytest.mark.parametrize(
    ("line", "changes", "said"),
    [
        (0, {"format": "other"}, "first line"),
        (0, {"version": 2}, "version 1"),
        (0, {"version": True}, "version 1"),
        (2, {"event": "Exploded"}, "Exploded"),
        (2, {"prompt_len": 99}, "prompt_len 99"),
        (2, {"canvas": [90, -1]}, "different lengths"),
        (2, {"canvas": "abc"}, "something else than ids"),
        (2, {"blocks": [[0, 99]]}, "outside the canvas"),
        (2, {"extra": 1}, "extra"),
        (5, {"writes": [[99, 90, 0.5, 1]]}, "canvas of 25"),
        (5, {"writes": [[1, 90, 0.5, 7]]}, "canvas of 25"),
        (5, {"writes": [[1, 55, 0.5, 1]]}, "without a piece"),
        (5, {"nfe": "1"}, "nfe"),
        (5, {"work": {"kind": "full"}}, "Stepped"),
        (5, {"id": "7"}, "never accepted"),
        (5, {"writes": [[1.5, 90, 0.5, 1]]}, "1.5"),
        (5, {"writes": [[1, 90, "0.5", 1]]}, "'0.5'"),
        (5, {"writes": [[float("inf"), 90, 0.5, 1]]}, "inf"),
        (5, {"writes": [[1, 90, 10**400, 1]]}, "Stepped"),
        (5, {"work": {"kind": "full", "row_layers": "7", "head_rows": 1, "seconds": 0.1}}, "work"),
        (5, {"work": {"kind": "full", "row_layers": 7, "head_rows": 1, "seconds": float("inf")}}, "work"),
        (-2, {"end": 1000}, "positions"),
        (-2, {"reason": "\x1b[2J"}, "reason"),
        (-1, {"end": 7}, "end"),
        (1, {"piece": {"90": 4}}, "not text"),
        (1, {"piece": {"ninety": "x"}}, "line 2"),
    ],
)  # fmt: skip
def test_damage_is_refused_by_line(path: Path, line: int, changes: dict[str, object], said: str) -> None:
    edit(path, line, **changes)
    with pytest.raises(RecordingError, match=r"run\.jsonl") as caught:
        read(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("cut", [0, 1, 20, 200, 700])
def test_a_cut_file_is_refused(path: Path, cut: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 2 - cut] if cut else b"")
    with pytest.raises(RecordingError):
        read(path)


def test_a_number_of_thousands_of_digits_is_damage(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace('"seed":3', f'"seed":{"1" * 5000}'), encoding="utf-8")
    with pytest.raises(RecordingError, match="line 1"):
        read(path)


def test_random_bytes_are_refused_or_read_but_never_crash(path: Path) -> None:
    data, rnd = path.read_bytes(), random.Random(1)
    for _ in range(200):
        broken = bytearray(data)
        broken[rnd.randrange(len(data))] = rnd.randrange(256)
        path.write_bytes(broken)
        with suppress(RecordingError):
            fold(read(path).events)
