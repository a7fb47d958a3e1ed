"""Scores of a file: what is read, what is refused, and that a run which was killed goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from unmask.core.errors import InputError, RequestError
from unmask.evals.likelihood.file import GROUP, Item, ScoresFile, groups, read_items, run
from unmask.evals.likelihood.text import encode_pair
from unmask.pipeline import load

ITEMS = [Item(f"i{n}", f"prompt {n}", f"answer {n}") for n in range(2 * GROUP + 5)]
HEADER = {"model": "m", "scoring": {"method": "bound", "seed": 0}, "versions": {"torch": "1"}}


class Killed(BaseException):
    """As a kill: nothing catches it."""


class Score:
    """A made-up score that counts its calls; killed before its `fatal`-th group."""

    def __init__(self, fatal: int = 0) -> None:
        self.fatal, self.seen = fatal, []

    def __call__(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        self.fatal -= 1
        if not self.fatal:
            raise Killed
        self.seen += [i.id for i in items]
        return [{"id": i.id, "prompt": i.prompt, "answer": i.answer, "value": -len(i.answer) / 3} for i in items]


def test_groups_hold_every_item_once() -> None:
    assert [len(g) for g in groups(ITEMS)] == [GROUP, GROUP, 5]
    assert [i for g in groups(ITEMS) for i in g] == ITEMS


@pytest.mark.parametrize("fatal", [1, 2, 3])
@pytest.mark.parametrize("torn", [0, 1, 30])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, fatal: int, torn: int) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    run(ITEMS, Score(), ScoresFile(whole, HEADER, ITEMS))
    with pytest.raises(Killed):
        run(ITEMS, Score(fatal), ScoresFile(parts, HEADER, ITEMS))
    assert not parts.exists()
    part = tmp_path / ".parts.jsonl.part"
    kept = fatal - 1
    if part.exists() and torn:  # the kill came in the middle of a write
        part.write_bytes(part.read_bytes()[:-torn])
        kept -= 1
    again, out = Score(), ScoresFile(parts, HEADER, ITEMS)
    assert out.found == max(kept, 0) * GROUP
    records = run(ITEMS, again, out)
    assert again.seen == [i.id for i in ITEMS[max(kept, 0) * GROUP :]]
    assert parts.read_bytes() == whole.read_bytes() and not part.exists()
    assert [r["id"] for r in records] == [i.id for i in ITEMS]
    lines = [json.loads(line) for line in parts.read_text("utf-8").splitlines()]
    assert lines[0] == {"format": 1, **HEADER} and len(lines) == 1 + len(ITEMS)


def test_a_finished_run_is_not_done_again_and_may_grow(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    run(ITEMS[:20], Score(), ScoresFile(path, HEADER, ITEMS[:20]))
    before, idle = path.read_bytes(), Score()
    run(ITEMS[:20], idle, ScoresFile(path, HEADER, ITEMS[:20]))
    assert idle.seen == [] and path.read_bytes() == before
    more = Score()
    run(ITEMS, more, ScoresFile(path, HEADER | {"versions": {"torch": "2"}}, ITEMS))
    assert more.seen == [i.id for i in ITEMS[20:]]


def test_other_settings_texts_and_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    run(ITEMS[:3], Score(), ScoresFile(path, HEADER, ITEMS[:3]))
    before = path.read_bytes()
    other = HEADER | {"scoring": {"method": "bound", "seed": 1}}
    with pytest.raises(InputError, match="other settings: seed; expected seed 0; got 1"):
        ScoresFile(path, other, ITEMS[:3])
    with pytest.raises(InputError, match="another text for item 'i0'"):
        ScoresFile(path, HEADER, [Item("i0", "prompt 0", "changed"), *ITEMS[1:3]])
    with pytest.raises(InputError, match="'i2', which the input does not hold"):
        ScoresFile(path, HEADER, ITEMS[:2])
    for foreign in ("", "words\n", "[1]\n", '{"id": "i0"}\n'):
        path.write_text(foreign)
        with pytest.raises(InputError, match="expected scores of an earlier run"):
            ScoresFile(path, HEADER, ITEMS[:3])
    assert before


def test_progress_counts_what_is_done(tmp_path: Path) -> None:
    seen: list[int] = []
    run(ITEMS, Score(), ScoresFile(tmp_path / "s.jsonl", HEADER, ITEMS), seen.append)
    assert seen == [GROUP, 2 * GROUP, len(ITEMS)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no line"),
        ("{", "line 1.*no JSON"),
        ('{"prompt": "a"}', "line 1"),
        ('{"prompt": "a", "answer": ""}', "line 1"),
        ('{"prompt": 1, "answer": "b"}', "line 1"),
        ('["a", "b"]', "line 1"),
        ('{"prompt": "a", "answer": "b", "id": [1]}', "id"),
        ('{"prompt": "a", "answer": "b", "id": 2}\n{"prompt": "c", "answer": "d"}', "line 2.*once more"),
    ],
)
def test_bad_pairs_are_refused_with_their_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=words):
        read_items(path)


def test_pairs_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "", "answer": "b"}\r\n\n{"id": 7, "prompt": "\xc3\xa9", "answer": "d"}')
    assert read_items(path) == [Item("1", "", "b"), Item("7", "é", "d")]


def test_the_boundary_between_prompt_and_answer() -> None:
    model = load("nano")
    codec = model.codec
    assert codec is not None
    prompt, answer = encode_pair(model, "Copy: red  ", "blue")
    assert codec.decode(prompt) == "Copy: red" and codec.decode(answer) == "  blue"
    assert prompt + answer == codec.encode("Copy: red  blue")
    chat, said = encode_pair(model, "Copy: red", "red", chat=True)
    assert chat == codec.encode_chat([{"role": "user", "content": "Copy: red"}])
    assert codec.decode(said) == "red"
    with pytest.raises(RequestError, match="at least one token"):
        encode_pair(model, "Copy: red", "")
