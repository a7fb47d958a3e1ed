"""`unmask bench decode` on one layer of a named shape: what it prints, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unmask.cli.main import main

ONE_LAYER = "--shape llada-mid --layers 1 --vocab 64 --prompt-length 6 --gen-length 8"
TINY = "--shape llada-mid --layers 1 --vocab 64 --prompt-length 6 --gen-length 8 --block-length 4 --tokens-per-step 2"
QUICK = f"bench decode {TINY} --dtype fp32 --device cpu --threads 1 --rounds 1"


def rows(capsys: pytest.CaptureFixture[str], more: str) -> list[dict[str, Any]]:
    assert main([*QUICK.split(), *more.split(), "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_json_is_one_row_per_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "--cache none,prefix,dual")
    assert [r["cache"] for r in found] == ["none", "prefix", "dual"]
    for r in found:
        assert r["tokens"] == 8
        assert r["nfe"] == r["model_calls"] == 4
        assert r["tokens_per_forward"] == 2.0
        assert r["tokens_per_s"] == pytest.approx(8 / r["wall_s"], rel=0.02)
        assert r["share"] == pytest.approx(r["floor_s"] / r["wall_s"], rel=0.05)
        assert r["threads"] == 1
        assert r["dtype"] == "float32"
    # two blocks of two forwards: all 14 rows, then the rest of the canvas or the block
    assert [r["rows"] for r in found] == [4 * 14, 2 * 14 + 8 + 4, 2 * 14 + 4 + 4]


def test_policies_and_caches_with_arguments_are_crossed(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "--cache none,dual(refresh=1) --policy low_confidence,threshold(1.0)")
    assert [(r["policy"], r["cache"], r["nfe"]) for r in found] == [
        ("low_confidence", "none", 4),
        ("low_confidence", "dual(refresh=1)", 4),
        ("threshold(1.0)", "none", 8),
        ("threshold(1.0)", "dual(refresh=1)", 8),
    ]


def test_a_crowd_shares_its_model_calls(capsys: pytest.CaptureFixture[str]) -> None:
    together, alone = rows(capsys, "--cache dual --crowd 3")
    assert (together["way"], alone["way"]) == ("together", "one after the other")
    assert together["requests"] == 3
    assert together["tokens"] == alone["tokens"] == 8 + 4 + 8
    assert together["nfe"] == alone["nfe"] == alone["model_calls"] == 4 + 2 + 4
    assert together["model_calls"] == 4
    assert together["rows"] == alone["rows"]
    assert together["speedup"] > 0


def test_tokens_per_step_is_a_list_for_policies_that_count_steps(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "--cache none --policy low_confidence,threshold(1.0) --tokens-per-step 1,4")
    assert [(r["policy"], r["tokens_per_step"], r["nfe"]) for r in found] == [
        ("low_confidence", 1, 8),
        ("low_confidence", 4, 2),
        ("threshold(1.0)", None, 8),
    ]


def test_markdown_names_machine_and_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK.split(), "--cache", "dual"]) == 0
    out = capsys.readouterr().out
    assert "random llada-mid, float32: prompt 6, answer 8, blocks of 4" in out
    assert "torch " in out
    assert "threads" in out
    assert "| cache |" in out
    assert "| dual |" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--shape llada-huge", "llada-mid"),
        ("--shape llada-mid --cache nowhere", "unknown cache"),
        ("--shape llada-mid --cache none,,dual", "--cache"),
        ("--shape llada-mid --cache none,none", "--cache"),
        ("--shape llada-mid --policy guess", "unknown policy"),
        ("--shape llada-mid --tokens-per-step 0", "--tokens-per-step"),
        ("--shape llada-mid --tokens-per-step 1,,2", "--tokens-per-step"),
        ("--shape llada-mid --tokens-per-step 2,2", "--tokens-per-step"),
        (f"{ONE_LAYER} --policy threshold(1.0) --tokens-per-step 2", "--tokens-per-step"),
        ("--shape v2-mid --baseline gpt", "--baseline"),
        ("--shape v2-mid --baseline ar,ar", "--baseline"),
        (f"{ONE_LAYER} --baseline fast-dllm-v2", "fast-dllm-v2"),
        ("--shape llada-mid --clock cpu", "--threads 1"),
        ("--shape llada-mid --clock cpu --threads 2", "--threads 1"),
        ("--shape llada-mid --clock sun", "--clock"),
        ("--shape llada-mid --rounds x", "--rounds"),
        ("--shape llada-mid --layers 0", "--layers"),
        ("--shape llada-mid --vocab 3", "--vocab"),
        ("--shape llada-mid --model somewhere", "--model"),
        ("--layers 2", "--shape"),
        ("--shape llada-mid --prompt hello", "--prompt"),
        ("--shape llada-mid --layers 1 --vocab 64 --gen-length 5000", "4096"),
        ("--model /no/such/folder", "/no/such/folder"),
        ("--shape llada-mid --dtype int8", "--dtype"),
        ("--shape llada-mid --no-such-option", "--no-such-option"),
    ],
)
def test_bad_arguments_exit_2_with_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", *words.split()]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert said in found.err.splitlines()[0]


@pytest.mark.parametrize(
    ("name", "caches"),
    [
        ("nano", ["none", "block", "sub_block"]),
        ("nano-ar", ["block"]),
        ("nano-llada", ["none", "prefix", "dual"]),
    ],
)
def test_an_embedded_model_has_its_caches_and_scores_beside_its_speed(
    name: str, caches: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"bench decode --model {name} --gen-length 8 --prompt-length 8 --threads 1 --rounds 1 --items 1 --json"
    assert main(line.split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["cache"] for r in found] == caches
    assert all(r["items"] == 9 and 0 < r["accuracy"] <= 1 for r in found)
