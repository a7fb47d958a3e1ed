"""`threshold(order="left_to_right")`: no commit behind an open position, the first always, and its two limits."""

from __future__ import annotations

import pytest
import torch

from unmask import testing as t
from unmask.core import catalog
from unmask.core.errors import SpecError
from unmask.core.events import Stepped
from unmask.decode.threshold import leading

SPEC = 'threshold({}, order="left_to_right")'


def decoded(policy: str, kind: str = "block-causal") -> t.Outcome:
    return t.decode(t.FakeDenoiser(t.TRAITS[kind]), t.crowd(t.strategy("blocks(4)", policy)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.95, 0.9, 0.2, 0.99], [0, 1]), ([0.1, 0.99, 0.99], [0]), ([0.9], [0]), ([0.95, 0.95], [0, 1]), ([], [])],
)
def test_the_leading_run_is_taken(values: list[float], expected: list[int]) -> None:
    assert leading(torch.tensor(values, dtype=torch.float64), 0.9).tolist() == expected


@pytest.mark.parametrize("kind", sorted(t.TRAITS))
def test_a_threshold_that_nothing_reaches_is_left_to_right(kind: str) -> None:
    assert decoded(SPEC.format(1.0), kind).answers == decoded("left_to_right", kind).answers


def test_commits_never_leave_a_hole_behind() -> None:
    ours = decoded(SPEC.format(0.35))
    last: dict[str, int] = {}
    wide = 0
    for event in ours.events:
        if isinstance(event, Stepped) and event.writes:
            places = [p for p, *_ in event.writes]
            assert min(places) > last.get(event.id, -1)
            last[event.id], wide = max(places), max(wide, len(places))
    assert wide > 1
    assert sum(ours.nfe.values()) < sum(decoded("left_to_right").nfe.values())


def test_the_order_is_checked_and_printed() -> None:
    assert "left_to_right" in repr(catalog.parse("policy", SPEC.format(0.9)))
    with pytest.raises(SpecError, match="order"):
        catalog.parse("policy", 'threshold(0.9, order="backwards")')
