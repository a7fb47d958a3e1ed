"""Adaptive caches of full-attention models: exact settings change no token, each computes the rows it says, and says no
where it is undefined.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models_for_tests import denoiser, prompt
from tiny_checkpoints import dream_checkpoint, llada_checkpoint

from unmask import testing as t
from unmask.core import catalog
from unmask.core.errors import RequestError, SpecError
from unmask.core.events import Opened, Probed, Stepped, fold
from unmask.core.types import EDIT, FILL, REMASK, Candidates, Commit, Plan, Probe, Request, Sampling, Sequence
from unmask.decode.guidance import ClassifierFree
from unmask.engine.engine import Engine
from unmask.models.backbone import denoiser_of
from unmask.models.load import load_model

pytestmark = pytest.mark.slow  # experimental caches on real models; the seam matrix has them in the fast tests

EXACT = (
    "vicinity(1, 2, refresh=1)",
    "delayed(refresh=1)",
    "drift(0.0)",
    "drift(0.5, refresh_max=1)",
    "window(None)",
    "window(None, inside='prefix', refresh=1)",
    "window(None, inside='dual', refresh=1)",
    "light_entry(1, 1, refresh=1)",
)
STALE = (
    "vicinity(1, 2)",
    "delayed(refresh=None)",
    "delayed(refresh=3, open_block=True)",
    "drift(0.02)",
    "window(2)",
    "window(1, every=3, inside='dual')",
    "window(2, inside='prefix')",
    "light_entry(1, 1, full_every=2)",
)
AXES = (
    ("whole", "threshold(0.5)", None, Sampling()),
    ("whole", "dream('origin', steps=5)", None, Sampling(temperature=0.8)),
    ("blocks(4)", "low_confidence(steps=8)", None, Sampling()),
    ("blocks(5)", "random(steps=6)", ClassifierFree(1.5), Sampling(temperature=0.7)),
    ("growing(3)", "factor(1.0)", ClassifierFree(2.0), Sampling()),
    ("growing(5)", "left_to_right", None, Sampling()),
)
Axes = tuple[str, str, Any, Sampling]


def crowd(cache: str, axes: Axes) -> list[Request]:
    return t.crowd(t.strategy(axes[0], axes[1], cache, axes[2], axes[3]))


def steps(found: t.Outcome) -> list[Stepped]:
    return [e for e in found.events if isinstance(e, Stepped)]


# ---- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llada", "dream"])
@pytest.mark.parametrize("axes", AXES, ids=lambda a: f"{a[0]} {a[1]}{' guided' if a[2] else ''}")
def test_exact_settings_change_no_token_of_a_transformer(kind: str, axes: Axes) -> None:
    """Requests of mixed lengths, one with given tokens in its answer, in one batch."""
    model = denoiser(kind, 2)
    plain = t.decode(model, crowd("none", axes)).answers
    for cache in EXACT:
        assert catalog.parse("cache", cache).exact_for(model.traits), cache
        assert t.decode(model, crowd(cache, axes)).answers == plain, cache


@pytest.mark.parametrize("make", [llada_checkpoint, dream_checkpoint])
def test_exact_settings_change_no_token_of_a_checkpoint(make: Any, tmp_path: Path) -> None:
    loaded = load_model(make(tmp_path / "tiny"), dtype="fp32", device="cpu")
    model = denoiser_of(loaded.model, replace(loaded.traits, eos_ids=()))
    for axes in AXES[2:4]:
        plain = t.decode(model, crowd("none", axes)).answers
        for cache in EXACT:
            assert t.decode(model, crowd(cache, axes)).answers == plain, cache


@pytest.mark.parametrize("cache", STALE)
def test_other_settings_do_not_call_themselves_exact(cache: str) -> None:
    found = catalog.parse("cache", cache)
    assert not any(found.exact_for(traits) for traits in t.TRAITS.values())
    assert found.scoring == "approximate"


@pytest.mark.parametrize("cache", EXACT)
def test_exact_is_a_word_about_full_attention_only(cache: str) -> None:
    found = catalog.parse("cache", cache)
    assert [n for n, traits in t.TRAITS.items() if found.exact_for(traits)] == ["full", "full-shift"]


@pytest.mark.parametrize("cache", ["delayed(refresh=3)", "drift(0.02)"])
def test_the_public_check_passes(cache: str) -> None:
    t.check_cache(cache, ("full-shift", "block-causal"))


@pytest.mark.parametrize("cache", STALE)
@pytest.mark.parametrize("model", [denoiser("dream", 3), t.FakeDenoiser(t.TRAITS["full-shift"])], ids=["dream", "fake"])
def test_a_crowd_changes_nothing(model: Any, cache: str) -> None:
    """Beside other caches, one of the requests guided; on the fake model a row that was not kept is NaN."""
    caches, scales = (cache, "dual", cache, "none"), (None, None, ClassifierFree(1.5), None)
    mixed = [t.request([i % 20 for i in prompt(i, 3 + 4 * i)], 9 + 2 * i, t.strategy("blocks(4)", cache=c, guidance=g),
                       str(i)) for i, (c, g) in enumerate(zip(caches, scales, strict=True))]  # fmt: skip
    together = t.decode(model, mixed)
    assert together.calls < sum(together.nfe.values())
    for one in mixed:
        assert t.decode(model, [one]).answers[one.id] == together.answers[one.id]


# ---- where they are undefined ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vicinity", "delayed", "drift", "window", "light_entry"])
def test_other_kinds_of_models_are_refused(name: str) -> None:
    words = {
        "block-causal": ("a block-causal model", "block or sub_block"),
        "context-causal": ("a block-causal model", "block or sub_block"),
        "causal": ("an autoregressive model", "use block"),
        "recurrent": ("a recurrent model", "none or boundary"),
    }
    for kind, (got, remedy) in words.items():
        with pytest.raises(RequestError) as caught:
            _start(t.TRAITS[kind], name)
        said = caught.value
        assert said.got == got and remedy in said.remedy and f"cache {name}; expected a model with full" in str(said)
    assert catalog.find("cache", name).experimental


def _start(traits: Any, cache: str) -> None:
    one = t.request((1, 2), 4, t.strategy(cache=cache))
    one.strategy.cache.init(Sequence(one, traits, one.canvas, one.fixed, one.fixed.clone()))


@pytest.mark.parametrize("spec", ["window(None, every=2)", "window(4, refresh=2)", "window(every=1)", "drift(-0.1)",
                                  "delayed(refresh=0)", "light_entry(full_every=0)", "vicinity(-1)"])  # fmt: skip
def test_settings_without_effect_or_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(SpecError):
        catalog.parse("cache", spec)


# ---- what each computes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "full-shift"])
@pytest.mark.parametrize("schedule", ["whole", "blocks(4)", "growing(3)"])
@pytest.mark.parametrize(
    ("cache", "other"),
    [("vicinity(0, 0)", "dual"), ("vicinity(0, 0, refresh=3)", "dual(refresh=3)"), ("drift(1e9)", "dual"),
     ("drift(1e9, refresh_max=2)", "dual(refresh=2)"), ("light_entry(5, 5, full_every=1)", "dual"),
     ("window(None, inside='dual')", "dual"), ("window(99, inside='prefix')", "prefix"), ("window(99)", "none")],
)  # fmt: skip
def test_at_one_end_of_its_range_each_is_a_cache_we_know(kind: str, schedule: str, cache: str, other: str) -> None:
    ours, right = (
        t.decode(t.FakeDenoiser(t.TRAITS[kind]), t.crowd(t.strategy(schedule, cache=c))) for c in (cache, other)
    )
    assert (ours.answers, ours.rows, ours.nfe) == (right.answers, right.rows, right.nfe)


def queries(cache: str, kind: str = "full", schedule: str = "blocks(4)", **more: Any) -> list[list[int]]:
    """Rows of every forward: five given tokens, twelve holes, written left to right."""
    fake = t.FakeDenoiser(t.TRAITS[kind])
    t.decode(fake, [t.request([1, 2, 3, 4, 5], 12, t.strategy(schedule, "left_to_right", cache), **more)])
    return [b.positions.tolist() for b in fake.calls]


def test_vicinity_computes_the_block_and_its_neighbours() -> None:
    rows = queries("vicinity(2, 3)")
    everything = list(range(17))
    assert rows[0] == rows[4] == rows[8] == everything
    assert rows[1] == rows[3] == list(range(3, 12))
    assert rows[5] == list(range(7, 16))
    assert rows[9] == list(range(11, 17)), "the canvas ends before the neighbours do"


@pytest.mark.parametrize("kind", ["full", "full-shift"])
def test_delayed_computes_a_row_once_more_after_its_reveal(kind: str) -> None:
    rows = queries("delayed(refresh=None)", kind)
    assert rows[0] == list(range(17))
    for step in range(1, 12):
        fresh = 5 + step - 1
        assert rows[step] == list(range(fresh, 17)), "what was revealed at the step before, and all holes"
    assert queries("delayed(refresh=4)", kind)[4] == list(range(17))
    assert queries("delayed(refresh=None, open_block=True)", kind)[7] == list(range(9, 17)), "it begins at 9"


def test_delayed_has_something_to_compute_in_a_pass_that_asks_for_nothing() -> None:
    chosen = t.strategy("whole", "low_confidence(steps=9, all_passes=True)", "delayed(refresh=None)")
    found = t.decode(t.FakeDenoiser(t.TRAITS["full"]), [t.request([1, 2], 3, chosen)])
    assert found.nfe["a"] == 9
    assert [e.work.row_layers // 2 for e in steps(found)][-2:] == [3, 3], "the open block, for want of another"


def test_window_leaves_out_far_masks_and_keeps_given_tokens() -> None:
    assert queries("window(2)")[0] == list(range(11))
    assert queries("window(2)")[4] == list(range(15))
    assert queries("window(2, inside='dual')")[1] == [5, 6, 7, 8]
    assert queries("window(2, inside='prefix')")[1] == [5, 6, 7, 8, 9, 10]
    assert queries("window(0, every=3)")[0] == [*range(9), 9, 12, 15]
    assert queries("window(0)", fixed={10: 7})[0] == [*range(9), 15]
    assert queries("window(0)", schedule="whole")[0] == list(range(17)), "nothing lies behind the open block"


@pytest.mark.parametrize("cache", ["window(0)", "window(0, inside='dual')", "window(0, inside='prefix')"])
def test_what_the_window_leaves_out_is_not_seen(cache: str) -> None:
    """The length of the canvas shows nowhere, a given token behind the window does."""
    fake = t.FakeDenoiser(t.TRAITS["full"])
    short, long, given = (
        t.decode(fake, [t.request([1, 2, 3], n, t.strategy("blocks(4)", "left_to_right", cache), fixed=f)]).answers["a"]
        for n, f in ((8, None), (30, None), (30, {25: 9}))
    )
    assert long[:8] == short
    assert given[:4] != short[:4]


def test_light_entry_computes_what_changed_the_new_block_and_its_neighbours() -> None:
    rows = queries("light_entry(1, 2, full_every=3)")
    assert rows[0] == list(range(17))
    assert rows[1] == rows[3] == [5, 6, 7, 8]
    assert rows[4] == [*range(5, 9), *range(9, 13), 13, 14], "the first block was written since"
    assert rows[8] == list(range(5, 17)), "both were"
    assert queries("light_entry(1, 2, full_every=2)")[8] == list(range(17))
    assert queries("light_entry(0, 0, full_every=3)", schedule="growing(4)")[8] == list(range(5, 17))


@dataclass(frozen=True)
class SecondThoughts:
    """Fills left to right; at step 4 masks position 6 again, at step 6 edits position 5."""

    scores: tuple[str, ...] = ()

    def init(self, seq: Sequence) -> None:
        return None

    def wants(self, seq: Sequence, open: Any, state: None) -> torch.Tensor:
        return torch.arange(open[0].start, open[-1].stop)

    def decide(self, seq: Sequence, want: Any, candidates: Candidates, state: None, noise: Any) -> tuple[Commit, None]:
        kind = {4: REMASK, 6: EDIT}.get(seq.step, FILL)
        at = {4: 6, 6: 5}.get(seq.step, int(seq.holes(0, seq.length)[0]))
        slot = (want == at).nonzero().flatten()
        return Commit(slot, (candidates.token[slot] + seq.step) % 20, torch.ones(1), kind), None


@pytest.mark.parametrize("cache", STALE)
def test_policies_that_change_their_mind_are_served(cache: str) -> None:
    parts = t.strategy("whole", cache=cache)
    t.decode(t.FakeDenoiser(t.TRAITS["full"]), [t.request([1, 2, 3], 8, replace(parts, policy=SecondThoughts()))])


def test_a_row_that_was_masked_or_edited_again_is_computed_again() -> None:
    fake = t.FakeDenoiser(t.TRAITS["full"])

    @dataclass(frozen=True)
    class Few(SecondThoughts):
        def wants(self, seq: Sequence, open: Any, state: None) -> torch.Tensor:
            extra = {3: [6], 5: [5]}.get(seq.step, [])
            return torch.tensor(sorted({*extra, int(seq.holes(0, seq.length)[0])}))

    parts = replace(t.strategy("whole", cache="delayed(refresh=None)"), policy=Few())
    t.decode(fake, [t.request([1, 2, 3, 4, 5], 8, parts)])
    rows = [b.positions.tolist() for b in fake.calls]
    assert rows[3] == [6, *range(7, 13)], "position 6 speaks"
    assert rows[4] == [6, *range(8, 13)], "6 is a hole again"
    assert rows[6] == [5, *range(8, 13)], "5 was edited"


# ---- drift -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llada", "dream"])
def test_drift_makes_the_full_forward_before_anything_is_committed(kind: str) -> None:
    found = t.decode(denoiser(kind), t.crowd(t.strategy("blocks(5)", "left_to_right", "drift(0.02)")))
    mine = [e for e in steps(found) if e.id == "0"]
    again = [i for i, e in enumerate(mine) if e.work.kind == "partial" and not e.writes]
    assert again, "this threshold is reached"
    assert all(mine[i + 1].work.kind == "full" and mine[i + 1].writes for i in again)
    assert any(e.work.kind == "partial" and e.writes for e in mine), "and not always"
    assert found.nfe["0"] == 10 + len(again), "every forward is counted"


def test_drift_is_the_sum_of_what_the_probe_sees() -> None:
    """The same partial forwards, watched by a request's own probe: the full one comes when their sum reaches 0.02."""
    model = denoiser("llada", 1)
    one = t.request(prompt(1, 6), 12, t.strategy("blocks(12)", "left_to_right", "drift(0.02)"),
                    probes=(Probe("kv_cosine", -1), Probe("logits")))  # fmt: skip
    engine = Engine(model)
    engine.submit(one)
    events, total, refreshed = list(engine.run()), 0.0, []
    cosines = {e.nfe: e for e in events if isinstance(e, Probed) and e.kind == "kv_cosine"}
    assert len(cosines) == len([e for e in events if isinstance(e, Stepped)]), "also in the second forward of a step"
    opened = next(e.start for e in events if isinstance(e, Opened))
    decided, written = opened, opened
    for e in events:
        if not isinstance(e, Stepped):
            continue
        if e.work.kind == "partial":
            probe = cosines[e.nfe]
            same = [v for p, v in zip(probe.positions, probe.values, strict=True) if not decided <= p < written]
            total += 1 - sum(map(sum, same)) / (2 * len(same))
            assert (total >= 0.02) == (not e.writes)
        else:
            refreshed.append(total)
            total = 0.0
        if e.writes:
            decided, written = written, e.writes[0][0] + 1
    assert len(refreshed) > 1
    plain = replace(one, probes=())
    again = Engine(model)
    again.submit(plain)
    assert fold(again.run())["a"].ids == fold(events)["a"].ids


def test_a_lower_threshold_makes_more_full_forwards() -> None:
    model, counts = denoiser("llada", 1), []
    for threshold in (1e9, 0.05, 0.01, 0.0):
        found = t.decode(model, t.crowd(t.strategy("blocks(5)", "left_to_right", f"drift({threshold})")))
        counts.append(sum(e.work.kind == "full" for e in steps(found)))
    assert counts == sorted(counts) and counts[0] < counts[1] < counts[2] < counts[3]


def test_drift_without_a_row_to_compare_is_not_trusted() -> None:
    found, state = catalog.parse("cache", "drift(0.5)"), None
    one = t.request((1, 2), 4, t.strategy("blocks(4)", cache=found))
    seq = Sequence(one, t.TRAITS["full"], one.canvas, one.fixed, one.fixed.clone())
    seq.blocks = one.strategy.schedule.layout(seq)
    state, plans = found.init(seq), []
    for _ in range(2):
        plan, state = found.plan(seq, seq.blocks, torch.arange(2, 6), 6, state, None)
        plans.append(plan)
    unknown = torch.full((4, 2), torch.nan)
    state, more = found.observe((unknown,), Candidates(torch.zeros(4), torch.zeros(4)), state)
    assert isinstance(more, Plan) and more.query == ((0, 6),)
    assert found.observe((), Candidates(torch.zeros(4), torch.zeros(4)), state)[1] is None


def test_the_fake_model_compares_only_rows_that_were_kept() -> None:
    fake = t.FakeDenoiser(t.TRAITS["full"])
    probes = (Probe("kv_cosine", 0), Probe("kv_cosine", -1))
    one = t.request([1, 2, 3], 4, t.strategy("blocks(2)", "left_to_right", "prefix"), probes=probes)
    engine = Engine(fake)
    engine.submit(one)
    found = [e for e in engine.run() if isinstance(e, Probed) and e.layer == 1]
    assert [e.positions for e in found] == [(), (), (0, 1, 2), ()]
