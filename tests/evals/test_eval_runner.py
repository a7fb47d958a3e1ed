"""The runner: an oracle through the whole pipeline, records that repeat to the byte, resuming, limits, folders."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints
from eval_toys import Sums, oracle

import unmask
from unmask.core.errors import ConfigError, InputError, RecordingError, RunError
from unmask.engine.options import DecodeOptions
from unmask.evals.runner import Begun, Decoded, Finished, Setup, evaluate
from unmask.evals.runner.folder import Folder
from unmask.evals.runner.plan import Plan, item_seed, limited
from unmask.evals.runner.results import summary

TASK = Sums()
SAMPLED = DecodeOptions(temperature=0.7, policy="threshold(0.3)", schedule="blocks(8)")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return unmask.load(
        tiny_checkpoints.llada_checkpoint(tmp_path_factory.mktemp("runner") / "tiny"), dtype="fp32", device="cpu"
    )


def setup(**given: Any) -> Setup:
    return Setup(**{"task": TASK, "options": SAMPLED, "batch": 4, **given})


def run(model: Any, folder: Path, given: Setup | None = None, **more: Any) -> dict[str, Any]:
    last = list(evaluate(model, given or setup(), folder, **more))[-1]
    assert isinstance(last, Finished)
    assert last.results is not None
    return dict(last.results)


def files(folder: Path) -> dict[str, bytes]:
    """Everything that must repeat: no timing, no lock."""
    return {
        p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and not p.name.startswith((".lock", "timing"))
    }


def records(folder: Path, name: str = "items.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text("utf-8").split("\n") if line]


# ---- the whole pipeline ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "score"), [(True, 1.0), (False, 0.0)])
def test_an_oracle_scores_everything_and_its_opposite_nothing(right: bool, score: float, tmp_path: Path) -> None:
    data = TASK.load(None, "test")
    found = oracle(tmp_path / "model", TASK, data, lambda i: i.fields["answer"] if right else "wrong")
    results = run(found, tmp_path / "run", Setup(TASK, max_tokens=8), samples=True)
    assert (results["score"], results["n"], results["answers"]) == (score, 20, 20)
    assert results["interval"] == "Wilson 95 %"
    assert [r["id"] for r in records(tmp_path / "run")] == [i.id for i in data.items]
    sample = records(tmp_path / "run", "samples_Sums.jsonl")[3]
    assert sample["doc"] == dict(data.items[3].fields)
    assert sample["exact"] == score
    assert sample["resps"] == [[records(tmp_path / "run")[3]["text"]]]


def test_records_have_what_happened_and_no_time(model: Any, tmp_path: Path) -> None:
    results = run(model, tmp_path / "run")
    record = records(tmp_path / "run")[5]
    assert record["id"] == "sum/5"
    assert record["seed"] == item_seed(0, "sum/5", 0)
    assert 0 <= record["confidence"]["min"] <= record["confidence"]["mean"] <= 1
    assert 0 < record["nfe"] <= 16
    assert record["row_layers"] % 2 == 0  # two layers
    assert sum(record["forwards"].values()) == record["nfe"] and record["head_rows"] >= 16
    assert sum(results["cost"]["forwards"].values()) == pytest.approx(results["cost"]["nfe"])
    assert not any("second" in name or "time" in name for name in record)
    timing = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert timing["decoding"]["answers"] == 20
    assert timing["decoding"]["tokens"] == sum(r["tokens"] for r in records(tmp_path / "run"))
    assert results["cost"]["nfe"] == pytest.approx(sum(r["nfe"] for r in records(tmp_path / "run")) / 20)
    assert "threshold(threshold=0.3)" in results["run"]["strategy"]
    assert len(results["run"]["model_sha256"]) == 64


def test_answers_depend_on_seed_and_id_not_on_company(model: Any, tmp_path: Path) -> None:
    def texts(name: str, **given: Any) -> dict[str, str]:
        run(model, tmp_path / name, setup(**given))
        return {r["id"]: r["text"] for r in records(tmp_path / name)}

    alone, crowd = texts("a", batch=1), texts("b", batch=7)
    assert alone == crowd
    assert len(set(alone.values())) > 5
    assert texts("c", seed=1) != alone
    few = Sums(count=6)
    run(model, tmp_path / "d", setup(task=few))
    assert {r["id"]: r["text"] for r in records(tmp_path / "d")} == {k: v for k, v in alone.items() if int(k[4:]) < 6}


def test_samples_of_an_item_differ_and_count_as_one_item(model: Any, tmp_path: Path) -> None:
    results = run(model, tmp_path / "run", setup(task=Sums(count=5), n_samples=3))
    assert (results["n"], results["answers"]) == (5, 15)
    found = records(tmp_path / "run")
    assert [(r["index"], r["sample"]) for r in found[:4]] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert len({r["text"] for r in found[:3]}) > 1


def test_programs_run_in_the_sandbox_with_pass_at_k(tmp_path: Path) -> None:
    task = Sums(count=2, kind="code")
    answers = {"sum/0": "no"}
    found = oracle(tmp_path / "model", task, task.load(None, "test"), lambda i: answers.get(i.id, i.fields["answer"]))
    given = Setup(task, max_tokens=8, n_samples=2, pass_at=(1, 2), weak=True, timeout=60.0)
    results = run(found, tmp_path / "run", given)
    assert results["score"] == 0.5
    assert {k: p["score"] for k, p in results["pass_at"].items()} == {"1": 0.5, "2": 0.5}
    assert {r["status"] for r in records(tmp_path / "run")[:2]} == {"failed"}
    assert {r["status"] for r in records(tmp_path / "run")[2:]} == {"passed"}


def test_choices_are_scored_and_decoding_options_refused(model: Any, tmp_path: Path) -> None:
    task = Sums(count=3, kind="choice")
    results = run(model, tmp_path / "run", Setup(task, batch=2))
    assert results["n"] == 3
    assert any("Instruct" in w for w in results["warnings"])  # the tiny checkpoint has a chat template
    for record in records(tmp_path / "run"):
        assert len(record["values"]) == 2
        assert record["extracted"] == str(int(record["values"][1] > record["values"][0]))
    with pytest.raises(ConfigError, match="--policy"):
        Plan(model, setup(task=task))


def test_warnings_of_known_problems(model: Any) -> None:
    from unmask.evals.runner.known import known_problems

    assert not known_problems(Plan(model, setup()))
    assert "without its chat template" in known_problems(Plan(model, setup(chat=False)))[0]
    base = replace(model, name="somewhere/Tiny-Base")
    assert not known_problems(Plan(base, setup(chat=False)))
    greedy = setup(n_samples=3, options=DecodeOptions(temperature=0.0))
    assert "mostly the same answer" in known_problems(Plan(model, greedy))[0]
    assert not known_problems(Plan(model, setup(n_samples=3)))


def test_a_prompt_that_does_not_fit_says_what_an_evaluation_can_change(model: Any) -> None:
    with pytest.raises(InputError, match="item sum/0") as caught:
        _ = Plan(model, setup(max_tokens=100_000)).asked
    assert "fewer worked examples" in str(caught.value.remedy)


# ---- resuming --------------------------------------------------------------------------------------------------------


def interrupted(model: Any, folder: Path, groups: int, **more: Any) -> None:
    """A run that stops after so many groups."""
    events = evaluate(model, setup(), folder, **more)
    for event in events:
        if isinstance(event, Decoded) and (groups := groups - 1) == 0:
            events.close()
            return
    raise AssertionError("it ended before")


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(model: Any, tmp_path: Path) -> None:
    run(model, tmp_path / "whole", samples=True)
    interrupted(model, tmp_path / "cut", 2, samples=True)
    events = list(evaluate(model, setup(), tmp_path / "cut", samples=True))
    assert isinstance(events[0], Begun)
    assert (events[0].done, events[0].total) == (8, 20)
    assert sum(isinstance(e, Decoded) for e in events) == 3
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert not (tmp_path / "cut" / "parts").exists()
    timing = json.loads((tmp_path / "cut" / "timing.json").read_text())
    assert len(timing["sessions"]) == 2


@pytest.mark.parametrize("cut", [1, 40, 5000])
def test_a_torn_last_line_is_dropped_and_done_again(model: Any, tmp_path: Path, cut: int) -> None:
    run(model, tmp_path / "whole")
    interrupted(model, tmp_path / "cut", 3)
    part = tmp_path / "cut" / "parts" / "rank0.jsonl"
    data = part.read_bytes()
    part.write_bytes(data[: max(data[:-1].rfind(b"\n") + 2, len(data) - cut)])
    first = next(iter(evaluate(model, setup(), tmp_path / "cut")))
    assert isinstance(first, Begun)
    assert first.done == 8
    run(model, tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_damaged_line_in_the_middle_is_named(model: Any, tmp_path: Path) -> None:
    interrupted(model, tmp_path / "cut", 3)
    part = tmp_path / "cut" / "parts" / "rank0.jsonl"
    lines = part.read_bytes().split(b"\n")
    lines[1] = lines[1][:50]
    part.write_bytes(b"\n".join(lines))
    with pytest.raises(RecordingError, match="line 2 is damaged"):
        run(model, tmp_path / "cut")


@pytest.mark.parametrize("records", [[1, 2, 3, 4], [{}], [{"index": 0, "sample": 0, "scores": {}}] * 4])
def test_a_line_with_other_records_is_named(model: Any, tmp_path: Path, records: list[Any]) -> None:
    interrupted(model, tmp_path / "cut", 1)
    line = {"stage": "answers", "keys": [[0, 0], [1, 0], [2, 0], [3, 0]], "records": records, "cost": {}}
    (tmp_path / "cut" / "parts" / "rank0.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(RecordingError, match="line 1 is damaged"):
        run(model, tmp_path / "cut")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'{"index": 0}\n', b"[]\n"])
def test_damaged_items_are_named_where_they_are_read_again(model: Any, tmp_path: Path, content: bytes) -> None:
    run(model, tmp_path / "run", setup(limit=4))
    (tmp_path / "run" / "items.limit-4.jsonl").write_bytes(content)
    with pytest.raises(RecordingError, match=r"limit-4\.jsonl line 1"):
        run(model, tmp_path / "run", setup(limit=4), samples=True)
    with pytest.raises(RecordingError, match=r"limit-4\.jsonl line 1"):
        run(model, tmp_path / "run", setup(limit=8), extend=True)


def test_a_finished_run_is_only_shown(model: Any, tmp_path: Path) -> None:
    first = run(model, tmp_path / "run")
    events = list(evaluate(model, setup(), tmp_path / "run"))
    assert len(events) == 1
    assert events[0].results == first  # type: ignore[union-attr]
    assert not (tmp_path / "run" / "samples_Sums.jsonl").exists()
    run(model, tmp_path / "run", samples=True)  # asked for later: made from the records
    assert len(records(tmp_path / "run", "samples_Sums.jsonl")) == 20


@pytest.mark.parametrize("change", [{"run": {}}, {"cost": None}, {}, {"score": "x"}, {"cost": {"nfe": 1}}])
def test_a_results_file_of_something_else_is_refused(model: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    first = run(model, tmp_path / "run")
    other = {k: v for k, v in {**first, **change}.items() if v is not None} if change else {"format": 1, "score": 1.0}
    (tmp_path / "run" / "results.json").write_text(json.dumps(other))
    with pytest.raises(RecordingError, match="the results of this run"):
        run(model, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "0 (seed)"),
        ({"batch": 5}, "4 (batch)"),
        ({"task": Sums(count=19)}, "(task)"),
        ({"options": DecodeOptions(policy="threshold(0.5)")}, "(options.policy)"),
        ({"max_tokens": 8}, "16 (max_tokens)"),
    ],
)
def test_other_settings_are_refused_by_name(model: Any, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    interrupted(model, tmp_path / "run", 1)
    with pytest.raises(ConfigError) as error:
        run(model, tmp_path / "run", setup(**change))
    assert words in str(error.value)
    assert "another folder" in error.value.remedy


def test_another_model_is_refused(model: Any, tmp_path: Path) -> None:
    interrupted(model, tmp_path / "run", 1)
    other = unmask.load(tiny_checkpoints.llada_checkpoint(tmp_path / "other", seed=1), dtype="fp32", device="cpu")
    with pytest.raises(ConfigError, match="model_sha256"):
        run(other, tmp_path / "run")


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_limits_mean_the_first_items() -> None:
    assert [limited(1319, x) for x in (None, 100, 5000, 0.1, 0.0001)] == [1319, 100, 1319, 132, 1]
    for wrong in (0, -1, 1.5, 0.0, True):
        with pytest.raises(ConfigError):
            Setup(TASK, limit=wrong)


def test_a_limited_run_keeps_its_name_and_grows_only_when_told(model: Any, tmp_path: Path) -> None:
    run(model, tmp_path / "whole")
    results = run(model, tmp_path / "run", setup(limit=10))
    assert (results["limited"], results["n"], results["items_in_data"]) == (True, 10, 20)
    assert {"results.limit-10.json", "items.limit-10.jsonl"} <= set(files(tmp_path / "run"))
    assert "results.json" not in files(tmp_path / "run")
    with pytest.raises(ConfigError) as error:
        run(model, tmp_path / "run")
    assert "--extend" in error.value.remedy
    events = list(evaluate(model, setup(), tmp_path / "run", extend=True))
    assert isinstance(events[0], Begun)
    assert events[0].done == 8  # two groups of four; the third had two answers only
    grown, whole = files(tmp_path / "run"), files(tmp_path / "whole")
    assert {n: grown[n] for n in whole} == whole
    with pytest.raises(ConfigError, match="other settings") as error:
        run(model, tmp_path / "run", setup(limit=10), extend=True)
    assert "does not become smaller" in error.value.remedy


def test_a_limit_that_holds_all_items_is_none(model: Any, tmp_path: Path) -> None:
    assert run(model, tmp_path / "run", setup(limit=500))["limited"] is False


# ---- the folder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 9, "run": {}}', '{"format": 1}', '{"format": 1, "run": {}, "notes": 1}']
)
def test_a_damaged_manifest_is_refused(model: Any, tmp_path: Path, content: str) -> None:
    interrupted(model, tmp_path / "run", 1)
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(RecordingError) as error:
        run(model, tmp_path / "run")
    assert "another folder" in error.value.remedy


def test_a_folder_with_other_files_is_left_alone(model: Any, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="other files"):
        run(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["letter.txt"]
    with pytest.raises(InputError, match="a file"):
        run(model, tmp_path / "letter.txt")


def test_two_processes_do_not_write_the_same_folder(model: Any, tmp_path: Path) -> None:
    with Folder(tmp_path / "run").locked(), pytest.raises(InputError, match="no other process"):
        run(model, tmp_path / "run")
    run(model, tmp_path / "run")


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="an ordinary user is missing: root writes everywhere"
)
def test_a_closed_folder_is_refused(model: Any, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match="can be written"):
        run(model, tmp_path / "closed" / "run")
    with pytest.raises(InputError, match="can be written"):
        run(model, tmp_path / "closed")


def test_setups_that_mean_nothing_are_refused(model: Any, tmp_path: Path) -> None:
    for wrong in ({"batch": 0}, {"n_samples": 0}, {"audit": 0.0}, {"pass_at": (2,)}, {"seed": -1}):
        with pytest.raises(ConfigError):
            setup(**wrong)
    with pytest.raises(ConfigError, match="run as programs"):
        Plan(model, setup(pass_at=(1,)))
    with pytest.raises(InputError, match="item sum/0"):
        run(model, tmp_path / "run", setup(max_tokens=500))
    assert not (tmp_path / "run").exists()


# ---- several processes -----------------------------------------------------------------------------------------------


def test_ranks_share_the_work_and_end_with_the_same_bytes(model: Any, tmp_path: Path) -> None:
    run(model, tmp_path / "whole")
    begun = evaluate(model, setup(), tmp_path / "two", rank=0, world=2)
    assert isinstance(next(begun), Begun)  # rank 0 has written the manifest
    helped = list(evaluate(model, setup(), tmp_path / "two", rank=1, world=2))
    assert helped[-1] == Finished(None, tmp_path / "two")
    assert sum(isinstance(e, Decoded) for e in helped) == 2
    assert sum(isinstance(e, Decoded) for e in begun) == 3
    assert files(tmp_path / "two") == files(tmp_path / "whole")
    timing = json.loads((tmp_path / "two" / "timing.json").read_text())
    assert set(timing["decoding"]["seconds_of_process"]) == {"0", "1"}


def test_a_helper_that_never_comes_is_named(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.evals.runner.run.PATIENCE", 1.0)
    with pytest.raises(RunError, match="process 1 of 2 is gone"):
        run(model, tmp_path / "run", rank=0, world=2)
    run(model, tmp_path / "alone")
    run(model, tmp_path / "run")  # one process alone takes what is left
    assert files(tmp_path / "run") == files(tmp_path / "alone")


# ---- the audit -------------------------------------------------------------------------------------------------------


def test_an_audit_measures_the_drift_of_a_stale_cache(model: Any, tmp_path: Path) -> None:
    given = setup(options=replace(SAMPLED, cache="dual", schedule="blocks(4)"), audit=0.5)
    results = run(model, tmp_path / "run", given)
    audit, compared = results["audit"], records(tmp_path / "run", "audit.jsonl")
    assert audit["n"] == len(compared) == 10
    assert audit["against"] == "an exact cache"
    flips = [c for c in compared if c["first_difference"] is not None]
    assert audit["texts_that_differ"]["share"] == len(flips) / 10
    run(model, tmp_path / "exact", setup(options=replace(SAMPLED, schedule="blocks(4)")))
    exact, stale = ({r["id"]: r for r in records(tmp_path / n)} for n in ("exact", "run"))
    for c in compared:
        assert c["text_exact"] == exact[c["id"]]["text"]
        a, b = exact[c["id"]]["ids"], stale[c["id"]]["ids"]
        if c["first_difference"] is None:
            assert a == b
        else:
            assert a[: c["first_difference"]] == b[: c["first_difference"]]


def test_an_audit_of_an_exact_strategy_is_pointless(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pointless"):
        run(model, tmp_path / "run", setup(audit=0.5))
    assert not (tmp_path / "run").exists()


def test_an_audit_against_another_dtype(model: Any, tmp_path: Path) -> None:
    half = unmask.load(model.directory, dtype="bf16", device="cpu")
    results = run(half, tmp_path / "run", setup(audit=1.0), audit_model=model)
    assert results["audit"]["against"] == "the same strategy in float32"
    assert results["audit"]["n"] == 20


# ---- adding up -------------------------------------------------------------------------------------------------------


def test_scores_between_0_and_1_get_an_interval_over_items() -> None:
    rows = [
        {"index": i, "scores": {"s": v}, "extracted": "x", "tokens": 1, "nfe": 1}
        for i, values in enumerate([(0, 1), (1, 1), (0, 0)])
        for v in values
    ]
    found = summary(rows, "s")
    assert found["score"] == pytest.approx(0.5)
    assert found["interval"].startswith("normal")
    assert 0 <= found["low"] < 0.5 < found["high"] <= 1


def test_scores_that_are_all_the_same_are_not_certain() -> None:
    rows = [{"index": 0, "scores": {"s": v}, "extracted": "x", "tokens": 1, "nfe": 1} for v in (0, 1)]
    found = summary(rows, "s", (1,))
    assert (found["score"], found["interval"]) == (0.5, "Wilson 95 %")
    assert found["low"] < 0.1 < 0.9 < found["high"]
    assert found["pass_at"]["1"]["low"] < 0.1
