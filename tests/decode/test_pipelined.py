"""`pipelined` blocks and their threshold: who is open and who must move, restated; window 1 is `blocks`; refusals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unmask import testing as t
from unmask.core import catalog
from unmask.core.errors import ConfigError, RequestError, SpecError
from unmask.core.events import BlockDone, Opened, Stepped
from unmask.core.types import Sampling
from unmask.decode.guidance import ClassifierFree
from unmask.decode.pipelined import Pipelined, PipelinedThreshold
from unmask.engine.engine import sequence_of
from unmask.engine.options import DecodeOptions
from unmask.engine.profiles import build

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
POLICIES = ("threshold(0.6)", "pipelined_threshold(0.6)", "factor(1.0)", "low_confidence(steps=10)",
            "low_confidence(steps=10, all_passes=True)", "random(steps=5)", "entropy_bound(0.8)", "left_to_right",
            "slow_fast(0.5, reach=0.2)", "dream('origin', steps=6)", "dream_block", "dream_carry(steps=5)")  # fmt: skip
COUNTED = ("low_confidence(steps=10)", "low_confidence(steps=10, all_passes=True)", "random(steps=5)",
           "margin(steps=5)", "dream('entropy', steps=6, alg_temp=0.5)",
           "dream('topk_margin', steps=6, empty_passes=True)")  # fmt: skip


@dataclass(frozen=True)
class Spy:
    """A policy whose steps are written down: decided before, wanted, confidences, committed."""

    inner: PipelinedThreshold
    steps: list[tuple[list[bool], list[int], list[float], list[int]]] = field(default_factory=list)
    scores = ()

    def init(self, seq: Any) -> None:
        return None

    def wants(self, seq: Any, open: Any, state: Any) -> Any:
        return self.inner.wants(seq, open, state)

    def decide(self, seq: Any, want: Any, candidates: Any, state: Any, noise: Any) -> Any:
        commit, _ = self.inner.decide(seq, want, candidates, state, noise)
        entry = (seq.decided.tolist(), want.tolist(), candidates.prob.tolist(), want[commit.slots].tolist())
        self.steps.append(entry)
        return commit, None


@QUICK
@given(
    length=st.integers(1, 5),
    window=st.integers(1, 4),
    add=st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]),
    full=st.sampled_from([0.0, 0.3, 0.6, 0.95, 1.0]),
    threshold=st.sampled_from([0.2, 0.4, 0.7, 1.0]),
    answer=st.integers(1, 16),
    given_at=st.dictionaries(st.integers(0, 14), st.integers(0, 20), max_size=3),
    kind=st.sampled_from(["full", "full-shift", "block-causal-off-grid"]),
)
def test_windows_and_commits_are_those_of_the_rule(
    length: int,
    window: int,
    add: float,
    full: float,
    threshold: float,
    answer: int,
    given_at: dict[int, int],
    kind: str,
) -> None:
    fixed = {k: v for k, v in given_at.items() if k < answer - 1}
    spy = Spy(PipelinedThreshold(threshold, full))
    one = t.request([1, 5], answer, t.strategy(Pipelined(length, window, add), spy), fixed=fixed)
    t.decode(t.FakeDenoiser(t.TRAITS[kind]), [one])
    first = next(p for p in range(2, 2 + answer) if not bool(one.fixed[p]))
    blocks = [range(a, min(a + length, 2 + answer)) for a in range(first, 2 + answer, length)]
    for decided, want, prob, taken in spy.steps:
        holes = [[p for p in b if not decided[p]] for b in blocks]
        asked = [[p for p in b if not bool(one.fixed[p])] for b in blocks]
        share = [1 - len(h) / len(a) if h else 1.0 for h, a in zip(holes, asked, strict=True)]
        left = next(i for i, h in enumerate(holes) if h)
        there = left + 1
        while there < min(left + window, len(blocks)) and share[there - 1] >= add - 1e-7:
            there += 1
        assert want == [p for h in holes[left:there] for p in h]
        sure = dict(zip(want, prob, strict=True))
        right = {p for p in want if sure[p] >= threshold}
        for i in range(left, there):
            if holes[i] and (i == 0 or share[i - 1] >= full - 1e-7):
                right.add(max(holes[i], key=lambda p: (sure[p], -p)))
        assert set(taken) == right


@pytest.mark.parametrize("kind", ["full", "full-shift", "block-causal", "context-causal", "block-causal-off-grid"])
def test_a_window_of_one_is_blocks(kind: str) -> None:
    for policy in POLICIES:
        for length, sampling in ((3, Sampling(temperature=0.7)), (4, Sampling())):
            runs = [
                t.decode(t.FakeDenoiser(t.TRAITS[kind]), t.crowd(t.strategy(s, policy, sampling=sampling)))
                for s in (f"blocks({length})", f"pipelined({length}, window=1)")
            ]
            assert runs[0].answers == runs[1].answers, policy
            assert runs[0].nfe == runs[1].nfe and runs[0].rows == runs[1].rows


def test_its_threshold_on_one_block_is_threshold() -> None:
    for kind in t.TRAITS:
        runs = [
            t.decode(t.FakeDenoiser(t.TRAITS[kind]), t.crowd(t.strategy("blocks(4)", p)))
            for p in ("threshold(0.6)", "pipelined_threshold(0.6)")
        ]
        assert (runs[0].answers, runs[0].nfe) == (runs[1].answers, runs[1].nfe)


@pytest.mark.parametrize("policy", COUNTED)
def test_policies_that_count_steps_per_block_speak_for_the_first_open_one(policy: str) -> None:
    runs = [
        t.decode(t.FakeDenoiser(t.TRAITS["full"]), t.crowd(t.strategy(s, policy)))
        for s in ("blocks(3)", "pipelined(3, window=3, add=0.0)")
    ]
    assert (runs[0].answers, runs[0].nfe) == (runs[1].answers, runs[1].nfe)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "block", "sub_block", "trim", "boundary"])
@pytest.mark.parametrize("policy", POLICIES[:2] + POLICIES[4:])
def test_it_goes_with_every_policy_and_cache_alone_and_in_a_crowd(policy: str, cache: str) -> None:
    for name in ("full-shift", "block-causal", "context-causal", "recurrent"):
        traits = t.TRAITS[name]
        if not t.serves(catalog.parse("cache", cache), traits):
            continue
        chosen = t.strategy("pipelined(3, window=3, add=0.3)", policy, cache)
        together = t.decode(t.FakeDenoiser(traits), t.crowd(chosen)).answers
        for one in t.crowd(chosen):
            assert t.decode(t.FakeDenoiser(traits), [one]).answers[one.id] == together[one.id]


def test_exact_caches_change_no_token_under_guidance() -> None:
    for name in ("block-causal", "context-causal", "block-causal-off-grid"):
        runs = [
            t.decode(
                t.FakeDenoiser(t.TRAITS[name]),
                t.crowd(t.strategy("pipelined(4, window=3)", "pipelined_threshold(0.6)", c, ClassifierFree(1.5)), 18),
            )
            for c in ("none", "block", "trim(1)", "sub_block(refresh=1)")
        ]
        assert all(r.answers == runs[0].answers for r in runs)


def test_events_tell_what_is_open_whenever_that_changes() -> None:
    one = t.request([1], 12, t.strategy("pipelined(3, window=2, add=0.3)", "pipelined_threshold(1.0)"))
    told, open_now, most = [], (0, 0), 0
    for event in t.decode(t.FakeDenoiser(t.TRAITS["full"]), [one]).events:
        if isinstance(event, Opened):
            told.append((event.block, event.start, event.stop))
            open_now = (event.start, event.stop)
        elif isinstance(event, Stepped):
            assert all(open_now[0] <= p < open_now[1] for p, *_ in event.writes)
            most = max(most, len(event.writes))
        elif isinstance(event, BlockDone):
            assert event.steps >= 1
    assert told[:2] == [(0, 1, 4), (0, 1, 7)] and len(set(told)) == len(told)


def test_more_blocks_at_once_take_fewer_forwards() -> None:
    def forwards(window: int) -> int:
        chosen = t.strategy(f"pipelined(4, window={window}, add=0.0)", "pipelined_threshold(0.5, full=0.0)")
        return sum(t.decode(t.FakeDenoiser(t.TRAITS["full"]), t.crowd(chosen, 24)).nfe.values())

    assert forwards(4) < forwards(2) < forwards(1)


def test_public_checks() -> None:
    t.check_schedule("pipelined(2, 3, 0.0)", ("full-shift", "block-causal", "recurrent"))
    t.check_policy("pipelined_threshold(0.6)", ("full-shift", "block-causal"))


def test_what_it_refuses() -> None:
    for kind, spec in (("schedule", "pipelined(0)"), ("schedule", "pipelined(window=0)"),
                       ("schedule", "pipelined(add=2)"), ("policy", "pipelined_threshold(full=1.5)")):  # fmt: skip
        with pytest.raises(SpecError):
            catalog.parse(kind, spec)
    with pytest.raises(RequestError, match="denoises the vectors of one block"):
        sequence_of(t.request([1], 4, t.strategy("pipelined(2)", "ddim(steps=3)")), t.TRAITS["recurrent"])
    for spec, words in (("pipelined(3)", "a divisor of 4"), ("pipelined(8)", "at most 4")):
        with pytest.raises(ConfigError, match=words):
            build(DecodeOptions(schedule=spec), t.TRAITS["block-causal"], "fast-dllm-v2", 16)
    assert build(DecodeOptions(schedule="pipelined"), t.TRAITS["block-causal"], "x", 16).schedule == Pipelined(4)
    assert repr(Pipelined(8, 3)) == "pipelined(length=8, window=3)"
    assert catalog.find("schedule", "pipelined").experimental
    assert catalog.find("policy", "pipelined_threshold").experimental
