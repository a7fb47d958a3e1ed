"""The format of recordings is stable and versioned: old files give the canvases they always gave, and are written the
same way today.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden_recordings import FOLDER, NAMES, TABLE, digest, steps_of

from unmask.core.errors import RecordingError
from unmask.core.events import fold
from unmask.sinks.recorder import Lines, as_text, read, read_lines


def test_there_is_one_for_every_kind_of_run() -> None:
    families = {read(FOLDER / f"{name}.jsonl").header["family"] for name in NAMES}
    assert set(TABLE) == set(NAMES)
    assert families >= {"LLaDA", "Context-causal block diffusion", "Qwen2", "BiRWKV"}
    assert any(len(requests) > 1 for requests in TABLE.values())


@pytest.mark.parametrize("name", NAMES)
def test_an_old_recording_gives_the_same_canvases(name: str) -> None:
    recording = read(FOLDER / f"{name}.jsonl")
    for request in fold(recording.events):
        assert [digest(canvas) for canvas in steps_of(recording, request)] == TABLE[name][request]


@pytest.mark.parametrize("name", NAMES)
def test_it_would_be_written_the_same_way_today(name: str) -> None:
    """A change here needs a new format version."""
    text = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    recording = read_lines(text.splitlines())
    header = {k: v for k, v in recording.header.items() if k not in ("format", "version")}
    lines = Lines(header, recording.pieces.__getitem__)
    written = [lines.begin()]
    for event in recording.events:
        written += lines.of(event)
    written += lines.finish(recording.answers)
    assert "".join(as_text(line) + "\n" for line in written) == text


@pytest.mark.parametrize("name", NAMES)
def test_the_last_canvas_holds_the_answer(name: str) -> None:
    recording = read(FOLDER / f"{name}.jsonl")
    for request, canvas in fold(recording.events).items():
        pieces = [recording.pieces[i] for i in canvas.ids[canvas.prompt_len : canvas.end]]
        assert recording.answers[request].text.strip() == "".join(pieces).strip()


def test_another_version_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "later.jsonl"
    path.write_text((FOLDER / "nano.jsonl").read_text().replace('"version":1', '"version":2', 1))
    with pytest.raises(RecordingError, match="expected version 1; got 2") as refused:
        read(path)
    assert "another version of unmask" in refused.value.remedy


def test_they_name_no_place_of_the_machine_that_made_them() -> None:
    for name in NAMES:
        header = json.loads((FOLDER / f"{name}.jsonl").read_text().splitlines()[0])
        assert header["model"] == name.removesuffix("-three")
        assert "/" not in json.dumps(header)
        assert (FOLDER / f"{name}.jsonl").stat().st_size < 60_000
