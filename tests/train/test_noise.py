import pytest
import torch

from unmask.core.errors import ConfigError
from unmask.noise.masked import MaskedNoise

IDS = torch.arange(4 * 5000).reshape(4, 5000) % 7
NOWHERE = torch.zeros_like(IDS, dtype=torch.bool)


def test_published_formula():
    noise = MaskedNoise(mask_id=9)
    view = noise.corrupt(IDS, NOWHERE, torch.Generator().manual_seed(3))[0]
    t = torch.rand(4, generator=torch.Generator().manual_seed(3))
    p = (1 - 1e-3) * t + 1e-3
    assert torch.equal(view.t, t)
    assert torch.allclose(view.weight, (1 / p)[:, None].expand(IDS.shape))
    assert torch.allclose(view.masked.float().mean(1), p, atol=0.03)
    assert torch.equal(view.ids, torch.where(view.masked, 9, IDS))
    assert torch.equal(view.target, IDS)


def test_kept_places_are_never_masked():
    keep = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    view = MaskedNoise(mask_id=9, t_min=0.9).corrupt(IDS, keep, torch.Generator().manual_seed(1))[0]
    assert not (view.masked & keep).any()
    assert view.masked[~keep].float().mean() > 0.85


def test_stratified_levels_are_even():
    t = MaskedNoise(stratified=True).levels(100, torch.Generator().manual_seed(0)).sort().values
    assert torch.allclose(t.diff(), torch.full((99,), 0.01), atol=1e-6)


def test_same_generator_same_noise():
    draws = [MaskedNoise(mask_id=9).corrupt(IDS, NOWHERE, torch.Generator().manual_seed(5))[0].ids for _ in range(2)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("bad", [{"eps": -0.1}, {"eps": 1.0}, {"t_min": 1.0}, {"eps": 0.0}])
def test_bad_levels_are_refused(bad):
    with pytest.raises(ConfigError):
        MaskedNoise(**bad)


def test_a_cut_masks_exactly_what_is_behind_it():
    ids, keep = torch.arange(20).reshape(2, 10), torch.zeros(2, 10, dtype=torch.bool)
    keep[:, :2] = True
    hidden = torch.zeros_like(keep)
    hidden[1, 6:] = True
    plain = MaskedNoise(mask_id=99).corrupt(ids, keep, torch.Generator().manual_seed(0))[0]
    view = MaskedNoise(mask_id=99).corrupt(ids, keep, torch.Generator().manual_seed(0), hidden)[0]
    assert view.masked[1].tolist() == [False] * 6 + [True] * 4
    assert torch.equal(view.masked[0], plain.masked[0])
    assert torch.equal(view.weight[0], plain.weight[0])
    assert torch.allclose(view.weight[1], torch.tensor(8 / 4))
