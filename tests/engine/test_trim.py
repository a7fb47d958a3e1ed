"""Token reuse (`trim`): who is computed and who is frozen, exact settings, commits, verified reuse, refusals."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models.tiny import CONTEXT_CAUSAL, FAST_DLLM, SDAR, build
from models_for_tests import denoiser
from torch import Tensor

from unmask import testing as t
from unmask.cache.trim import Trim
from unmask.core import catalog
from unmask.core.errors import RequestError, SpecError
from unmask.core.events import Stepped
from unmask.core.types import Block, BlockCausal, Candidates, Commit, Plan, Request, Sequence, Traits
from unmask.decode.guidance import ClassifierFree
from unmask.engine.engine import Engine
from unmask.models.backbone import denoiser_of
from unmask.models.load import load_model

pytestmark = pytest.mark.slow  # experimental caches on real models; the seam matrix has them in the fast tests

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
FAMILIES = ("block-causal", "block-causal-off-grid", "context-causal", "causal")
WIDE = replace(t.TRAITS["block-causal"], attention=BlockCausal(8))
WIDE_UNSHIFTED = replace(WIDE, shift=0)
AXES = (("blocks(4)", "threshold(0.6)"), ("blocks(2)", "low_confidence(steps=9)"), ("blocks(3)", "random(steps=6)"),
        ("growing(5)", "factor(1.0)"), ("pipelined(4, window=3)", "pipelined_threshold(0.5)"))  # fmt: skip


@dataclass
class Seen:
    """One step as the cache met it."""

    decided: Tensor
    ids: Tensor
    holes: set[int]
    need: set[int]
    end: int
    plan: Plan


@dataclass(frozen=True)
class Spy:
    """A cache whose plans are written down."""

    inner: Any
    steps: list[Seen] = field(default_factory=list)
    scoring = "approximate"

    def exact_for(self, traits: Traits) -> bool:
        return self.inner.exact_for(traits)

    def init(self, seq: Sequence) -> Any:
        return self.inner.init(seq)

    def plan(self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Any, peers: Any) -> Any:
        plan, after = self.inner.plan(seq, open, need, horizon, state, peers)
        holes = {p for b in open for p in seq.holes(b.start, b.stop).tolist()}
        self.steps.append(Seen(seq.decided.clone(), seq.canvas.clone(), holes, set(need.tolist()), open[-1].stop, plan))
        return plan, after

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Any) -> Any:
        return self.inner.observe(probes, candidates, state)


def rows_of(plan: Plan) -> set[int]:
    return set(t.positions(plan.query).tolist())


def watch(traits: Traits, cache: Trim, request: Request) -> list[Seen]:
    spy = Spy(cache)
    t.decode(t.FakeDenoiser(traits), [replace(request, strategy=replace(request.strategy, cache=spy))])
    return spy.steps


# ---- who is computed -------------------------------------------------------------------------------------------------


def by_roles(steps: Seq[Seen], size: int, refresh: int | None) -> list[set[int]]:
    """The rows of each step, restated: block by block, row by row, from what every row was last computed with."""
    rows: list[set[int]] = []
    known: dict[int, int] = {}
    kept = age = 0
    for seen in steps:
        holes = [p for p, done in enumerate(seen.decided.tolist()) if not done]
        stop = min(ceil(seen.end / size) * size, len(seen.decided))
        final = min(holes[0] // size * size, stop)
        now = set()
        for p in range(kept, stop):
            producer, changed, mask = p in seen.need, known.get(p) != int(seen.ids[p]), p in seen.holes
            if producer or changed or mask or p < final or (refresh is not None and age >= refresh):
                now.add(p)
        now |= seen.need
        age = 1 if all(p in now for p in range(kept, stop)) else age + 1
        known.update({p: int(seen.ids[p]) for p in now})
        kept = final
        rows.append(now)
    return rows


@QUICK
@given(
    traits=st.sampled_from([WIDE, WIDE_UNSHIFTED, t.TRAITS["context-causal"], t.TRAITS["block-causal-off-grid"]]),
    axes=st.sampled_from([("blocks(4)", "threshold(0.6)"), ("blocks(2)", "random(steps=8)"),
                          ("blocks(4)", "left_to_right"), ("blocks(8)", "low_confidence(steps=8)")]),
    refresh=st.sampled_from([None, 1, 2, 3, 8]),
    prompt=st.lists(st.integers(0, 20), min_size=1, max_size=10),
    length=st.integers(1, 20),
    given_at=st.dictionaries(st.integers(0, 19), st.integers(0, 20), max_size=3),
)  # fmt: skip
def test_rows_are_those_with_a_reason(
    traits: Traits, axes: tuple[str, str], refresh: int | None, prompt: list[int], length: int, given_at: dict[int, int]
) -> None:
    fixed = {k: v for k, v in given_at.items() if k < length - 1}
    steps = watch(traits, Trim(refresh), t.request(prompt, length, t.strategy(*axes), fixed=fixed))
    assert isinstance(traits.attention, BlockCausal)
    assert [rows_of(s.plan) for s in steps] == by_roles(steps, traits.attention.size, refresh)


def test_a_settled_row_is_computed_once_more_and_then_frozen() -> None:
    """Shift 0, left to right, a block of 8: row p is computed while it is a mask, once with its token, never again."""
    steps = watch(WIDE_UNSHIFTED, Trim(None), t.request(range(8), 8, t.strategy("blocks(8)", "left_to_right")))
    assert [sorted(rows_of(s.plan)) for s in steps] == [
        list(range(16)),
        *[[*range(7 + i, 16)] for i in range(1, 8)],
    ]


def test_the_row_that_speaks_for_an_open_position_is_not_frozen() -> None:
    """Shift 1: row 7, of the finished block, speaks for position 8 until that is decided, and no longer."""
    steps = watch(WIDE, Trim(None), t.request(range(8), 8, t.strategy("blocks(8)", "left_to_right")))
    assert [7 in rows_of(s.plan) for s in steps] == [True] + [False] * 7
    steps = watch(WIDE, Trim(None), t.request(range(8), 8, t.strategy("blocks(8)", "low_confidence(steps=8)")))
    first_open = [8 in s.holes for s in steps]
    assert any(first_open[1:]) and [7 in rows_of(s.plan) for s in steps][1:] == first_open[1:]


def test_it_computes_less_than_the_block_cache() -> None:
    wide = replace(WIDE, attention=BlockCausal(16))
    axes = ("blocks(16)", "low_confidence(steps=64)")
    rows = {
        c: t.decode(t.FakeDenoiser(wide), t.crowd(t.strategy(*axes, c), 32)).rows for c in ("block", "trim", "trim(2)")
    }
    assert rows["trim"] < rows["trim(2)"] < rows["block"]


# ---- exact settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_refresh_at_every_step_is_no_cache(family: str, shift: int) -> None:
    traits = replace(t.TRAITS[family], shift=shift)
    assert Trim(1).exact_for(traits) and not Trim(2).exact_for(traits)
    for axes in AXES:
        plain = t.decode(t.FakeDenoiser(traits), t.crowd(t.strategy(*axes), 14))
        ours = t.decode(t.FakeDenoiser(traits), t.crowd(t.strategy(*axes, "trim(1)"), 14))
        assert (ours.answers, ours.nfe) == (plain.answers, plain.nfe), axes
        assert ours.rows < plain.rows


@pytest.mark.parametrize("config", [FAST_DLLM, SDAR, CONTEXT_CAUSAL], ids=lambda c: c["model_type"])
def test_refresh_at_every_step_is_no_cache_on_every_block_family(config: dict[str, Any], tmp_path: Path) -> None:
    loaded = load_model(build(tmp_path / "tiny", config), dtype="fp32", device="cpu")
    model = denoiser_of(loaded.model, replace(loaded.traits, mask_id=63, eos_ids=()))
    for axes in (("blocks(4)", "threshold(0.1)"), ("blocks(2)", "low_confidence(steps=9)")):
        plain = t.decode(model, t.crowd(t.strategy(*axes), 18)).answers
        assert t.decode(model, t.crowd(t.strategy(*axes, "trim(1)"), 18)).answers == plain


@pytest.mark.parametrize("kind", ["block-causal", "context-causal"])
@pytest.mark.parametrize("cache", ["trim(1)", "trim(3)", "trim(8, verify=0.99)"])
def test_alone_and_in_a_crowd_with_guidance_and_given_tokens(kind: str, cache: str) -> None:
    model = denoiser(kind, 3)
    chosen = t.strategy("blocks(4)", "threshold(0.4)", cache, guidance=ClassifierFree(1.7))
    together = t.decode(model, t.crowd(chosen, 14), slots=16).answers
    for one in t.crowd(chosen, 14):
        assert t.decode(model, [one]).answers[one.id] == together[one.id]
    if cache == "trim(1)":
        assert t.decode(model, t.crowd(replace(chosen, cache=catalog.parse("cache", "none")), 14)).answers == together


# ---- commits ---------------------------------------------------------------------------------------------------------


@QUICK
@given(
    traits=st.sampled_from([WIDE, WIDE_UNSHIFTED, *(t.TRAITS[f] for f in FAMILIES)]),
    axes=st.sampled_from(AXES),
    cache=st.sampled_from([Trim(None), Trim(8), Trim(3), Trim(8, verify=0.9)]),
    length=st.integers(2, 22),
)
def test_the_commit_of_a_finished_block_computes_every_row(
    traits: Traits, axes: tuple[str, str], cache: Trim, length: int
) -> None:
    kept = 0
    for seen in watch(traits, cache, t.request([3, 1, 4], length, t.strategy(*axes))):
        if seen.plan.final > kept:
            assert set(range(kept, seen.plan.final)) <= rows_of(seen.plan)
            assert bool(seen.decided[: seen.plan.final].all())
        kept = seen.plan.final


@dataclass(frozen=True)
class Replay:
    """A policy that writes what another run wrote, step by step."""

    writes: tuple[tuple[tuple[int, int], ...], ...]
    scores = ()

    def init(self, seq: Sequence) -> int:
        return 0

    def wants(self, seq: Sequence, open: Seq[Block], state: int) -> Tensor:
        return seq.holes(0, max(b.stop for b in open))

    def decide(self, seq: Sequence, want: Tensor, candidates: Candidates, state: int, noise: Any) -> tuple[Commit, int]:
        tokens = dict(self.writes[state])
        slots = torch.tensor([i for i, p in enumerate(want.tolist()) if p in tokens])
        chosen = torch.tensor([tokens[p] for p in want[slots].tolist()])
        return Commit(slots, chosen, candidates.prob[slots]), state + 1


def stored(model: Any, request: Request) -> tuple[Any, int, list[tuple[tuple[int, int], ...]]]:
    """The store after a run, the rows that are kept for good, and what was written at each step."""
    engine = Engine(model, 1)
    engine.submit(replace(request, session="s"))
    writes = [tuple(sorted((p, k) for p, k, *_ in e.writes)) for e in engine.run() if isinstance(e, Stepped)]
    return engine._store, engine.kept("s"), writes


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("family", [*FAMILIES, "wide"])
@pytest.mark.parametrize("cache", ["trim(None)", "trim(8, verify=0.95)"])
def test_rows_kept_for_good_are_those_of_the_exact_cache(family: str, axes: tuple[str, str], cache: str) -> None:
    """Bit for bit, given the same tokens: what is stale inside a block never enters what is kept."""
    traits = WIDE if family == "wide" else t.TRAITS[family]
    request = t.request([3, 1, 4], 21, t.strategy(*axes, cache))
    ours, kept, writes = stored(t.FakeDenoiser(traits), request)
    again = replace(request, strategy=t.strategy(axes[0], Replay(tuple(writes)), "block"))
    right, kept_there, same = stored(t.FakeDenoiser(traits), again)
    assert same == writes and kept == kept_there >= 8
    assert torch.equal(ours.values[:, 0, :kept], right.values[:, 0, :kept])


@pytest.mark.parametrize("kind", ["block-causal", "context-causal"])
def test_rows_kept_for_good_by_a_transformer(kind: str) -> None:
    """Up to the last bits of products of other shapes; what trim leaves stale inside a block is far from that."""
    request = t.request([3, 1, 4], 21, t.strategy("blocks(2)", "threshold(0.4)", "trim(None)"))
    ours, kept, writes = stored(denoiser(kind, 5), request)
    again = replace(request, strategy=t.strategy("blocks(2)", Replay(tuple(writes)), "block"))
    right, kept_there, _ = stored(denoiser(kind, 5), again)
    assert kept == kept_there >= 16
    for a, b in ((ours.keys, right.keys), (ours.values, right.values)):
        assert torch.allclose(a[:, 0, :, :kept], b[:, 0, :, :kept], atol=1e-4, rtol=0)


# ---- verified reuse --------------------------------------------------------------------------------------------------


def test_a_cosine_that_nothing_falls_below_is_plain_trim() -> None:
    for family in FAMILIES:
        runs = [t.decode(t.FakeDenoiser(t.TRAITS[family]), t.crowd(t.strategy("blocks(4)", cache=c), 16))
                for c in ("trim(None)", "trim(None, verify=1e-9)")]  # fmt: skip
        assert (runs[0].answers, runs[0].rows) == (runs[1].answers, runs[1].rows)


@pytest.mark.parametrize("quota", [0.2, 0.5, 1.0])
def test_frozen_rows_come_back_in_the_next_step_the_oldest_first(quota: float) -> None:
    wide = replace(WIDE_UNSHIFTED, attention=BlockCausal(16))
    request = t.request(range(16), 16, t.strategy("blocks(16)", "left_to_right"))
    plain = [rows_of(s.plan) for s in watch(wide, Trim(None), request)]
    last = dict.fromkeys(range(16, 32), 0)
    moved = False
    for step, seen in enumerate(watch(wide, Trim(None, verify=1.0, quota=quota), request)):
        reasons = plain[step]
        left = [p for p in range(16, 32) if p not in reasons]
        back = sorted(left, key=lambda p: (last[p], p))[: ceil(quota * len(left))] if moved and step else []
        assert rows_of(seen.plan) == reasons | set(back), step
        moved = step > 0  # a mask that is computed again has always moved by some bits
        last.update(dict.fromkeys(rows_of(seen.plan), step))


def test_new_tokens_are_not_taken_for_drift() -> None:
    """Only rows that still have the token they were stored with are compared: alone in its block, a new one is not."""
    cache = Trim(8, verify=0.99)
    state = replace(cache.init(sequence()), same=torch.tensor([False, True]))
    far, near = torch.tensor([[0.1, 0.1], [1.0, 1.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.5]])
    unknown = torch.tensor([[1.0, 1.0], [torch.nan, torch.nan]])
    nothing = Candidates(torch.zeros(0), torch.zeros(0))
    assert [cache.observe([p], nothing, state)[0].moved for p in (far, near, unknown)] == [False, True, False]


def sequence(traits: Traits = WIDE) -> Sequence:
    one = t.request([1, 2], 6, t.strategy())
    return Sequence(one, traits, one.canvas, one.fixed, one.fixed.clone())


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_it_refuses() -> None:
    for spec, words in (
        ("trim(0)", "refresh"),
        ("trim(quota=0.5)", "a verify to go with it"),
        ("trim(1, verify=0.9)", "no row is ever frozen"),
        ("trim(verify=0.0)", "> 0"),
        ("trim(verify=1.5)", "<= 1"),
        ("trim(verify=0.9, quota=0.0)", "> 0"),
    ):
        with pytest.raises(SpecError, match=words):
            catalog.parse("cache", spec)
    for family in ("full", "recurrent"):
        with pytest.raises(RequestError, match="block-causal"):
            Trim().init(sequence(t.TRAITS[family]))
    assert repr(Trim(4, verify=0.9)) == "trim(refresh=4, verify=0.9)"
    assert catalog.find("cache", "trim").experimental
