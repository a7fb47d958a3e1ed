"""Every benchmark of the catalog on items of our own: layout, oracle, wrong oracle, and what its prompts must be."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eval_items import (
    FUNCTIONS,
    PROBLEMS,
    PROGRAMS,
    QUIZ,
    SAMPLES,
    SPANS,
    STORIES,
    WORKED,
    WORKED_PROBLEMS,
    WORKED_PROGRAMS,
    Sample,
    write,
)

from unmask.core import catalog
from unmask.core.errors import ConfigError, SpecError
from unmask.evals.task import Data, Item, Question, Task, Verdict
from unmask.evals.tasks import countdown, math_answer, sudoku
from unmask.evals.tasks.layout import draws
from unmask.evals.tasks.synthetic import split_of


def loaded(sample: Sample, folder: Path) -> tuple[Task, Data]:
    task: Task = catalog.parse("task", sample.spec)
    return task, task.load(write(folder, sample), "test")


def of(spec: str) -> Sample:
    return next(s for s in SAMPLES if s.spec == spec)


def score(task: Task, item: Item, answer: Any) -> dict[str, float]:
    """The verdict's scores; a program's is whether it runs to its end (in a process of its own: it is ours)."""
    if task.kind == "choice":
        values = [0.0 if i == answer else -50.0 * (1 + i) for i in range(len(item.fields["candidates"]))]
        return dict(task.judge_choice(item, values).scores)
    verdict: Verdict = task.judge(item, answer)
    if task.kind != "code":
        return dict(verdict.scores)
    assert verdict.program is not None
    done = subprocess.run([sys.executable, "-I", "-c", verdict.program], capture_output=True, timeout=30)
    return {task.metric: float(done.returncode == 0)}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.spec)
def test_oracle_scores_one_and_wrong_oracle_zero(sample: Sample, tmp_path: Path) -> None:
    task, data = loaded(sample, tmp_path)
    assert data.items and len({i.id for i in data.items}) == len(data.items)
    for item in data.items:
        right, wrong = score(task, item, sample.right(item)), score(task, item, sample.wrong(item))
        assert task.metric in right and set(right.values()) == {1.0}, (item.id, right)
        assert set(wrong.values()) == {0.0}, (item.id, wrong)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.spec)
def test_a_task_is_a_pure_function_of_its_spec_and_data(sample: Sample, tmp_path: Path) -> None:
    task, data = loaded(sample, tmp_path)
    again, same = loaded(sample, tmp_path)
    assert same == data and repr(again) == repr(task) and catalog.parse("task", repr(task)) == task
    assert [again.question(i, same.shots) for i in same.items] == [task.question(i, data.shots) for i in data.items]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.spec)
def test_no_question_holds_its_own_answer(sample: Sample, tmp_path: Path) -> None:
    task, data = loaded(sample, tmp_path)
    if task.kind == "choice" or sample.spec.startswith(("mbpp", "humaneval", "synthetic")):
        return  # candidates and tests are shown, short sorted lists may stand inside
    for item in data.items:
        question: Question = task.question(item, data.shots)
        asked = question.text.rsplit("Question:", 1)[-1].rsplit("Input:", 1)[-1].rsplit("Problem:", 1)[-1]
        assert str(sample.right(item)).strip() not in asked
        if question.messages:
            assert question.messages[-1]["role"] == "user"
            assert question.messages[-1]["content"].endswith(asked[-20:])


def test_every_catalog_line_has_a_sample() -> None:
    assert {s.spec.partition("(")[0] for s in SAMPLES} == set(catalog.entries("task"))


@pytest.mark.parametrize("name", sorted(catalog.entries("task")))
def test_published_settings_are_declared(name: str) -> None:
    task: Task = catalog.parse("task", name)
    assert task.kind in ("generate", "code", "choice") and task.metric
    assert (task.max_tokens > 0) == (task.kind != "choice")
    assert getattr(task, "shots", 0) == task.default_shots


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_gsm8k_layout_is_lm_evals(tmp_path: Path) -> None:
    task, data = loaded(of("gsm8k(shots=2)"), tmp_path)
    question = task.question(data.items[0], data.shots)
    shown = "".join(f"Question: {w['question']}\nAnswer: {w['answer']}\n\n" for w in WORKED[:2])
    assert question.text == f"{shown}Question: {STORIES[0]['question']}\nAnswer:"
    assert [m["role"] for m in question.messages] == ["user", "assistant"] * 2 + ["user"]
    assert question.messages[1]["content"] == WORKED[0]["answer"]
    assert question.until == ("Question:", "</s>", "<|im_end|>")


def test_worked_examples_in_one_turn_are_the_raw_text(tmp_path: Path) -> None:
    task, data = loaded(of("gsm8k(shots=2, pick='lm_eval', turns='single')"), tmp_path)
    for item in data.items:
        question = task.question(item, data.shots)
        assert question.messages == ({"role": "user", "content": question.text},)
        assert question.text.count("Question: ") == 3


def test_lm_evals_draws_are_reproduced() -> None:
    # lm-eval 0.4.13's sampler with its seed 1234 on a pool of 7473, asked for five examples, first items
    assert draws(7473, 5, 2) == draws(7473, 5, 8)[:2]
    assert draws(7473, 5, 2) == RECORDED_DRAWS


def test_boxed_prompt_doubles_the_braces_as_published(tmp_path: Path) -> None:
    write(tmp_path, of("gsm8k(shots=2)"))
    task: Task = catalog.parse("task", "gsm8k(shots=0, prompt='boxed')")
    data = task.load(str(tmp_path), "test")
    text = task.question(data.items[0], data.shots).text
    wish = r"Please reason step by step, and put your final answer within \boxed{{}}."
    assert text == f"Question: {STORIES[0]['question']}\n{wish}"
    assert task.metric == "flexible" and task.judge(data.items[0], r"so \boxed{7}").scores["flexible"] == 1


def test_mbpp_shows_tasks_2_to_4_of_its_data_and_never_scores_them(tmp_path: Path) -> None:
    task, data = loaded(of("mbpp"), tmp_path)
    assert [i.id for i in data.items] == ["mbpp/900", "mbpp/901"]
    question = task.question(data.items[0], data.shots)
    assert question.text.count("[BEGIN]\n") == 4 and question.text.count("\n[DONE]\n\n") == 3
    assert "[BEGIN]\ndef next_one(a):\r\n    return a + 1\n[DONE]\n\n" in question.text
    assert question.text.endswith(
        "You are an expert Python programmer, and here is your task: Write a function to find the distance of two "
        "numbers. Your code should pass these tests:\n\nassert gap(2, 5) == 3\nassert gap(4, 1) == 3\n"
        "assert gap(0, 0) == 0\n[BEGIN]\n"
    )
    assert question.until == ("[DONE]",)


def test_mbpp_finds_its_prompt_split_in_a_directory(tmp_path: Path) -> None:
    sample = Sample("mbpp", {"mbpp_test.jsonl": PROGRAMS, "mbpp_prompt.jsonl": WORKED_PROGRAMS}, str, str)
    _, data = loaded(sample, tmp_path)
    assert data.source == "mbpp_test.jsonl; worked examples: mbpp_prompt.jsonl" and len(data.items) == 2
    assert [s.id for s in data.shots] == ["mbpp/2", "mbpp/3", "mbpp/4"]
    with pytest.raises(ConfigError, match="at least 4"):
        catalog.parse("task", "mbpp(shots=4)").load(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("name", "records", "shown"), [("mbpp", PROGRAMS, WORKED_PROGRAMS), ("math", PROBLEMS, WORKED_PROBLEMS)]
)
def test_worked_examples_come_from_a_file_that_is_named(
    name: str, records: list[Any], shown: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.evals.tasks.worked.lm_eval_examples", lambda folder: None)
    folder = write(tmp_path, Sample(name, {f"{name}.jsonl": records, "worked.jsonl": shown}, str, str))
    only = str(tmp_path / f"{name}.jsonl")
    with pytest.raises(ConfigError, match="lm-eval installed") as refused:
        catalog.parse("task", f"{name}(shots=2)").load(only, "test")
    assert f"{name}(shots=0)" in refused.value.remedy and "unmask[harness]" in refused.value.remedy
    assert len(catalog.parse("task", f"{name}(shots=0)").load(only, "test").shots) == 0
    path = f"{folder}/worked.jsonl"
    task: Task = catalog.parse("task", f"{name}(shots=2, shots_file={path!r})")
    data = task.load(only, "test")
    assert len(data.items) == len(records) and data.source == f"{name}.jsonl; worked examples: worked.jsonl"
    text = task.question(data.items[0], data.shots).text
    answer = "code" if name == "mbpp" else "solution"
    assert [s[answer] in text for s in shown[:3]] == [True, True, False]
    with pytest.raises(ConfigError, match="at least 5"):
        catalog.parse("task", f"{name}(shots=5, shots_file={path!r})").load(only, "test")


def test_a_worked_example_without_its_answer_is_refused(tmp_path: Path) -> None:
    bare = [{k: v for k, v in r.items() if k != "code"} for r in WORKED_PROGRAMS]
    folder = write(tmp_path, Sample("mbpp", {"mbpp.jsonl": PROGRAMS, "worked.jsonl": bare}, str, str))
    with pytest.raises(ConfigError, match="text in 'code'"):
        catalog.parse("task", f"mbpp(shots_file={folder + '/worked.jsonl'!r})").load(f"{folder}/mbpp.jsonl", "test")


@pytest.mark.parametrize(("name", "records", "count"), [("mbpp", PROGRAMS, 3), ("math", PROBLEMS, 4)])
def test_published_worked_examples_come_from_the_installed_lm_eval(
    name: str, records: list[Any], count: int, tmp_path: Path
) -> None:
    pytest.importorskip(
        "lm_eval", reason="lm-eval (extra `harness`), which holds the published worked examples, is not installed"
    )
    task, data = loaded(Sample(name, {f"{name}.jsonl": records}, str, str), tmp_path)
    assert len(data.shots) == count and "lm-eval's" in data.source
    text = task.question(data.items[0], data.shots).text
    assert all(str(s.fields.get("code") or s.fields["solution"]) in text for s in data.shots)


def test_mbpp_takes_the_tests_out_of_a_question_that_holds_them(tmp_path: Path) -> None:
    record = {
        "question": "Write it.\nYour code should pass the test:\nassert f(1) == 2\n",
        "test_list": ["assert f(1) == 2"],
    }
    sample = Sample("mbpp(shots=0)", {"mbpp.jsonl": [record]}, str, str)
    task, data = loaded(sample, tmp_path)
    assert task.question(data.items[0], ()).text.count("assert f(1) == 2") == 1


def test_math_layout_is_minervas(tmp_path: Path) -> None:
    write(tmp_path, Sample("", {"math.jsonl": PROBLEMS, "worked.jsonl": WORKED_PROBLEMS}, str, str))
    task: Task = catalog.parse("task", f"math(shots_file={str(tmp_path / 'worked.jsonl')!r})")
    data = task.load(str(tmp_path / "math.jsonl"), "test")
    question = task.question(data.items[0], data.shots)
    assert question.text.startswith("Problem:\nWhat is $2$ taken from $9$?\n\nSolution: We take $2$ away")
    assert question.text.endswith("is $27$.\n\nProblem:\nWhat is half of $7$?\n\nSolution:")
    assert question.text.count("\n\nSolution: ") == 4 and len(question.messages) == 9


def test_mmlu_layout_names_the_subject(tmp_path: Path) -> None:
    rows = [{**q, "subject": "high_school_words"} for q in QUIZ]
    task, data = loaded(Sample("mmlu(shots=1)", {"test.jsonl": rows, "dev.jsonl": rows}, str, str), tmp_path)
    question = task.question(data.items[0], data.shots)
    first = "Which of these is a colour?\nA. seven\nB. green\nC. north\nD. late\nAnswer:"
    head = "The following are multiple choice questions (with answers) about high school words.\n\n"
    assert question.text == f"{head}{first} B\n\n{first}"
    assert question.pairs()[2] == (question.text, " C")


def test_winogrande_scores_one_rest_after_two_contexts(tmp_path: Path) -> None:
    task, data = loaded(of("winogrande(shots=1)"), tmp_path)
    shown = "The cup fell on the stone and the cup broke.\n\n"
    assert task.question(data.items[1], data.shots).pairs() == (
        (f"{shown}Ann thanked Eva because Ann", " had helped."),
        (f"{shown}Ann thanked Eva because Eva", " had helped."),
    )


def test_hellaswag_is_cleaned_as_lm_eval_cleans_it(tmp_path: Path) -> None:
    task, data = loaded(of("hellaswag"), tmp_path)
    question = task.question(data.items[0], ())
    assert question.text == "Baking: A man puts dough into the oven. He"
    assert question.choices[0] == " waits until it is brown." and question.choices[2] == " paints it blue."


def test_acc_norm_divides_by_characters_and_acc_bytes_by_bytes() -> None:
    from unmask.evals.tasks.choices import judged

    candidates = ["ab", "abcdefgh", "ééé"]
    verdict = judged([-1.0, -2.0, -1.2], candidates, 1)
    assert verdict.scores == {"acc": 0.0, "acc_norm": 1.0, "acc_bytes": 0.0}
    assert verdict.extracted == "ab"
    assert judged([-1.0, -2.0, -1.2], candidates, 2).scores["acc_bytes"] == 1.0
    assert judged([-1.0, -1.0], ["a", "b"], 0).scores["acc"] == 1.0


def test_reversal_prompts_are_the_published_ones(tmp_path: Path) -> None:
    task, data = loaded(of("reversal"), tmp_path)
    assert task.question(data.items[0], ()).text == "雨停了的下一句是什么？ 直接输出句子即可。"
    task, data = loaded(of("reversal(direction='backward')"), tmp_path)
    assert task.question(data.items[0], ()).text == "鸟又唱的上一句是什么？ 直接输出句子即可。"


def test_published_post_processing_loses_what_only_the_tests_call(tmp_path: Path) -> None:
    record = {**FUNCTIONS[0], "test": "def check(candidate):\n    assert candidate(3) == helper(9)\n"}
    answer = f"```python\n{record['prompt']}    return 3 * x\ndef helper(x):\n    return x\n```"
    for post, passed in (("clean", 1.0), ("published", 0.0)):
        sample = Sample(f"humaneval(post={post!r})", {"humaneval.jsonl": [record]}, str, str)
        task, data = loaded(sample, tmp_path)
        assert score(task, data.items[0], answer) == {"pass@1": passed}


def test_humaneval_cuts_at_stop_strings_only_where_published(tmp_path: Path) -> None:
    stops = {}
    for spec in ("humaneval", "humaneval(post='plain')", "humaneval(stops=True)"):
        write(tmp_path, of("humaneval"))
        task: Task = catalog.parse("task", spec)
        stops[spec] = task.question(task.load(str(tmp_path), "test").items[0], ()).until
    assert stops["humaneval"] == () and stops["humaneval(post='plain')"] == stops["humaneval(stops=True)"]
    assert stops["humaneval(stops=True)"] == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def test_humaneval_instruct_asks_as_lm_eval_does(tmp_path: Path) -> None:
    task, data = loaded(replace(of("humaneval"), spec="humaneval(prompt='instruct', post='plain')"), tmp_path)
    item, code = data.items[0], str(data.items[0].fields["prompt"])
    asked = task.question(item, ())
    wish = "Write a solution to the following problem and make sure that it passes the tests:"
    assert asked.text == f"{wish}\n```python\n{code}\n```\n" == asked.messages[-1]["content"]
    assert asked.begun == f"Here is the completed function:\n```python\n{code}\n"
    assert asked.until == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    solution = str(item.fields["canonical_solution"])
    for post in ("plain", "clean", "published"):
        task = catalog.parse("task", f"humaneval(prompt='instruct', post={post!r})")
        assert score(task, item, f"{solution}\n```\nIt is done.") == {"pass@1": 1.0}
        assert score(task, item, "    return None\n```") == {"pass@1": 0.0}


# --- infilling, planning ----------------------------------------------------------------------------------------------


def test_infilling_takes_spans_out_of_a_text_file(tmp_path: Path) -> None:
    words = [f"w{n}" for n in range(30)]
    (tmp_path / "book.txt").write_text(" ".join(words) + "\n\nshort one\n\n" + " ".join(reversed(words)), "utf-8")
    task: Task = catalog.parse("task", "infilling(words=4, context=5)")
    items = task.load(str(tmp_path / "book.txt"), "test").items
    assert len(items) == 2
    for item, whole in zip(items, (words, words[::-1]), strict=True):
        parts = [item.fields[name] for name in ("prefix", "middle", "suffix")]
        assert "".join(parts) == " ".join(whole)
        assert [len(p.split()) for p in parts][1] == 4 and min(len(parts[0].split()), len(parts[2].split())) >= 5
        question = task.question(item, ())
        assert (question.text, question.suffix, question.span) == (parts[0], parts[2], parts[1])


def test_infilling_edges_counts_what_is_right_from_both_ends(tmp_path: Path) -> None:
    task, data = loaded(of("infilling"), tmp_path)
    found = task.judge(data.items[0], " was ever crossed")
    assert found.scores["exact"] == 0 and found.scores["edges"] == 1.0 * len("was ever crossed") / len(
        SPANS[0]["middle"].strip()
    )
    with pytest.raises(ConfigError, match="--data"):
        task.load(None, "test")


@pytest.mark.parametrize("numbers", [3, 4, 5])
def test_countdown_items_are_solvable_different_and_held_out(numbers: int) -> None:
    task: Task = catalog.parse("task", f"countdown(numbers={numbers}, count=40)")
    test, train = task.load(None, "test"), task.load(None, "train")
    assert len(test.items) == 40 and len(test.shots) == 8
    for data, side in ((test, "test"), (train, "train")):
        assert all(split_of(i.fields["key"]) == side for i in data.items)
        assert all(countdown.solves(i.fields["input"], i.fields["output"]) for i in data.items)
    assert not {i.fields["key"] for i in train.items} & {i.fields["key"] for i in (*train.shots, *test.items)}
    fewer = catalog.parse("task", f"countdown(numbers={numbers}, count=9, shots=3)").load(None, "test")
    assert fewer.items == test.items[:9] and fewer.shots == test.shots[:3]
    question = task.question(test.items[0], test.shots).text
    assert question.count("\nOutput: ") == 9 and question.endswith(f"Input: {test.items[0].fields['input']}\nOutput: ")
    assert task.load(None, "test").sha256 == test.sha256 != train.sha256
    assert catalog.parse("task", f"countdown(numbers={numbers}, count=40, seed=1)").load(None, "test") != test


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("3+4=7,7*2=14", True),
        (" 3 + 4 = 7, 7 * 2 = 14\n", True),
        ("4*2=8,8+6=14", False),  # a number that is not there
        ("3+4=7,7*2=15", False),  # false
        ("3+4=7", False),  # the target is not reached
        ("7*2=14", False),  # 7 is not there yet
        ("3*4=12,12+2=14,14+0=14", False),
        ("3*4=12,12+2=14", True),
        ("", False),
        ("3+4=7,7*2=14,", False),
        ("9" * 5000 + "+1=2", False),
    ],
)
def test_countdown_checks_every_step(answer: str, right: bool) -> None:
    assert countdown.solves("3,4,2,14", answer) is right


def test_countdown_divides_whole_numbers_only() -> None:
    assert countdown.solves("7,2,3", "7/2=3") is False and countdown.solves("6,2,3", "6/2=3") is True
    assert countdown.value(1, "/", 0) is None and countdown.value(1, "-", 2) is None


def test_planning_files_give_their_first_records_as_worked_examples(tmp_path: Path) -> None:
    rows = [{"input": f"{a},1,1,{a + 2}", "output": f"{a}+1={a + 1},{a + 1}+1={a + 2}"} for a in range(2, 12)]
    task, data = loaded(Sample("countdown(numbers=3)", {"cd3_test.jsonl": rows}, str, str), tmp_path)
    assert len(data.items) == 2 and [s.fields["input"] for s in data.shots] == [r["input"] for r in rows[:8]]
    task, data = loaded(Sample("countdown(numbers=3, shots=0)", {"cd3_test.jsonl": rows}, str, str), tmp_path)
    assert len(data.items) == 10 and "Output" in task.question(data.items[0], data.shots).text
    with pytest.raises(ConfigError, match="worked examples"):
        loaded(Sample("countdown(numbers=3, shots=10)", {"cd3_test.jsonl": rows}, str, str), tmp_path)


def test_sudoku_puzzles_have_the_wanted_holes_and_any_right_grid_counts() -> None:
    task: Task = catalog.parse("task", "sudoku(empty=10, count=20)")
    data = task.load(None, "test")
    for item in data.items:
        assert item.fields["input"].count("0") == 10
        assert sudoku.solves(item.fields["input"], " " + item.fields["output"].replace("\n", " \n") + "\nand more")
    assert sudoku.solves("0000\n0000\n0000\n0000", data.items[0].fields["output"])
    assert not sudoku.solves(data.items[0].fields["input"], "1234\n3412\n2143\n432")
    assert not sudoku.solves(data.items[0].fields["input"], data.items[0].fields["input"])


def test_more_items_than_exist_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.evals.tasks.generated._PATIENCE", 200)
    with pytest.raises(ConfigError, match="different ones exist"):
        catalog.parse("task", "sudoku(empty=1, count=100000)").load(None, "test")


@pytest.mark.parametrize("bad", ["gsm8k(shots=-1)", "countdown(numbers=6)", "math(shots=65)", "gsm8k(prompt='b')"])
def test_bad_arguments_are_refused(bad: str) -> None:
    with pytest.raises(SpecError):
        catalog.parse("task", bad)


def test_unknown_synthetic_task_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="sorted"):
        catalog.parse("task", "synthetic(task='sorted')")


def test_math_without_math_verify_names_its_weaker_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.evals.tasks.competition_math.has_math_verify", lambda: False)
    task, data = loaded(of("math(shots=0)"), tmp_path)
    assert task.metric == "string_match"
    assert task.judge(data.items[0], r"\boxed{7/2}").scores == {"string_match": 0.0}


def test_math_verify_knows_what_strings_do_not(tmp_path: Path) -> None:
    pytest.importorskip("math_verify", reason="math-verify (extra `eval`) is not installed")
    task, data = loaded(of("math(shots=0)"), tmp_path)
    assert task.metric == "math_verify"
    assert task.judge(data.items[0], r"$\boxed{3.5}$").scores == {"string_match": 0.0, "math_verify": 1.0}
    assert math_answer.has_math_verify()


RECORDED_DRAWS = [[6374, 3610, 957, 61, 742], [7462, 6610, 4769, 286, 5501]]
