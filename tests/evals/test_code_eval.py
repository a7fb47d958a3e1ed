# ruff: noqa: E501  texts and what is left of them, side by side
"""From a HumanEval answer to pass@k: cleaning by the published rules, the samples file, the estimator."""

from __future__ import annotations

import itertools
import json
import sys
from math import comb
from pathlib import Path

import pytest

from unmask.cli.main import main
from unmask.core.errors import ConfigError
from unmask.evals.pass_at_k import mean_pass_at_k, pass_at_k
from unmask.evals.sandbox import AVAILABLE, protections
from unmask.evals.tasks.code_post import candidate_of, code_block, dropped, sanitize

TASKS = [
    {
        "task_id": "Ours/0",
        "prompt": 'def double(x: int) -> int:\n    """Twice x.\n    >>> double(2)\n    4\n    """\n',
        "entry_point": "double",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
        "canonical_solution": "    return 2 * x\n",
    },
    {
        "task_id": "Ours/1",
        "prompt": "import math\n\n\ndef radius(area: float) -> float:\n",
        "entry_point": "radius",
        "test": "def check(candidate):\n    assert abs(candidate(math.pi) - 1) < 1e-9\n",
        "canonical_solution": "    return math.sqrt(area / math.pi)\n",
    },
    {
        "task_id": "Ours/2",
        "prompt": "def shift(s):\n    return s[1:] + s[:1]\n\n\ndef back(s):\n",
        "entry_point": "back",
        "test": "def check(candidate):\n    assert candidate(shift('abc')) == 'abc'\n",
        "canonical_solution": "    return s[-1:] + s[:-1]\n",
    },
]


def samples(path: Path, answer: str = "canonical_solution") -> Path:
    with path.open("w") as file:
        for number, task in enumerate(TASKS):
            text = task.get(answer, answer)
            target = f"{task['test']}\ncheck({task['entry_point']})"
            file.write(json.dumps({"doc_id": number, "doc": task, "target": target, "resps": [[text]]}) + "\n")
    return path


# ---- cleaning --------------------------------------------------------------------------------------------------------


def test_the_code_block_is_what_follows_the_first_fence() -> None:
    assert code_block("Sure:\n```python\nx = 1\n```\nand\n```python\ny\n```") == "x = 1\n"
    assert code_block("x = 1\n```\nmore") == "x = 1\n"
    assert code_block("```py\nx = 1\n```") == ""
    assert code_block("x = 1") == "x = 1"
    assert candidate_of({"doc": {"prompt": "P"}, "resps": [["A", "B"]]}) == "P\nA"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("def f(x):\n\treturn x\r\n", "def f(x):\n    return x"),
        ("Here is it:\ndef f(x):\n    return x\nIt doubles x.", "def f(x):\n    return x"),
        ("import os\nfrom a import b\ndef f():  # why\n    return 1", "import os\nfrom a import b\ndef f():\n    return 1"),
        ("def g(): return 1\ndef h(): return 2\ndef f(): return g()", "def g():\n    return 1\ndef f():\n    return g()"),
        ("def g():\n    print(1)\ndef f():\n    return g()", "def f():\n    return g()"),
        ("def g(): return 1\ndef f(): return g().real", "def f():\n    return g().real"),
        ("def real(): return 1\ndef f(): return g.real", "def real():\n    return 1\ndef f():\n    return g.real"),
        ("A = 1\nB: int = 2\nA += 1\nif A: pass\ndef f(): return A + B", "A = 1\ndef f():\n    return A + B"),
        ("a = b = 1\n(c, d) = 1, 2\ndef f(): return a + c", "a = b = 1\ndef f():\n    return a + c"),
        ("def f(): return 1\nx = 2\ndef f(): return 3", "def f():\n    return 3"),
        ("class C:\n    pass\nasync def g(): return 1\ndef f(): return C, g", "class C:\n    pass\ndef f():\n    return (C, g)"),
        ("def f():\n    def inner(): return 1", "def f():\n\n    def inner():\n        return 1"),
        ("def g(): return 1", ""),
        ("import os", "import os"),
        ("?!", ""),
        ("", ""),
        ("def f(): return '\\d'", "def f():\n    return '\\\\d'"),
    ],
)  # fmt: skip
def test_published_cleaning(text: str, left: str) -> None:
    assert sanitize(text, "f") == left


def test_the_longest_valid_part_wins_and_the_first_of_equals() -> None:
    assert sanitize("def f(): return 1\n!\ndef f(): return 2", "f") == "def f():\n    return 1"
    assert sanitize("x\n!\n\ndef f():\n\n    return 2\n!", "f") == "def f():\n    return 2"
    # trying the large ranges first is the same as trying all of them
    lines = ["a = 1", "", "!", "b = 2", "def f():", "    return b", ")", "c = 3"]
    for order in itertools.islice(itertools.permutations(lines), 0, 40320, 997):
        best, count = "", 0
        for i in range(len(order)):
            for j in range(i, len(order)):
                try:
                    compile("\n".join(order[i : j + 1]), "x", "exec", 0x400)
                except SyntaxError:
                    continue
                if (filled := sum(bool(line.strip()) for line in order[i : j + 1])) > count:
                    best, count = "\n".join(order[i : j + 1]), filled
        assert sanitize("\n".join(order), "f") == sanitize(best, "f"), order


def test_only_a_hundred_lines_are_looked_at() -> None:
    head = "def f():\n" + "    x = 1\n" * 98
    assert sanitize(head + "    return x\n", "f").count("\n") == 99
    assert sanitize(head + "    x = 1\n    return x\n", "f") == ""


def test_hostile_text_does_not_stop_the_cleaning() -> None:
    for text in ("x = '\x00'", "(" * 5000, "-" * 100_000 + "1", "f" + ".a" * 50_000, "\ud800"):
        assert isinstance(sanitize(text, "f"), str)


def test_fixed_rules_keep_what_is_needed() -> None:
    tests = "check(f, g)"
    text = "def g(): return 1\ndef h(): print(1)\ndef k(): return 1\ndef f():\n    h()\n    return k().real"
    assert "def g" not in sanitize(text, "f")
    assert dropped(text, sanitize(text, "f"), tests) == ["g"]
    fixed = sanitize(text, "f", tests)
    assert all(f"def {name}()" in fixed for name in "fghk")
    assert dropped(text, fixed, tests) == []


# ---- pass@k ----------------------------------------------------------------------------------------------------------


def test_pass_at_k_is_the_unbiased_estimator() -> None:
    for n in range(1, 12):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            assert pass_at_k(n, c, k) == pytest.approx(1 - comb(n - c, k) / comb(n, k), abs=1e-12)
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)
    for n, c, k in ((5, 1, 6), (5, 6, 1), (5, 1, 0), (5, -1, 1)):
        with pytest.raises(ConfigError):
            pass_at_k(n, c, k)


def test_mean_pass_at_k_has_an_interval() -> None:
    none = mean_pass_at_k([(10, 0)] * 20, 5)
    assert (none.value, none.low) == (0.0, 0.0)
    assert 0.1 < none.high < 0.2, "20 failures do not show that nothing ever passes"
    one = mean_pass_at_k([(1, 1)] * 75 + [(1, 0)] * 25, 1)
    assert (one.value, one.tasks) == (0.75, 100)
    assert (one.low, one.high) == (pytest.approx(0.657, abs=1e-3), pytest.approx(0.825, abs=1e-3))
    several = mean_pass_at_k([(10, c) for c in range(11)] * 10, 5)
    assert several.low < several.value < several.high
    assert several == mean_pass_at_k([(10, c) for c in range(11)] * 10, 5)
    with pytest.raises(ConfigError):
        mean_pass_at_k([], 1)
    with pytest.raises(ConfigError):
        mean_pass_at_k([(10, 1), (4, 1)], 5)


# ---- the command -----------------------------------------------------------------------------------------------------

needs_walls = pytest.mark.skipif(
    sys.platform != "linux" or set(protections().values()) != {AVAILABLE},
    reason="the sandbox is refused on this kernel",
)
GO = "--confirm-run-unsafe-code"


@needs_walls
def test_canonical_answers_pass_and_wrong_ones_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = samples(tmp_path / "samples.jsonl")
    command = ["eval", "postprocess", str(file), GO, "--timeout", "20", "--json"]
    assert main([*command, "--rules", "fixed"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pass@1"], found["ends"], found["missing protections"]) == (1.0, {"passed": 3}, {})
    assert main(command) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["pass@1"] == pytest.approx(2 / 3)  # as published: Ours/2 is tested with a helper that cleaning drops
    assert found["dropped by the cleaning"] == {"Ours/2": ["shift"]} and "drops shift" in err
    rows = [json.loads(line) for line in Path(found["cleaned"]).read_text().splitlines()]
    assert Path(found["cleaned"]) == tmp_path / "samples.jsonl.cleaned"
    assert [sorted(row) for row in rows] == [["completion", "pass_at_1", "task_id"]] * 3
    assert [row["pass_at_1"] for row in rows] == [1.0, 1.0, 0.0]
    assert rows[1]["completion"] == [
        "import math\ndef radius(area: float) -> float:\n    return math.sqrt(area / math.pi)"
    ]
    samples(file, "    return None\n")
    assert main([*command[:-1], "--failures"]) == 0
    text = capsys.readouterr().out
    assert "pass@1: 0.0% (95 % interval 0.0% to 56.1%)" in text
    assert "Ours/0  failed: AssertionError" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples.jsonl", "samples.jsonl.cleaned"]


def test_the_command_asks_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    file = samples(tmp_path / "samples.jsonl")
    assert main(["eval", "postprocess", str(file)]) == 2
    assert "--confirm-run-unsafe-code" in capsys.readouterr().err
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    good = file.read_text().splitlines()
    for line, said in (
        ("{", "line 2; expected one JSON object"),
        ("[]", "expected text at doc.task_id"),
        (good[1].replace('"prompt"', '"question"'), "text at doc.prompt"),
        (good[1].replace('"resps": [[', '"resps": [[1, '), "text at resps[0][0]; got int"),
        (good[1].replace('"target"', '"answer"'), "text at target; got nothing"),
    ):
        file.write_text("\n".join([good[0], line, good[2]]))
        assert main(["eval", "postprocess", str(file), "--weak-sandbox"]) == 2
        assert said.replace("[", "[") in capsys.readouterr().err
    for wrong in (tmp_path / "missing.jsonl", tmp_path):
        assert main(["eval", "postprocess", str(wrong), "--weak-sandbox"]) == 2
    file.write_text("\n")
    assert main(["eval", "postprocess", str(file), "--weak-sandbox"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["samples.jsonl"]


def test_ls_sandbox(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "sandbox", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() >= {"network namespace", "resource limits"}
    assert main(["ls", "sandbox"]) == 0
    assert "private file system" in capsys.readouterr().out
