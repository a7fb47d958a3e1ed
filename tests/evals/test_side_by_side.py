"""Paired differences against known values, and parent and child on the same prompts."""

import math

import pytest

from unmask.core.errors import ConfigError
from unmask.evals.intervals import paired_difference
from unmask.evals.side_by_side import Question, compare, table
from unmask.evals.tasks.synthetic import held_out, task_named
from unmask.pipeline import load


def test_paired_difference_by_hand():
    first = [True] * 60 + [False] * 40
    second = [True] * 55 + [False] * 5 + [True] * 10 + [False] * 30
    mean, low, high = paired_difference(first, second)
    assert mean == pytest.approx(0.05)
    variance = (15 - 100 * 0.05**2) / 99  # fifteen items differ
    half = 1.6448536 * math.sqrt(variance / 100) + 0.005
    assert (low, high) == (pytest.approx(mean - half), pytest.approx(mean + half))


def test_pairing_makes_the_bound_tighter():
    right = [i % 3 != 0 for i in range(300)]
    shifted = right[1:] + right[:1]
    assert paired_difference(right, right)[1] == pytest.approx(-0.5 / 300)
    assert paired_difference(right, shifted)[1] < -0.05


def test_no_bound_leaves_what_a_difference_can_be():
    assert paired_difference([True] * 8, [False] * 8) == (-1.0, -1.0, pytest.approx(-15 / 16))


def test_the_bound_holds_as_often_as_it_says():
    import random

    rng, misses = random.Random(0), 0
    for _ in range(400):
        first = [rng.random() < 0.8 for _ in range(200)]
        second = [(a and rng.random() < 0.9) or (not a and rng.random() < 0.1) for a in first]
        misses += paired_difference(first, second)[1] > (0.8 * 0.9 + 0.2 * 0.1) - 0.8
    assert misses / 400 < 0.08


@pytest.mark.parametrize("lists", [([], []), ([True], [True, False])])
def test_unpaired_lists_are_refused(lists):
    with pytest.raises(ConfigError, match="paired answers"):
        paired_difference(*lists)


def test_sides_hold_quality_and_speed():
    model, check = load(slots=8), task_named("copy").check
    questions = [Question(i.prompt, i.answer, lambda text, i=i: check(i, text)) for i in held_out("copy", 6)]
    parent, child = compare(model, model, questions, 48, {"the same": {}})
    assert parent.n == child.n == 6
    assert child.same == 1.0
    assert (child.accuracy, child.tokens, child.forwards) == (parent.accuracy, parent.tokens, parent.forwards)
    assert child.difference == 0.0
    assert parent.difference is None
    assert child.tokens_per_forward == child.tokens / child.forwards > 1
    lines = table([parent, child]).splitlines()
    assert len(lines) == 4
    assert "+0.0 points" in lines[3]


def test_no_questions_is_refused():
    model = load()
    with pytest.raises(ConfigError, match="side by side"):
        compare(model, model, [])
