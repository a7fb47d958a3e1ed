"""A package outside the project adds a policy, a cache and a model by entry point, and passes the common checks."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from unmask import testing as t
from unmask.core import catalog
from unmask.core.errors import CheckpointError, SpecError

PACKAGE = Path(__file__).with_name("unmask_example")
CONFIG = {"model_type": "example", "vocab_size": 64, "width": 32, "depth": 2, "heads": 4, "mask_token_id": 63,
          "eos_token_id": 62}  # fmt: skip


def _metadata(site: Path) -> None:
    """What `pip install` would write: the package's entry points, beside a path to its source."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text("utf-8"))["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _metadata(tmp_path)
    for place in (tmp_path, PACKAGE / "src"):
        monkeypatch.syspath_prepend(str(place))
    importlib.invalidate_caches()
    catalog.entries.cache_clear()
    yield
    catalog.entries.cache_clear()
    for name in [n for n in sys.modules if n.split(".")[0] == "unmask_example"]:
        del sys.modules[name]


def test_the_catalog_lists_it_beside_ours() -> None:
    assert catalog.find("policy", "lead").meaning == "from unmask-example"
    assert catalog.find("cache", "neighbours").target == "unmask_example.neighbours:Neighbours"
    assert "example" in catalog.entries("model") and "llada" in catalog.entries("model")


def test_the_policy_passes_the_common_check() -> None:
    t.check_policy("lead(0.3)")
    t.check_policy("lead")


@pytest.mark.parametrize("spec", ["neighbours", "neighbours(width=0)", "neighbours(width=3)"])
def test_the_cache_passes_the_common_check(spec: str) -> None:
    t.check_cache(spec)


def test_the_model_passes_the_common_check(tmp_path: Path) -> None:
    family = catalog.load("model", "example")
    t.check_model(family, CONFIG)
    from unmask.models.save import save_checkpoint
    from unmask.models.shapes import random_from_config

    model = random_from_config(CONFIG, dtype="fp32", device="cpu")
    t.check_model(save_checkpoint(model, CONFIG, tmp_path / "checkpoint"))


def test_all_three_decode_together(tmp_path: Path) -> None:
    import unmask
    from unmask.models.save import save_checkpoint
    from unmask.models.shapes import random_from_config

    place = save_checkpoint(random_from_config(CONFIG, dtype="fp32", device="cpu"), CONFIG, tmp_path / "checkpoint")
    model = unmask.load(place, device="cpu", dtype="fp32")
    found = model.generate([3, 1, 4, 1, 5], max_tokens=24, policy="lead(0.1)", cache="neighbours(width=4)")
    assert len(found.ids) == 24 or found.finish_reason == "stop"
    assert 63 not in found.ids


def test_its_specs_are_refused_like_ours() -> None:
    with pytest.raises(SpecError, match=r">= 0 and <= 1"):
        catalog.parse("policy", "lead(2.0)")
    with pytest.raises(SpecError, match="unknown"):
        catalog.parse("cache", "neighbours(breadth=2)")
    with pytest.raises(SpecError, match="lead"):
        catalog.parse("policy", "leed")


def test_its_config_is_refused_by_key() -> None:
    family = catalog.load("model", "example")
    for key, value in (("width", 33), ("mask_token_id", 64), ("dropout", 0.1), ("depth", "two")):
        read = family.traits if key == "mask_token_id" else family.shape
        with pytest.raises(CheckpointError, match=key):
            read({**CONFIG, key: value})


def test_a_foreign_line_may_not_replace_one_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "other"
    info = site / "thief-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thief\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[unmask.policies]\nthreshold = thief:Threshold\n")
    monkeypatch.syspath_prepend(str(site))
    catalog.entries.cache_clear()
    assert catalog.find("policy", "threshold").target == "unmask.decode.threshold:Threshold"


def test_the_command_line_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    from unmask.cli.main import main

    assert main(["ls", "policies"]) == 0
    assert "lead" in capsys.readouterr().out


# ---- the checks themselves -------------------------------------------------------------------------------------------


def test_a_policy_that_never_commits_is_caught() -> None:
    lead = catalog.parse("policy", "lead")

    class Silent(type(lead)):  # type: ignore[misc]
        def decide(self, seq, want, candidates, state, noise):  # type: ignore[no-untyped-def]
            commit, state = super().decide(seq, want, candidates, state, noise)
            return type(commit)(commit.slots[:0], commit.tokens[:0], commit.confidence[:0]), state

    with pytest.raises(AssertionError, match="commit something"):
        t.check_policy(Silent())


def test_a_policy_that_remembers_on_itself_is_caught() -> None:
    lead = catalog.parse("policy", "lead")
    seen: list[int] = []

    class Remembering(type(lead)):  # type: ignore[misc]
        def decide(self, seq, want, candidates, state, noise):  # type: ignore[no-untyped-def]
            seen.append(1)
            commit, state = super().decide(seq, want, candidates, state, noise)
            last = commit.slots[-1:] if len(seen) % 3 else commit.slots[:1]
            return type(commit)(last, candidates.token[last], candidates.prob[last]), state

    with pytest.raises(AssertionError, match="beside others"):
        t.check_policy(Remembering())


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"keep": ()}, "no forward kept"),
        ({"need": torch.tensor([0])}, "need is"),
        ({"query": ((0, 1),)}, "not inside query"),
        ({"visible": ((99, ((0, 1),)),)}, "visible covers"),
        ({"keep": ((0, 99),)}, "leaves the"),
    ],
)
def test_a_cache_that_breaks_the_contract_is_caught(rule: dict[str, object], words: str) -> None:
    from dataclasses import replace

    neighbours = catalog.parse("cache", "neighbours(width=2)")

    class Broken(type(neighbours)):  # type: ignore[misc]
        def plan(self, *args):  # type: ignore[no-untyped-def]
            plan, state = super().plan(*args)
            return replace(plan, **rule), state

    with pytest.raises(AssertionError, match=words):
        t.check_cache(Broken(width=2))


def test_a_cache_that_calls_itself_exact_and_is_not_is_caught() -> None:
    neighbours = catalog.parse("cache", "neighbours(width=0)")

    class Liar(type(neighbours)):  # type: ignore[misc]
        def exact_for(self, traits):  # type: ignore[no-untyped-def]
            return True

    with pytest.raises(AssertionError, match="calls itself exact"):
        t.check_cache(Liar(width=0))


def test_a_schedule_that_forgets_holes_is_caught() -> None:
    blocks = catalog.parse("schedule", "blocks(4)")

    class Forgetful(type(blocks)):  # type: ignore[misc]
        def layout(self, seq):  # type: ignore[no-untyped-def]
            return super().layout(seq)[:-1]

    with pytest.raises(AssertionError, match="no block covers"):
        t.check_schedule(Forgetful(length=4))
