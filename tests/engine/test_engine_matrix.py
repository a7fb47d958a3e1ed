"""Seam matrix: every combination keeps the contract, settles every hole, and costs what the golden table says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matrix
import pytest
import torch
from models_for_tests import denoiser
from tiny_checkpoints import dream_checkpoint, llada_checkpoint, qwen2_checkpoint

from unmask import testing as t
from unmask.core import catalog

GOLDEN = matrix.golden()
PAIRS = [(a, s) for a in matrix.TRAITS for s in matrix.SCHEDULES if matrix.cells(a, s)]


@pytest.mark.parametrize(("traits", "schedule"), PAIRS)
def test_every_combination(traits: str, schedule: str) -> None:
    exact_answers: dict[str, dict[str, list[int]]] = {}
    for cell in matrix.cells(traits, schedule):
        found = matrix.run(cell)
        assert matrix.line(found) == GOLDEN[cell.key], cell.key
        if cell.cache == "none":
            exact_answers[cell.policy] = found.answers
        if cell.exact:
            assert found.answers == exact_answers[cell.policy], f"{cell.key} calls itself exact"


def test_the_table_has_every_combination_and_no_other() -> None:
    assert list(GOLDEN) == [c.key for c in matrix.all_cells()]


def test_the_matrix_has_every_line_of_the_catalog() -> None:
    def missing(kind: str, specs: tuple[str, ...]) -> set[str]:
        ours = {n for n, e in catalog.entries(kind).items() if e.target.startswith("unmask.")}
        return ours - {catalog.parse(kind, s).spec_name for s in specs}

    assert not missing("policy", matrix.POLICIES)
    assert not missing("cache", matrix.CACHES)
    assert not missing("schedule", matrix.SCHEDULES)


def test_caches_save_rows() -> None:
    def rows(cache: str) -> int:
        own = {k.rpartition(" | ")[0]: v[0] for k, v in GOLDEN.items() if k.endswith(f"| {cache}")}
        return sum(n for k, n in own.items() if k.startswith("full |") and f"{k} | prefix(refresh=1)" in GOLDEN)

    assert rows("none") == rows("prefix(refresh=1)") > rows("prefix") > rows("dual")
    causal = {c: sum(v[0] for k, v in GOLDEN.items() if k.startswith("causal |") and k.endswith(f"| {c}"))
              for c in ("none", "dual", "block")}  # fmt: skip
    assert causal["none"] > causal["dual"] > causal["block"]


def test_the_fake_model_depends_on_every_visible_row() -> None:
    for name, traits in t.TRAITS.items():
        fake = t.FakeDenoiser(traits)
        ids = torch.arange(9) % 7
        base = fake.dense(ids[None])[0]
        for changed in range(9):
            other = ids.clone()
            other[changed] += 8
            moved = (fake.dense(other[None])[0] - base).abs().amax(-1) > 1e-6
            runs = traits.attention.visible(((0, 9),), 9, 8)
            sees = [any(a <= changed < b for a, b in spans) for n, spans in runs for _ in range(n)]
            # Two layers: what a visible row saw is seen as well; under these rules that adds nothing.
            assert moved.tolist() == sees, (name, changed)


EXACT = [
    (kind, cache)
    for kind in ("llada", "dream", "block-causal", "context-causal")
    for cache in ("prefix(refresh=1)", "dual(refresh=1)", "prefix", "dual", "block")
    if catalog.parse("cache", cache).exact_for(denoiser(kind).traits)
]


@pytest.mark.parametrize(("kind", "cache"), EXACT)
@pytest.mark.parametrize("axes", [("blocks(4)", "threshold(0.5)"), ("growing(5)", "low_confidence(steps=9)"),
                                  ("whole", "random(steps=4)")])  # fmt: skip
def test_exact_caches_change_no_token_of_a_transformer(kind: str, cache: str, axes: tuple[str, str]) -> None:
    model = denoiser(kind)
    plain = t.decode(model, t.crowd(t.strategy(*axes)))
    cached = t.decode(model, t.crowd(t.strategy(*axes, cache)))
    assert cached.answers == plain.answers


@pytest.mark.parametrize("cache", ["prefix", "dual", "prefix(refresh=2)", "dual(refresh=2)"])
def test_drift_of_stale_caches_is_measured(
    cache: str, record_property: pytest.TestReport, capsys: pytest.CaptureFixture[str]
) -> None:
    same = total = 0
    for seed in range(4):
        model = denoiser("llada", seed)
        plain = t.decode(model, t.crowd(t.strategy("blocks(4)", "threshold(0.5)"), 16)).answers
        stale = t.decode(model, t.crowd(t.strategy("blocks(4)", "threshold(0.5)", cache), 16)).answers
        same += sum(a == b for k in plain for a, b in zip(plain[k], stale[k], strict=True))
        total += sum(map(len, plain.values()))
    record_property("tokens equal to no cache", f"{same}/{total}")
    with capsys.disabled():
        print(f" {cache}: {same} of {total} tokens as without a cache", end="")


@pytest.mark.parametrize("make", [llada_checkpoint, dream_checkpoint, qwen2_checkpoint])
def test_public_check_of_models_passes_for_our_own(make: Callable[[Path], Path], tmp_path: Path) -> None:
    t.check_model(make(tmp_path / "tiny"))


@pytest.mark.parametrize("kind", ["policy", "cache", "schedule"])
def test_public_checks_pass_for_our_own(kind: str) -> None:
    names = {"policy": ("threshold(0.5)", "margin(steps=4)"), "cache": ("dual", "block", "sub_block"),
             "schedule": ("blocks(3)", "whole", "growing(4)")}[kind]  # fmt: skip
    for name in names:
        getattr(t, f"check_{kind}")(name)
