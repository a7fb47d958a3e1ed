"""`slow_fast`: phases, stretches and commits against a plain restatement; where it equals threshold; refusals."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import pstdev
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unmask import testing as t
from unmask.core import catalog
from unmask.core.errors import SpecError
from unmask.decode.slow_fast import Cycle, SlowFast

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
Step = tuple[list[int], list[float], list[int]]
"""Wanted positions, their confidences, the positions that were committed."""


@dataclass(frozen=True)
class Spy:
    """A policy whose steps are written down."""

    inner: SlowFast
    steps: list[Step] = field(default_factory=list)
    scores = ()

    def init(self, seq: Any) -> Any:
        return self.inner.init(seq)

    def wants(self, seq: Any, open: Any, state: Any) -> Any:
        return self.inner.wants(seq, open, state)

    def decide(self, seq: Any, want: Any, candidates: Any, state: Any, noise: Any) -> Any:
        commit, after = self.inner.decide(seq, want, candidates, state, noise)
        self.steps.append((want.tolist(), candidates.prob.tolist(), want[commit.slots].tolist()))
        return commit, after


def watch(policy: SlowFast, length: int, schedule: str, seed: int) -> list[Step]:
    spy = Spy(policy)
    t.decode(t.FakeDenoiser(t.TRAITS["full"], seed), [t.request([1, 5], length, t.strategy(schedule, spy))])
    return spy.steps


def restated(p: SlowFast, steps: list[Step], blocks: list[range]) -> list[tuple[list[int], list[int]]]:
    """What should be wanted and committed at each step, from the confidences alone."""
    out: list[tuple[list[int], list[int]]] = []
    step = 0
    for block in blocks:
        holes = list(block)
        while holes:
            ends: list[int] = []
            while holes and len(ends) < p.explore:  # slow
                prob = dict(zip(steps[step][0], steps[step][1], strict=True))
                sure = [q for q in holes if prob[q] >= p.reach]
                ends.append((sure[-1] if sure else holes[0]) + 1)
                taken = max(holes, key=lambda q: (prob[q], -q))
                out.append((list(holes), [taken]))
                holes.remove(taken)
                step += 1
                last = ends[-p.window :]
                if len(last) == p.window and pstdev(last) < p.spread:
                    end = last[-1]
                    break
                end = int(sum(last) / len(last))
            if holes and len(ends) < p.explore and not (len(last) == p.window and pstdev(last) < p.spread):
                continue
            while stretch := [q for q in holes if q < end]:  # fast
                prob = dict(zip(steps[step][0], steps[step][1], strict=True))
                best = max(stretch, key=lambda q: (prob[q], -q))
                taken_now = [q for q in stretch if prob[q] >= p.threshold or q == best]
                out.append((stretch, taken_now))
                holes = [q for q in holes if q not in taken_now]
                step += 1
    return out


@QUICK
@given(
    threshold=st.sampled_from([0.2, 0.4, 0.6, 0.9]),
    reach=st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 1.0]),
    explore=st.integers(1, 6),
    window=st.integers(1, 3),
    spread=st.sampled_from([0.1, 1.0, 3.0]),
    length=st.integers(1, 20),
    block=st.sampled_from([4, 7, 20]),
    seed=st.integers(0, 5),
)
def test_it_follows_the_two_phases(
    threshold: float, reach: float, explore: int, window: int, spread: float, length: int, block: int, seed: int
) -> None:
    policy = SlowFast(threshold, reach, explore, min(window, explore), spread)
    steps = watch(policy, length, f"blocks({block})", seed)
    blocks = [range(2 + a, 2 + min(a + block, length)) for a in range(0, length, block)]
    assert [(want, sorted(taken)) for want, _, taken in steps] == restated(policy, steps, blocks)


@pytest.mark.parametrize("kind", sorted(t.TRAITS))
def test_a_stretch_that_is_the_block_and_a_threshold_out_of_reach_are_one_token_per_step(kind: str) -> None:
    fake = t.FakeDenoiser(t.TRAITS[kind])
    ours = t.decode(fake, t.crowd(t.strategy("blocks(4)", "slow_fast(1.0, reach=0.0)")))
    right = t.decode(fake, t.crowd(t.strategy("blocks(4)", "threshold(1.0)")))
    assert (ours.answers, ours.nfe) == (right.answers, right.nfe)


def test_one_cautious_step_then_threshold_on_the_whole_block() -> None:
    """reach 0 and a window of 1: each block costs one token alone, then what threshold takes."""
    found = watch(SlowFast(0.0, reach=0.0, explore=1, window=1), 12, "blocks(4)", 0)
    assert [len(taken) for _, _, taken in found] == [1, 3] * 3


def test_ends_agree_strictly_within_the_spread_or_their_mean_is_taken_at_last() -> None:
    policy = SlowFast(explore=3)
    assert policy._after(2, (5, 7)) == Cycle(0, 2, (5, 7))
    assert policy._after(2, (5, 6)) == Cycle(end=6)
    assert policy._after(2, (9, 4, 9)) == Cycle(end=6)


def test_public_check() -> None:
    t.check_policy("slow_fast(0.5, reach=0.2, explore=3)", ("full-shift", "block-causal"))


def test_what_it_refuses() -> None:
    for spec, words in (("slow_fast(window=3, explore=2)", "explore = 2"), ("slow_fast(1.2)", "<= 1"),
                        ("slow_fast(spread=0)", "> 0"), ("slow_fast(explore=0)", ">= 1")):  # fmt: skip
        with pytest.raises(SpecError, match=words):
            catalog.parse("policy", spec)
    assert repr(SlowFast(0.8, explore=4)) == "slow_fast(threshold=0.8, explore=4)"
    assert catalog.find("policy", "slow_fast").experimental
