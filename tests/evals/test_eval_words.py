"""What a run says and leaves behind: who decided a setting, which item broke, nothing twice, no stray files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints
from eval_items import FUNCTIONS
from eval_toys import Sums, oracle

import unmask
from unmask.cli.eval_show import line_of
from unmask.core import catalog
from unmask.core.errors import ConfigError, RecordingError
from unmask.engine.options import DecodeOptions
from unmask.evals.likelihood import Scoring
from unmask.evals.runner import Finished, Setup, evaluate
from unmask.evals.runner.lock import held, is_held
from unmask.evals.runner.plan import Plan
from unmask.evals.task import Item, Verdict
from unmask.evals.tasks.data import _json
from unmask.pipeline import Model

OPTIONS = DecodeOptions(policy="threshold(0.3)", schedule="blocks(8)")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return unmask.load(
        tiny_checkpoints.llada_checkpoint(tmp_path_factory.mktemp("words") / "tiny"), dtype="fp32", device="cpu"
    )


def results(model: Model, setup: Setup, folder: Path, **more: Any) -> dict[str, Any]:
    last = list(evaluate(model, setup, folder, **more))[-1]
    assert isinstance(last, Finished) and last.results is not None
    return dict(last.results)


def test_a_finished_folder_has_no_lock_and_no_parts(model: Model, tmp_path: Path) -> None:
    results(model, Setup(Sums(4), options=OPTIONS), tmp_path / "run")
    left = {p.name for p in (tmp_path / "run").iterdir()}
    assert left == {"items.jsonl", "results.json", "run.json", "timing.json"}


def test_a_lock_on_a_file_that_was_deleted_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path) as first:
        path.unlink()
        with held(path) as second, held(path) as third:
            assert (first, second, third) == (True, True, False)
            assert is_held(path)
    assert not is_held(path)


def test_samples_are_never_made_of_items_that_are_gone(model: Model, tmp_path: Path) -> None:
    setup, out = Setup(Sums(4), options=OPTIONS), tmp_path / "run"
    results(model, setup, out)
    (out / "items.jsonl").unlink()
    with pytest.raises(RecordingError, match="expected the 4 answers of this run; got 0"):
        results(model, setup, out, samples=True)
    assert not list(out.glob("samples_*"))
    (out / "results.json").unlink()
    results(model, setup, out, samples=True)
    assert len((out / "samples_Sums.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("given", "said"), [({}, "16 (task)"), ({"max_tokens": 8}, "8 (given)"), ({"protocol": "p"}, "16 (task)")]
)
def test_a_length_says_who_decided_it(model: Model, given: dict[str, Any], said: str) -> None:
    settings = Plan(model, Setup(Sums(1), options=OPTIONS, **given)).settings
    assert settings["gen_length"] == said
    assert settings["policy"].endswith("(protocol)" if "protocol" in given else "(given)")


@dataclass(frozen=True)
class Breaking(Sums):
    """A judge that knows two answers only."""

    error: type[Exception] = KeyError

    def judge(self, item: Item, answer: str) -> Verdict:
        if item.id == "sum/2":
            raise self.error("no such thing")
        return super().judge(item, answer)


@pytest.mark.parametrize("error", [KeyError, ConfigError])
def test_a_judge_that_breaks_names_its_item(error: type[Exception], model: Model) -> None:
    with pytest.raises(error) as broken:
        list(evaluate(model, Setup(Breaking(4, error=error), options=OPTIONS)))
    assert broken.value.__notes__ == ["while item sum/2 was judged"]


def test_pass_at_1_is_printed_once(tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in FUNCTIONS))
    task: Any = catalog.parse("task", "humaneval(prompt='instruct', post='plain')")
    known = oracle(
        tmp_path / "m", task, task.load(str(path), "test"), lambda i: f"{i.fields['canonical_solution']}\n```"
    )
    spec = "humaneval(prompt='instruct', post='plain')"
    for chat in (None, True):
        model = (
            known
            if chat
            else oracle(
                tmp_path / "raw",
                task,
                task.load(str(path), "test"),
                lambda i: str(i.fields["canonical_solution"]),
                False,
            )
        )
        setup = Setup(
            spec, str(path), chat=bool(chat), max_tokens=160, n_samples=2, pass_at=(1, 2), weak=True, timeout=60.0
        )
        out = tmp_path / f"run-{chat}"
        found = results(model, setup, out, samples=True)
        assert found["score"] == 1.0
        printed = line_of(found)
        assert printed.count("pass@1") == 1 and "pass@2 100.0%" in printed
        assert "programs: 4 passed\n" in printed
        assert "3 passed, 1 timeout; time is the wall clock's" in line_of(
            {**found, "programs": {"passed": 3, "timeout": 1}}
        )
        sample = json.loads((out / "samples_humaneval.jsonl").read_text().splitlines()[0])
        assert "Here is the completed function:" in sample["arguments"]["gen_args_0"]["arg_0"]


def test_json_that_is_nested_too_deep_is_said_to_be() -> None:
    with pytest.raises(ConfigError, match="nested some hundred levels deep at most; got deeper brackets"):
        _json("x.json line 3", "[" * 100_000)


@pytest.mark.parametrize(
    ("scoring", "words"),
    [
        (Scoring(), "method auto, 128 draws in rounds of 16"),
        (Scoring("exact", cfg_scale=0.5), "method exact, guidance 0.5"),
        (Scoring("bound", error=0.1), "method bound, an error of 0.1 nats, at most 8192 draws in rounds of 16"),
        (Scoring("llada", 64, greedy=True), "method llada, 64 draws in rounds of 16, greedy check"),
    ],
)
def test_a_scoring_is_said_in_words(scoring: Scoring, words: str) -> None:
    assert scoring.words == words
