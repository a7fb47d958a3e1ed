"""Quality beside speed: the statistics and their power rule, the frontier, resuming, the page and the profile."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from math import lgamma, log
from pathlib import Path
from typing import Any

import eval_toys
import numpy as np
import pytest
import tiny_checkpoints

import unmask
from unmask.core.errors import ConfigError, InputError
from unmask.engine.options import DecodeOptions
from unmask.engine.options_file import read_toml, to_toml
from unmask.evals.intervals import paired_difference
from unmask.evals.pareto import (
    Candidate,
    Done,
    Measured,
    Pareto,
    analyse,
    baseline,
    combine,
    grid,
    measure,
    read_file,
    run,
    with_baseline,
)
from unmask.evals.pareto.files import profile, write_files
from unmask.evals.pareto.page import page
from unmask.evals.pareto.stats import bootstrap, graded_bound, is_choice, items_needed, loss_bound, mcnemar, paired
from unmask.evals.pareto.table import cells, head, markdown
from unmask.evals.runner import Setup
from unmask.evals.runner.plan import Plan
from unmask.pipeline import Model

ABOUT: Mapping[str, Any] = {
    "task": "sums", "model": "toy", "n": 4, "limited": False, "items_in_data": 4, "timed_in_turns": True, "batch": 4,
    "machine": {"processor": "p", "device": "cpu", "threads": 1}, "dtype": "float32", "model_sha256": "0",
}  # fmt: skip


def made(label: str, scores: Sequence[float], speed: float, base: bool = False, ids: Sequence[str] = ()) -> Measured:
    names = ids or [f"i{k}" for k in range(len(scores))]
    known = dict(zip(names, map(float, scores), strict=True))
    return Measured(label, label, base, {"gen_length": 8}, "s", known, 8.0, 8 / speed, speed, 100 / speed, 10 * speed)


# ---- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "gained", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (1, 8, 0.0390625), (4, 4, 1.0), (10, 2, 158 / 4096)]
)
def test_mcnemar_is_the_exact_binomial(lost: int, gained: int, p: float) -> None:
    assert mcnemar(lost, gained) == pytest.approx(p)
    assert mcnemar(gained, lost) == pytest.approx(p)


@pytest.mark.parametrize(("n", "most"), [(30, 0.05), (30, 0.1), (60, 0.05), (120, 0.02)])
def test_the_bound_is_below_a_true_loss_at_most_one_time_in_twenty(n: int, most: float) -> None:
    """Every outcome enumerated, for many shares of gained items: a probability, not an estimate."""
    claimed = [_most_lost(n, gained, most) for gained in range(n + 1)]
    for gains in (0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4):
        assert _probability(n, claimed, gains + most, gains) <= 0.05


def test_the_normal_bound_would_not_do() -> None:
    """The reason for a bound of our own: with 50 items that agree, a loss of 2 points is likely to be overlooked."""
    same = [True] * 50
    assert -paired_difference(same, same)[1] < 0.02
    assert 0.98**50 > 0.35
    assert loss_bound(0, 0, 50) > 0.06
    assert graded_bound([0.0] * 50) > 0.05


def _most_lost(n: int, gained: int, most: float) -> int:
    """The most lost items with which a loss below `most` is claimed, -1 if never."""
    low, high = -1, n - gained
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if loss_bound(middle, gained, n) < most else (low, middle - 1)
    return low


def _probability(n: int, claimed: Sequence[int], lose: float, gain: float) -> float:
    total = 0.0
    for gained, top in enumerate(claimed if gain else claimed[:1]):
        for lost in range(top + 1):
            ways = lgamma(n + 1) - lgamma(lost + 1) - lgamma(gained + 1) - lgamma(n - lost - gained + 1)
            right = (n - lost - gained) * log(1 - lose - gain)
            total += np.exp(ways + lost * log(lose) + (gained * log(gain) if gain else 0.0) + right)
    return float(total)


def test_a_pair_counts_both_directions() -> None:
    found = paired([1, 1, 1, 0], [1, 0, 0, 1])
    assert (found.n, found.loss, found.lost, found.gained) == (4, 0.25, 2, 1)
    assert found.bound > found.loss
    graded = paired([0.5, 1.0], [0.25, 1.0])
    assert (graded.loss, graded.lost, graded.p) == (0.125, 1, None)


def test_the_bootstrap_is_an_interval_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    scores = list(rng.random(400))
    low, high = bootstrap(scores)
    half = 1.96 * np.std(scores) / 20
    assert low == pytest.approx(np.mean(scores) - half, abs=0.006)
    assert high == pytest.approx(np.mean(scores) + half, abs=0.006)
    assert bootstrap(scores) == (low, high)


# ---- the rule --------------------------------------------------------------------------------------------------------


def simulated(rng: random.Random, losses: Sequence[float], n: int, gain: float = 0.03) -> list[Measured]:
    """A baseline and candidates, the faster the later; each loses `gain` + its loss of all items and gains `gain`."""
    right = [rng.random() < 0.6 for _ in range(n)]
    found, names = [made("exact", right, 1.0, True)], [f"i{k}" for k in range(n)]
    for number, loss in enumerate(losses):
        p, q = (gain + loss) / 0.6, gain / 0.4
        flips = [(rng.random() >= p) if r else (rng.random() < q) for r in right]
        found.append(made(f"c{number}", flips, 2.0 + number, ids=names))
    return found


def verdict(measured: Sequence[Measured], most: float) -> Any:
    return analyse(measured, "tokens_per_forward", "exact", most, ABOUT).verdict


def test_a_false_claim_is_rare_also_after_a_choice() -> None:
    rng, most, seeds = random.Random(5), 0.05, 600
    false = fooled = 0
    for _ in range(seeds):
        found = verdict(simulated(rng, [0.0501] * 6, 160), most)
        false += found.confirmed
        fooled += found.choice is not None and found.choice.bound < most
    assert false <= seeds * 0.05 + 2.5 * (seeds * 0.05 * 0.95) ** 0.5
    assert fooled > seeds * 0.08  # the half it was chosen on would have lied: the rule is needed


def test_a_true_claim_is_found_with_the_items_it_asked_for() -> None:
    rng = random.Random(1)
    small = verdict(simulated(rng, [0.0], 60), 0.04)
    assert not small.confirmed
    assert f"not resolved, needs about {small.needed} items" in small.sentence
    needed, _ = items_needed([1.0] * 3 + [-1.0] * 3 + [0.0] * 94, 0.04)
    won = sum(verdict(simulated(rng, [0.0], 2 * needed), 0.04).confirmed for _ in range(60))
    assert 36 <= won <= 59


def test_the_choice_never_sees_the_other_half() -> None:
    """Whatever happens on the confirmation half, the same strategy is chosen."""
    rng = random.Random(2)
    measured = simulated(rng, [0.0, 0.01, 0.3], 200)
    first = verdict(measured, 0.05)
    worse = [
        m if m.baseline else replace(m, scores={i: s if is_choice(i) else 0.0 for i, s in m.scores.items()})
        for m in measured
    ]
    assert verdict(worse, 0.05).label == first.label
    assert first.label != "c2"
    assert not verdict(worse, 0.05).confirmed
    assert "if nothing is lost in truth" in verdict(worse, 0.05).sentence


def test_nothing_faster_keeps_the_baseline() -> None:
    found = verdict([made("exact", [1] * 40, 2.0, True), made("slow", [1] * 40, 1.0), made("bad", [0] * 40, 9.0)], 0.05)
    assert (found.label, found.confirmed, found.needed) == ("exact", False, None)
    assert found.sentence.startswith("keep exact")


def test_a_point_says_which_forwards_and_how_many_answers_are_the_baselines() -> None:
    base = replace(made("exact", [1, 0, 1], 1.0, True), answers={"i0": "a", "i1": "b", "i2": "c"})
    other = replace(
        made("fast", [1, 0, 0], 2.0), answers={"i0": "a", "i1": "b", "i2": "d"}, forwards={"full": 1.0, "shallow": 3.0}
    )
    found = analyse([base, other], "nfe", "exact", 0.1, ABOUT)
    assert [p.same for p in found.points] == [None, pytest.approx(2 / 3)]
    row = dict(zip(head(found), cells(found.points[1], found), strict=True))
    assert (row["same answers"], row["forwards"]) == ("66.7%", "4.0 (1.0 full, 3.0 shallow)")
    assert dict(zip(head(found), cells(found.points[0], found), strict=True))["same answers"] == "-"


def test_the_frontier_is_what_nothing_dominates() -> None:
    scores = {"exact": 10, "fast": 8, "fastest": 5, "worse": 7, "twin": 8, "slow": 10}
    speeds = {"exact": 2.0, "fast": 4.0, "fastest": 8.0, "worse": 4.0, "twin": 4.0, "slow": 1.0}
    measured = [made(n, [1] * k + [0] * (10 - k), speeds[n], n == "exact") for n, k in scores.items()]
    for axis in ("tokens_per_forward", "nfe", "row_layers", "tokens_per_s"):
        found = analyse(measured, axis, "exact", 0.1, ABOUT)
        assert [p.label for p in found.points if p.frontier] == ["exact", "fast", "fastest", "twin"]
    untimed = [replace(m, tokens_per_s=None) if m.label == "fastest" else m for m in measured]
    assert not analyse(untimed, "tokens_per_s", "exact", 0.1, ABOUT).points[2].frontier


# ---- a real run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tiny_checkpoints.llada_checkpoint(tmp_path_factory.mktemp("pareto") / "llada")
    return unmask.load(directory, device="cpu", dtype="fp32")


SETUP = Setup(eval_toys.Sums(8), max_tokens=8, batch=4)


def chosen(model: Model) -> list[Candidate]:
    return combine(model, 8, ["threshold(0.0001)"], ["none", "dual"], ["blocks(4)"])


def last(model: Model, out: Path, **more: Any) -> Pareto:
    *_, found = measure(model, SETUP, chosen(model), out, axis="tokens_per_forward", **more)
    assert isinstance(found, Pareto)
    return found


def test_strategies_take_turns_and_a_stopped_run_goes_on(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = measure(model, SETUP, chosen(model), tmp_path / "a")
    next(events)
    labels = [e.label for e in (next(events), next(events), next(events), next(events)) if isinstance(e, Done)]
    assert labels == ["1 token/step, none", "threshold(0.0001), none, blocks(4)", "threshold(0.0001), dual, blocks(4)",
                      "threshold(0.0001), none, blocks(4)"]  # fmt: skip
    events.close()  # type: ignore[attr-defined]
    again = last(model, tmp_path / "a")
    whole = last(model, tmp_path / "b")
    assert whole.about["timed_in_turns"] and not again.about["timed_in_turns"]
    for candidate in chosen(model):
        name = Path("strategies", candidate.key, "items.jsonl")
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def never(*_: Any) -> None:
        raise AssertionError("nothing is left to decode")

    monkeypatch.setattr(run, "decode", never)
    monkeypatch.setattr("unmask.evals.runner.run.answer_group", never)
    assert last(model, tmp_path / "b").to_dict() == whole.to_dict()


@pytest.mark.parametrize("content", ["{", "{}", '{"starts": [1]}'])
def test_a_damaged_list_of_starts_is_named(model: Model, tmp_path: Path, content: str) -> None:
    (tmp_path / "run" / "strategies").mkdir(parents=True)
    (tmp_path / "run" / "starts.json").write_text(content)
    with pytest.raises(InputError, match=r"starts\.json is damaged"):
        last(model, tmp_path / "run")


def test_more_strategies_and_more_items_keep_what_is_there(model: Model, tmp_path: Path) -> None:
    part = replace(SETUP, limit=6)
    found: Any = None
    *_, found = measure(model, part, chosen(model)[:2], tmp_path / "run")
    assert found.about["limited"] and found.points[0].n == 6
    with pytest.raises(InputError, match="other settings"):
        list(measure(model, SETUP, chosen(model), tmp_path / "run"))
    found = last(model, tmp_path / "run", extend=True)
    assert [p.n for p in found.points] == [8, 8, 8]
    assert not found.about["timed_in_turns"]
    assert "NOT measured in one run" in markdown(found)


def test_the_files_are_written_and_the_profile_decodes_in_the_same_way(model: Model, tmp_path: Path) -> None:
    found = last(model, tmp_path / "run", max_loss=0.5)
    paths = write_files(found, tmp_path / "run", png=True)
    assert {p.name for p in paths} == {"pareto.json", "pareto.md", "pareto.html", "profile.toml", "pareto.png"}
    assert (tmp_path / "run" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((tmp_path / "run" / "pareto.json").read_text("utf-8"))
    assert stored == json.loads(json.dumps(found.to_dict()))
    options = read_toml(tmp_path / "run" / "profile.toml")
    assert found.chosen.label.startswith("threshold")
    assert options.gen_length == 8
    assert Plan(model, replace(SETUP, options=options)).strategy == found.chosen.strategy
    assert stored["points"][0]["baseline"] and stored["verdict"]["label"] == found.chosen.label


class Tags(HTMLParser):
    """What a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_asks_nothing_of_the_network_and_escapes_names() -> None:
    evil = "<script>alert(1)</script>\"' onload=x"
    measured = [made("exact", [1] * 40, 1.0, True), made(evil, [1] * 40, 20.0)]
    text = page(analyse(measured, "tokens_per_forward", "exact", 0.5, {**ABOUT, "task": "<b>&"}))
    seen = Tags()
    seen.feed(text)
    assert seen.tags.count("script") == 1 and "b" not in seen.tags
    names = {name for name, _ in seen.attributes}
    assert not names & {"src", "href", "onload", "action", "xlink:href"}
    assert not any(word in text for word in ("http:", "https:", "//", "url(", "@import", "fetch("))
    assert "default-src 'none'" in text
    labels = [value for name, value in seen.attributes if name == "aria-label"]
    assert any(value is not None and value.startswith(evil) for value in labels)
    assert seen.tags.count("title") == 3  # of the page, and of each mark
    assert "prefers-color-scheme:dark" in text


@pytest.mark.parametrize("axis", ["tokens_per_forward", "nfe", "row_layers", "tokens_per_s"])
@pytest.mark.parametrize("speeds", [(1.0, 1.0), (1.0, 1.4), (1.0, 300.0), (0.001, 0.002)])
def test_every_mark_is_inside_the_picture(axis: str, speeds: tuple[float, float]) -> None:
    measured = [made("exact", [1] * 40, speeds[0], True), made("other", [0] * 40, speeds[1])]
    seen = Tags()
    seen.feed(page(analyse(measured, axis, "exact", 0.5, ABOUT)))
    at = [float(v) for name, v in seen.attributes if name in ("cx", "x1", "x2") and v is not None]
    up = [float(v) for name, v in seen.attributes if name in ("cy", "y1", "y2") and v is not None]
    assert min(at) >= 0 and max(at) <= 860 and min(up) >= 0 and max(up) <= 440


@pytest.mark.parametrize("speeds", [(1.0, 1.01, 1.02, 1.03, 1.04), (1.0, 19.0, 19.2, 19.4, 20.0)])
def test_names_in_the_picture_do_not_touch(
    speeds: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.evals.pareto import picture

    pytest.importorskip("matplotlib", reason="matplotlib (extra `plot`) is not installed")
    boxes: list[tuple[float, float, float, float]] = []
    place = picture._name
    monkeypatch.setattr(picture, "_name", lambda *given: boxes.extend(place(*given)))
    ends = [made(f"a strategy of some length, {k}", [1] * (40 - k) + [0] * k, s, not k) for k, s in enumerate(speeds)]
    picture.write_png(analyse(ends, "tokens_per_forward", "exact", 0.5, ABOUT), tmp_path / "p.png")
    assert len(boxes) == 5  # all on the frontier
    for i, a in enumerate(boxes):
        assert all(picture._shared(a, b) == 0 for b in boxes[:i])
    none = analyse([replace(e, tokens_per_s=None) for e in ends], "tokens_per_s", "exact", 0.5, ABOUT)
    picture.write_png(none, tmp_path / "none.png")


# ---- strategies ------------------------------------------------------------------------------------------------------


def test_the_grid_has_the_exact_baseline_first(model: Model) -> None:
    found = grid(model, 8)
    assert found[0] == baseline(model, 8) and found[0].baseline
    assert sum(c.baseline for c in found) == 1
    assert len({c.key for c in found}) == len(found) == 28  # its own schedule is the whole canvas: no cache there
    assert not any(c.options.schedule == "whole" and c.options.cache != "none" for c in found)
    assert len(grid(unmask.load("nano-llada"), 8)) == 21
    assert len(grid(unmask.load("nano-ar"), 8)) == 2
    assert grid(unmask.load("nano"), 8)[0].options.cache == "block"


def test_a_file_of_strategies(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("a: {policy: threshold(0.5), cache: dual}\nb: {threshold: 1, gen_length: 16}\n")
    found = with_baseline(model, 8, read_file(path))
    assert [c.label for c in found] == ["1 token/step, none", "a", "b"]
    assert run.plans(model, SETUP, found)[2].max_tokens == 16
    toml = tmp_path / "s.toml"
    toml.write_text('[a]\npolicy = "threshold(0.5)"\ncache = "dual"\n')
    assert read_file(toml) == read_file(path)[:1]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: {polcy: x}", "polcy"), ("a: {threshold: high}", "threshold"), ("a: 3", "decoding options"),
        ("[a, b]", "name -> options"), ("a: {", "YAML"), ("", "name -> options"), ("{}", "at least one"),
        ("3: {cache: dual}", "printable"), ("a: {use_cache: 1}", "use_cache"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        read_file(path)


def test_what_cannot_be_compared_is_refused(model: Model, tmp_path: Path) -> None:
    choice = replace(SETUP, task=eval_toys.Sums(8, kind="choice"), max_tokens=None)
    with pytest.raises(InputError, match="choices"):
        run.plans(model, choice, [Candidate("x", DecodeOptions(), True)])
    with pytest.raises(ConfigError, match="items"):
        run.plans(model, replace(SETUP, limit=1), chosen(model))
    twice = [Candidate("a", DecodeOptions(threshold=0.5)), Candidate("a", DecodeOptions(threshold=0.6))]
    with pytest.raises(ConfigError, match="twice"):
        with_baseline(model, 8, twice)
    with pytest.raises(ConfigError, match="strategy 'bad'"):
        run.plans(model, SETUP, [Candidate("bad", DecodeOptions(profile="fast-dllm-v2"))])
    with pytest.raises(ConfigError, match="autoregressive"):
        combine(unmask.load("nano-ar"), 8, ["threshold(0.5)"])
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="other files"):
        list(measure(model, SETUP, chosen(model), tmp_path))


def test_options_survive_a_file(tmp_path: Path) -> None:
    options = DecodeOptions(
        profile="fast-dllm", gen_length=64, policy='x("\\\n\x7f")', threshold=0.25, use_cache=True, top_k=3
    )
    path = tmp_path / "s.toml"
    path.write_text(to_toml(options, ["two\nlines"], {"n": 3}), encoding="utf-8")
    assert read_toml(path) == options
    found = analyse([made("exact", [1] * 9, 1.0, True)], "nfe", "exact", 0.1, ABOUT)
    path.write_text(profile(found), encoding="utf-8")
    assert read_toml(path) == DecodeOptions(gen_length=8)
