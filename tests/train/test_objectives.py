"""The losses against the published formulas, written out row by row without any of our training code."""

import pytest
import torch
from torch.nn import functional as F

from unmask.core.errors import ConfigError
from unmask.noise.masked import MaskedNoise
from unmask.train.batch import Batch, Row, collate
from unmask.train.forward import Net
from unmask.train.objectives.llada import LladaPretrain, LladaSft

NOISE = MaskedNoise(mask_id=49)
ROWS = [
    Row((5, 6, 7, 1, 2, 0), 3, tail=0),
    Row((5, 6, 1, 2, 3, 4, 0, 0, 0, 0), 2, tail=3),
    Row((9, 1, 0, 0, 0), 1, tail=2),
]


def rows_of_the_view(batch, noise, scored, seed, skip_cut=False):
    rng = torch.Generator().manual_seed(seed)
    if skip_cut:
        torch.rand(1, generator=rng)
    return noise.corrupt(batch.ids, ~scored, rng)[0]


def row_losses(model, batch, view, i):
    n = int(batch.real[i].sum())
    logits = model.logits(model(view.ids[i : i + 1, :n]))[0]
    return F.cross_entropy(logits, batch.ids[i, :n], reduction="none")


def test_sft_is_the_published_formula(tiny_model):
    batch = collate(ROWS, 0)
    view = rows_of_the_view(batch, NOISE, batch.scored, 1)
    want = 0.0
    for i in range(3):
        ce, n = row_losses(tiny_model, batch, view, i), int(batch.real[i].sum())
        p = (1 - 1e-3) * view.t[i] + 1e-3
        answer_len = n - ROWS[i_of(batch, i)].prompt
        want += (ce[view.masked[i, :n]] / (p * answer_len)).sum() / 3
    got = LladaSft(NOISE)(Net(tiny_model), batch, torch.Generator().manual_seed(1)).total
    assert torch.allclose(got, want, atol=1e-5)


def i_of(batch, i):
    """Collating sorts by length; finds the row again."""
    n = int(batch.real[i].sum())
    return next(k for k, r in enumerate(ROWS) if len(r.ids) == n)


def test_prompts_are_never_masked(tiny_model):
    batch = collate(ROWS, 0)
    for seed in range(20):
        view = rows_of_the_view(batch, MaskedNoise(mask_id=49, t_min=0.99), batch.scored, seed)
        assert not (view.masked & ~batch.scored).any()
        assert torch.equal(view.ids[~batch.scored], batch.ids[~batch.scored])


def test_pretraining_is_the_published_formula(tiny_model):
    batch = collate([Row(tuple(range(1, 13)), 0), Row(tuple(range(13, 25)), 0)], 0)
    view = rows_of_the_view(batch, NOISE, batch.scored, 4, skip_cut=True)
    p = (1 - 1e-3) * view.t + 1e-3
    want = sum((row_losses(tiny_model, batch, view, i)[view.masked[i]] / p[i]).sum() for i in range(2)) / (2 * 12)
    got = LladaPretrain(NOISE)(Net(tiny_model), batch, torch.Generator().manual_seed(4)).total
    assert torch.allclose(got, want, atol=1e-5)


def test_random_lengths_come_once_in_a_hundred():
    batch, rng = collate([Row(tuple(range(1, 41)), 0)], 0), torch.Generator().manual_seed(0)
    lengths = [LladaPretrain(NOISE)._cut(batch, rng).ids.shape[1] for _ in range(5000)]
    cut = [n for n in lengths if n != 40]
    assert 25 < len(cut) < 80
    always = LladaPretrain(NOISE, random_length=1.0)
    seen = {always._cut(batch, rng).ids.shape[1] for _ in range(1000)}
    assert seen == set(range(1, 41))


def test_eos_padding_out_of_the_loss_is_off_the_canvas(tiny_model):
    """The loss is that of the same rows without any padding."""
    objective = LladaSft(MaskedNoise(mask_id=49, t_min=0.99), eos_padding=False)
    padded = collate(ROWS, 0)
    short = collate([Row(r.ids[: len(r.ids) - r.tail], r.prompt) for r in ROWS], 0)
    bare = padded.without_tail()
    assert sorted(bare.real.sum(1).tolist()) == sorted(short.real.sum(1).tolist())
    assert not (objective.scored(padded) & padded.tail).any()
    noisy = torch.where(padded.tail, 7, padded.ids)  # whatever stands there has no influence
    losses = [
        objective(
            Net(tiny_model),
            Batch(ids, padded.real, padded.scored, padded.tail, padded.hidden),
            torch.Generator().manual_seed(0),
        )
        for ids in (padded.ids, noisy)
    ]
    assert torch.equal(losses[0].total, losses[1].total)


def test_our_options_are_off_by_default():
    objective = LladaSft(NOISE)
    assert (objective.eos_padding, objective.eos_weight, objective.weight_clip, objective.normalise) == (
        True, 1.0, None, "row",
    )  # fmt: skip


def test_weight_rules():
    batch = collate(ROWS, 0)
    weight = torch.full(batch.ids.shape, 100.0)
    objective = LladaSft(NOISE, eos_weight=0.05, weight_clip=8.0, normalise="batch")
    weights = objective._weights(batch, batch.scored, weight)
    answer = int((batch.scored & ~batch.tail).sum())
    assert torch.allclose(weights[batch.scored & ~batch.tail], torch.tensor(8.0 / answer))
    assert torch.allclose(weights[batch.tail], torch.tensor(8.0 * 0.05 / answer))


@pytest.mark.parametrize("bad", [{"eos_weight": 2.0}, {"weight_clip": 0.5}])
def test_bad_options_are_refused(bad):
    with pytest.raises(ConfigError):
        LladaSft(NOISE, **bad)


def test_the_estimate_is_unbiased():
    """With a model that is always uniform, CE is log V everywhere, so the loss averages log V whatever p is."""
    batch = collate([Row(tuple(range(1, 33)), 0)] * 8, 0)

    class Uniform:
        def hidden(self, ids, real, at):
            return at.sum()

        def losses(self, hidden, target):
            return torch.full((int(hidden),), 3.0)

    rng = torch.Generator().manual_seed(0)
    got = [LladaPretrain(NOISE, 0.0)(Uniform(), batch, rng).total.item() for _ in range(400)]
    assert abs(sum(got) / 400 - 3.0) < 0.1
