"""Block diffusion beside its rivals: which rows each strategy computes, and the ratios between the rows of the table.

A narrow v2-mid of one layer. Counts follow from the strategies' definitions; times are only held against each other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from unmask.cli.main import main
from unmask.core.types import Request
from unmask.engine.engine import Engine
from unmask.lab import bench, cases, table
from unmask.lab.decoding import Case
from unmask.models.family import find_family
from unmask.models.shapes import SHAPES

BASELINES = "ar,fast-dllm-v2,fast-dllm-v2-cached"
TINY = "--shape v2-mid --layers 1 --vocab 64 --dtype fp32 --device cpu --threads 1 --rounds 1"
LINE = f"bench decode {TINY} --prompt-length 64 --gen-length 64 --cache block,sub_block --baseline {BASELINES}"


NARROW = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "v2-mid", SHAPES["v2-mid"] | NARROW)
        yield


def rows(capsys: pytest.CaptureFixture[str], more: str) -> list[dict[str, Any]]:
    assert main([*LINE.split(), *more.split(), "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture(scope="module")
def table_rows(narrow: None) -> dict[str, dict[str, Any]]:
    """One comparison at 1 and 4 tokens per step, by a short name."""
    args = parsed(f"{LINE} --tokens-per-step 1,4")
    model = bench._load(args)
    measured = bench._measure(args, model, cases.cases(args, model))
    work = {"prompt_length": 64, "gen_length": 64, "block_length": 8, "clock": "wall"}
    found = [table.row(m, model, work) for m in measured]
    table.relate(found)
    return {r["baseline"] or f"{r['cache']} {r['tokens_per_step']}": r for r in found}


def parsed(line: str) -> argparse.Namespace:
    from unmask.cli.parsing import Parser

    parser = Parser("unmask bench decode", "", "")
    bench.add_arguments(parser)
    return parser.parse(line.removeprefix("bench decode ").split())


def all_cases(line: str) -> dict[str, Case]:
    args = parsed(line)
    return {c.baseline or c.cache: c for c in cases.cases(args, bench._load(args))}


def test_every_strategy_computes_the_rows_of_its_definition(table_rows: dict[str, dict[str, Any]]) -> None:
    forwards = {name: r["forwards"] for name, r in table_rows.items()}
    # left to right: the prompt, then one row per token
    assert forwards["ar"] == {"prefill": {"64": 1}, "partial": {"1": 63}}
    # published: prefill, 31 passes over a block whose first token is the bonus, and a commit of its own
    assert forwards["fast-dllm-v2"] == {"prefill": {"64": 1}, "full": {"32": 62}, "commit": {"32": 2}}
    cached = forwards["fast-dllm-v2-cached"]
    assert cached["full"]["32"] + cached["partial"]["8"] == 62
    assert cached["partial"]["8"] >= 2 * 7  # after a block's first pass its first sub-block alone, 7 holes of 8 left
    # ours: the first pass of a block also commits the one before it
    for name, passes in (("block 1", 64), ("block 4", 16)):
        assert forwards[name]["prefill"] == {"96": 1}
        assert forwards[name]["partial"]["64"] == 1
        assert sum(forwards[name]["partial"].values()) == passes - 1
    for name, passes in (("sub_block 1", 64), ("sub_block 4", 16)):
        assert forwards[name]["full"] == {"64": 1}
        assert set(forwards[name]["partial"]) <= {"8", "9"}
        assert sum(forwards[name]["partial"].values()) == passes - 2


def test_tokens_and_forwards_are_those_asked_for(table_rows: dict[str, dict[str, Any]]) -> None:
    assert {name: (r["tokens"], r["nfe"]) for name, r in table_rows.items()} == {
        "block 1": (64, 64),
        "sub_block 1": (64, 64),
        "block 4": (64, 16),
        "sub_block 4": (64, 16),
        "ar": (64, 64),
        "fast-dllm-v2": (65, 65),  # the bonus of the last commit
        "fast-dllm-v2-cached": (65, 65),
    }


def test_ratios_are_those_of_the_rows(table_rows: dict[str, dict[str, Any]]) -> None:
    ar = table_rows["ar"]
    assert (ar["ar_ratio"], ar["ar_ratio_of_floors"]) == (1.0, 1.0)
    for r in table_rows.values():
        assert r["ar_ratio"] == pytest.approx(r["tokens_per_s"] / ar["tokens_per_s"], rel=0.01)
        allowed = (r["tokens"] / r["floor_s"]) / (ar["tokens"] / ar["floor_s"])
        assert r["ar_ratio_of_floors"] == pytest.approx(allowed, rel=0.05)
        assert r["share"] == pytest.approx(r["floor_s"] / r["wall_s"], rel=0.05)
        assert r["strict_floor_s"] > 0


def test_floor_has_the_head_at_the_rows_of_the_open_block(table_rows: dict[str, dict[str, Any]]) -> None:
    heads = {name: set(r["products_ms"]["head"]) for name, r in table_rows.items()}
    assert heads["ar"] == {"1"}
    assert heads["block 1"] == heads["sub_block 4"] == {"8"}
    # the bonus is a block of one position, the rest of its sub-block has seven
    assert heads["fast-dllm-v2"] == {"1", "7", "8"}


def test_the_baseline_is_the_same_weights_read_as_their_parent_would() -> None:
    found = all_cases(LINE)
    ours, ar = found["block"].denoiser, found["ar"].denoiser
    assert ar.model is ours.model  # type: ignore[attr-defined]
    config = {**bench._load(parsed(LINE)).config, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    assert ar.traits == find_family(config).traits(config)


def test_the_baseline_decodes_the_greedy_tokens_of_a_dense_causal_forward() -> None:
    case = all_cases(f"{TINY} --prompt-length 64 --gen-length 6 --baseline ar")["ar"]
    request: Request = case.requests[0]
    engine = Engine(case.denoiser, 1)
    engine.submit(request)
    written = {p: t for e in engine.run() if hasattr(e, "writes") for p, t, _, _ in e.writes}
    model, ids = case.denoiser.model, request.canvas[:64]  # type: ignore[attr-defined]
    for position in range(64, 70):
        with torch.inference_mode():
            logits = model.logits(model(ids[None], causal=True))[0, -1]
            logits[list(case.denoiser.traits.eos_ids)] = -torch.inf
        assert written[position] == int(logits.argmax())
        ids = torch.cat((ids, logits.argmax()[None]))


def test_a_crowd_stands_beside_the_baseline_of_its_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "--crowd 2 --cache sub_block --baseline ar,fast-dllm-v2")
    assert [r["way"] for r in found] == ["together", "one after the other"] * 3
    assert all(r["requests"] == 2 for r in found)
    for r in found:
        ar = next(x for x in found if x["baseline"] == "ar" and x["way"] == r["way"])
        assert r["ar_ratio"] == pytest.approx(r["tokens_per_s"] / ar["tokens_per_s"], rel=0.01)
    assert {r["model_calls"] for r in found if r["baseline"] == "ar"} == {64, 96}


def test_markdown_labels_the_reimplementation_and_states_the_gain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LINE.split(), "--clock", "cpu"]) == 0
    out = capsys.readouterr().out
    body = [line for line in out.splitlines() if line.startswith("| profile fast-dllm-v2")]
    assert len(body) == 2
    assert all("our re-implementation of the published sampler" in line for line in body)
    assert "processor time of one thread" in out
    assert "- `sub_block` at 1 token per forward: " in out
    assert "use_block_cache (our re-implementation of the published sampler): " in out
    assert "| x AR / t (by floors) |" in out
    assert "63 x 1 partial, 1 x 64 prefill" in out
    assert "Matrix products of one forward, ms: layers " in out


def test_random_answers_never_commit_a_mask_or_an_end() -> None:
    for case in all_cases(LINE).values():
        sampling = case.requests[0].strategy.sampling
        closed = {*sampling.suppress, *([63] if sampling.exclude_mask else [])}
        assert set(case.denoiser.traits.eos_ids) <= closed
        assert case.baseline == "ar" or 63 in closed
