"""`entropy_bound`: the rule of EB-Sampler against a plain restatement, its two limits, and what it refuses."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import testing as t
from unmask.core import catalog
from unmask.core.errors import SpecError
from unmask.core.events import Stepped
from unmask.core.types import Candidates
from unmask.decode.entropy_bound import EntropyBound, within
from unmask.engine.noise import PositionNoise

QUICK = settings(max_examples=200, deadline=None, derandomize=True)
# multiples of 1/64: sums are exact in binary, so that no rounding decides
ENTROPY = st.integers(0, 400).map(lambda n: n / 64)


def largest_set(entropies: list[float], gamma: float) -> set[int]:
    """As the paper says it: the largest U, in the order of the entropies, with sum over U - max over U <= gamma."""
    order = sorted(range(len(entropies)), key=lambda i: (entropies[i], i))
    best: set[int] = set()
    for n in range(1, len(order) + 1):
        chosen = [entropies[i] for i in order[:n]]
        if sum(chosen) - max(chosen) <= gamma:
            best = set(order[:n])
    return best


@QUICK
@given(st.lists(ENTROPY, min_size=1, max_size=24), ENTROPY)
def test_it_commits_the_largest_set_within_the_budget(entropies: list[float], gamma: float) -> None:
    one = t.request([1], len(entropies), t.strategy("whole"))
    seq = t.Sequence(one, t.TRAITS["full"], one.canvas, one.fixed, one.fixed.clone())
    token = torch.arange(len(entropies)) % 20
    candidates = Candidates(token, torch.linspace(0, 1, len(entropies)), entropy=-torch.tensor(entropies))
    want = seq.holes(0, seq.length)
    found, _ = EntropyBound(gamma).decide(seq, want, candidates, None, PositionNoise(0))
    assert set(found.slots.tolist()) == largest_set(entropies, gamma)
    assert torch.equal(found.tokens, token[found.slots])
    assert torch.equal(found.confidence, candidates.prob[found.slots])


@QUICK
@given(st.lists(ENTROPY, max_size=24).map(sorted), ENTROPY, ENTROPY)
def test_a_larger_budget_never_takes_fewer(entropies: list[float], gamma: float, more: float) -> None:
    values = torch.tensor(entropies)
    counts = [within(values, g) for g in (gamma, gamma + more, math.inf)]
    assert all(a <= b for a, b in pairwise(counts)) and counts[0] >= 1
    assert counts[-1] == max(1, len(entropies))


def test_entropies_a_hair_below_zero_do_not_widen_the_budget() -> None:
    assert within(torch.tensor([-1e-3, -1e-3, 0.5, 0.5]), 0.499) == 3


@pytest.mark.parametrize("kind", sorted(t.TRAITS))
def test_no_budget_is_one_position_per_step_by_entropy(kind: str) -> None:
    fake = t.FakeDenoiser(t.TRAITS[kind])
    ours = t.decode(fake, t.crowd(t.strategy("blocks(4)", "entropy_bound(0)")))
    right = t.decode(fake, t.crowd(t.strategy("blocks(4)", "entropy(steps=10000)")))
    assert (ours.answers, ours.nfe) == (right.answers, right.nfe)


def test_a_boundless_budget_is_one_step_per_block() -> None:
    fake = t.FakeDenoiser(t.TRAITS["full"])
    found = t.decode(fake, t.crowd(t.strategy("blocks(4)", "entropy_bound(1e9)")))
    right = t.decode(fake, t.crowd(t.strategy("blocks(4)", "threshold(0.0)")))
    assert (found.answers, found.nfe) == (right.answers, right.nfe)
    wide = max(len(e.writes) for e in found.events if isinstance(e, Stepped))
    assert wide == 4


def test_public_check() -> None:
    t.check_policy("entropy_bound(0.8)", ("full-shift", "block-causal"))


def test_what_it_refuses() -> None:
    for spec in ("entropy_bound(-0.1)", "entropy_bound('low')", "entropy_bound(gama=1)"):
        with pytest.raises(SpecError):
            catalog.parse("policy", spec)
    assert repr(EntropyBound(0.35)) == "entropy_bound(gamma=0.35)"
    assert catalog.find("policy", "entropy_bound").experimental
