"""Data files of benchmarks: formats, where they are found, hashes, and every way to be wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from eval_items import FUNCTIONS, PROGRAMS, QUIZ, SAMPLES, STORIES, WORKED

from unmask.core import catalog
from unmask.core.errors import ConfigError, InputError
from unmask.evals.task import Data
from unmask.evals.tasks import data as files


def load(spec: str, data: Path | None, split: str = "test") -> Data:
    found: Data = catalog.parse("task", spec).load(None if data is None else str(data), split)
    return found


def lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".parquet"])
def test_every_format_gives_the_same_items(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"gsm8k_test{suffix}"
    body = "\n".join(map(json.dumps, STORIES)) if ".jsonl" in suffix else json.dumps(STORIES)
    raw = body.encode()
    if suffix.endswith(".gz"):
        raw = gzip.compress(raw)
    elif suffix.endswith(".zst"):
        raw = pytest.importorskip("zstandard", reason="zstandard (extra `eval`) is not installed").compress(raw)
    if suffix == ".parquet":
        pa, parquet = (
            pytest.importorskip("pyarrow", reason="pyarrow (for parquet files) is not installed"),
            pytest.importorskip("pyarrow.parquet", reason="pyarrow (for parquet files) is not installed"),
        )
        parquet.write_table(pa.Table.from_pylist(STORIES), path)
    else:
        path.write_bytes(raw)
    found = load("gsm8k(shots=0)", path)
    assert [i.fields["question"] for i in found.items] == [s["question"] for s in STORIES]
    assert [i.id for i in found.items] == ["gsm8k/0", "gsm8k/1", "gsm8k/2"]
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and found.source == path.name


def test_line_separators_inside_json_strings_do_not_end_a_line(tmp_path: Path) -> None:
    record = {**STORIES[0], "question": "a\u2028b\x85c"}
    (tmp_path / "test.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\r\n\n", "utf-8")
    assert load("gsm8k(shots=0)", tmp_path / "test.jsonl").items[0].fields["question"] == "a\u2028b\x85c"


def test_a_directory_of_many_benchmarks_is_searched_by_name(tmp_path: Path) -> None:
    lines(tmp_path / "gsm8k_test.jsonl", STORIES)
    lines(tmp_path / "gsm8k_train.jsonl", WORKED)
    lines(tmp_path / "HumanEval.jsonl", FUNCTIONS)
    lines(tmp_path / "mbpp_sanitized.jsonl", PROGRAMS)
    (tmp_path / "README.md").write_text("words")
    assert load("gsm8k(shots=3)", tmp_path).source == "gsm8k_test.jsonl; worked examples: gsm8k_train.jsonl"
    assert load("humaneval", tmp_path).source == "HumanEval.jsonl"
    assert [i.id for i in load("mbpp(shots=0)", tmp_path).items] == ["mbpp/900", "mbpp/901"]


def test_a_hub_snapshot_is_read_in_its_folders(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    for n, story in enumerate(STORIES):
        lines(tmp_path / "main" / f"test-0000{n}-of-00003.jsonl", [story])
    lines(tmp_path / "main" / "train-00000-of-00001.jsonl", WORKED)
    found = load("gsm8k(shots=1)", tmp_path)
    assert len(found.items) == 3 and len(found.shots) == 1 and found.items[2].id == "gsm8k/2"


def test_worked_examples_lie_beside_a_file(tmp_path: Path) -> None:
    test = lines(tmp_path / "gsm8k_test.jsonl", STORIES)
    with pytest.raises(ConfigError, match="no worked examples beside"):
        load("gsm8k(shots=2)", test)
    lines(tmp_path / "gsm8k_train.jsonl", WORKED)
    found = load("gsm8k(shots=2)", test)
    assert [s.fields["question"] for s in found.shots] == [w["question"] for w in WORKED[:2]]
    assert found.sha256 != load("gsm8k(shots=0)", test).sha256
    with pytest.raises(ConfigError, match="4 records"):
        load("gsm8k(shots=4)", test)


def test_worked_examples_are_never_scored(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", WORKED)
    with pytest.raises(ConfigError, match="worked examples come from"):
        load("gsm8k(shots=2)", tmp_path, "train")
    assert len(load("gsm8k(shots=0)", tmp_path, "train").items) == 3


def test_test_means_validation_where_the_test_split_has_no_labels(tmp_path: Path) -> None:
    sample = next(s for s in SAMPLES if s.spec == "hellaswag")
    lines(tmp_path / "hellaswag_val.jsonl", sample.files["validation.jsonl"])
    lines(tmp_path / "hellaswag_test.jsonl", [{"nothing": 1}])
    assert load("hellaswag", tmp_path).source == "hellaswag_val.jsonl"


@pytest.mark.parametrize(
    ("spec", "records", "words"),
    [
        ("gsm8k(shots=0)", PROGRAMS, ["is not gsm8k", "line 1", "'answer'"]),
        ("gsm8k(shots=0)", [{"question": "How many?", "answer": 51.0}], ["is not gsm8k", "text in 'answer'", "51.0"]),
        ("gsm8k(shots=0)", [*STORIES, {"question": "q", "answer": "5"}], ["line 4", "#### number"]),
        ("humaneval", STORIES, ["is not humaneval", "'prompt'"]),
        ("humaneval", [{**FUNCTIONS[0], "entry_point": "other"}], ["defines 'other'"]),
        ("mbpp", FUNCTIONS, ["is not mbpp", "'test_list'"]),
        ("mbpp", [{**PROGRAMS[0], "test_list": ["import os"]}], ["assert statements"]),
        ("mbpp", [{**PROGRAMS[0], "test_list": "assert 1"}], ["a list of texts"]),
        ("mbpp", [{**PROGRAMS[0], "test_imports": "import math"}], ["a list of texts in 'test_imports'"]),
        ("math", STORIES, ["is not math", "not GSM8K's"]),
        ("math", [{"problem": "1 + 1?", "solution": "2"}], [r"\boxed{}"]),
        ("svamp", STORIES, ["is not svamp", "a number in 'Answer'"]),
        ("mmlu(shots=0)", [{**QUIZ[0], "choices": ["a", "b"]}], ["four choices", "got 2"]),
        ("mmlu(shots=0)", [{**QUIZ[0], "answer": 4}], ["0 to 3", "got 4"]),
        ("arc", QUIZ, ["is not arc_challenge", "answerKey"]),
        ("hellaswag", QUIZ, ["is not hellaswag"]),
        ("piqa", [{"goal": "g", "sol1": "a", "sol2": "b", "label": -1}], ["test files without labels"]),
        ("winogrande(shots=0)", [{"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}], ["'_'"]),
        ("reversal", QUIZ, ["is not poem", "'first'"]),
        ("infilling", [{"prefix": "a", "middle": " ", "suffix": "b"}], ["the middle one not empty"]),
        ("countdown(numbers=3, shots=0)", [{"input": "1,2,3,9", "output": "1+2=3"}], ["steps that reach it"]),
        ("countdown(numbers=4, shots=0)", [{"input": "1,2,3", "output": "1+2=3"}], ["4 numbers and a target"]),
        ("sudoku(shots=0)", [{"input": "1", "output": "2"}], ["filled grid"]),
        ("gsm8k(shots=0)", [[1]], ["a JSON object", "list"]),
        ("gsm8k(shots=0)", [], ["is empty"]),
    ],
)
def test_another_benchmarks_file_is_refused(tmp_path: Path, spec: str, records: list[Any], words: list[str]) -> None:
    path = lines(tmp_path / "items.jsonl", records)
    with pytest.raises(InputError) as e:
        load(spec, path)
    said = f"{e.value} {e.value.remedy}"
    assert all(word in said for word in ["items.jsonl", *words]), said


@pytest.mark.parametrize(
    ("name", "raw", "word"),
    [
        ("a.jsonl", b'{"question": 1}\n{oops\n', "line 2 is not JSON"),
        ("a.json", b"[{]", "is not JSON"),
        ("a.json", b'{"question": "q"}', "a JSON list"),
        ("a.jsonl", b"\xff\xfe", "is not UTF-8"),
        ("a.jsonl.gz", b"no gzip", "is damaged"),
        ("a.jsonl.gz", gzip.compress(b"x" * 999)[:-9], "is damaged"),
        ("a.jsonl.zst", b"no zstd", "is damaged"),
        ("a.parquet", b"no parquet", "is not a parquet file"),
        ("a.csv", b"a,b", "unknown format"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, raw: bytes, word: str) -> None:
    if name.endswith(".zst"):
        pytest.importorskip("zstandard", reason="zstandard (extra `eval`) is not installed")
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow (for parquet files) is not installed")
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ConfigError, match=word):
        load("gsm8k(shots=0)", tmp_path / name)


def test_missing_and_ambiguous_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file"):
        load("gsm8k(shots=0)", tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="no items of the split 'test'"):
        load("gsm8k(shots=0)", tmp_path)
    lines(tmp_path / "a_test.jsonl", STORIES)
    lines(tmp_path / "b_test.jsonl", STORIES)
    with pytest.raises(ConfigError, match=r"a_test.jsonl, b_test.jsonl"):
        load("gsm8k(shots=0)", tmp_path)


def test_two_items_of_one_id_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "humaneval.jsonl", [*FUNCTIONS, FUNCTIONS[0]])
    with pytest.raises(ConfigError, match=r"line 3: the id 'Own/0' is taken; got the same in .*line 1"):
        load("humaneval", path)


def test_mmlu_wants_worked_examples_of_each_subject(tmp_path: Path) -> None:
    lines(tmp_path / "test.jsonl", [{**QUIZ[0], "subject": "law"}])
    lines(tmp_path / "dev.jsonl", [{**QUIZ[1], "subject": "art"}])
    with pytest.raises(ConfigError, match="'law'"):
        load("mmlu(shots=1)", tmp_path)


def test_missing_extras_are_named_with_their_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, wanted in (("zstandard", "a.jsonl.zst"), ("pyarrow", "a.parquet"), ("datasets", None)):
        monkeypatch.setitem(sys.modules, name, None)
        path = None if wanted is None else tmp_path / wanted
        if path is not None:
            path.write_bytes(b"content")
        with pytest.raises(ConfigError, match="is missing") as e:
            load("gsm8k(shots=0)", path)
        assert "unmask[eval]" in e.value.remedy


def test_the_hub_is_asked_by_the_tasks_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    hub = types.ModuleType("datasets")
    hub.exceptions = types.SimpleNamespace(DatasetsError=RuntimeError)  # type: ignore[attr-defined]

    def load_dataset(name: str, subset: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((name, subset, split))
        return STORIES if split == "test" else WORKED

    hub.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", hub)
    found = load("gsm8k(shots=1)", None)
    assert asked == [("openai/gsm8k", "main", "test"), ("openai/gsm8k", "main", "train")]
    assert "hub:openai/gsm8k/main/test" in found.source and len(found.sha256) == 64
    monkeypatch.setattr(hub, "load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("offline")))
    with pytest.raises(ConfigError, match="offline") as e:
        load("gsm8k(shots=1)", None)
    assert "--data" in e.value.remedy


def test_generated_tasks_take_no_data_of_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="generated"):
        load("synthetic", tmp_path)
    with pytest.raises(ConfigError, match="test or train"):
        load("sudoku", None, "dev")
    with pytest.raises(ConfigError, match="not on the hub"):
        load("reversal", None)


def test_loading_needs_no_torch() -> None:
    assert "torch" not in vars(files)
