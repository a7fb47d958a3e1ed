"""Passes that ask for no row, and shares that run out: published policies outside the layout they were made for."""

import pytest
import torch

from unmask import testing as t
from unmask.ops import attention


def test_no_rows_are_no_work():
    q, kv = torch.zeros(0, 4, 8), torch.zeros(2, 6, 8)
    assert attention.rows(q, kv, kv, ()).shape == (0, 4, 8)


@pytest.mark.parametrize("policy", ["dream_carry(steps=4)", "dream_carry(steps=12)", "dream_block"])
@pytest.mark.parametrize("schedule", ["blocks(4)", "blocks(3)", "growing(3)", "growing(1)"])
@pytest.mark.parametrize("family", ["full", "block-causal"])
def test_every_answer_ends(policy, schedule, family):
    found = t.decode(t.FakeDenoiser(t.TRAITS[family]), t.crowd(t.strategy(schedule, policy, "none")))
    assert len(found.answers) == 3


def test_a_share_that_ran_out_still_settles_the_next_block():
    strategy = t.strategy("blocks(8)", "dream_carry(steps=4, threshold=1.0)", "none")
    found = t.decode(t.FakeDenoiser(t.TRAITS["full"]), [t.request((3, 4, 5), 12, strategy)])
    assert -1 not in found.answers["a"]
