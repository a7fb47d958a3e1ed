"""One recorded round of the likelihood bound against direct sums."""

from __future__ import annotations

import pytest
import torch

from unmask.core.types import Traits
from unmask.evals.likelihood import log_likelihood, noisy_rows, round_value, strata
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.transformer import Transformer, TransformerConfig

MASK = 31


def model(shift: int = 0) -> TransformerDenoiser:
    backbone = Transformer(TransformerConfig(32, 16, 2, 2, 1, 8, 24)).eval()
    backbone.init_weights(3, 0.3)
    return TransformerDenoiser(backbone, Traits(MASK, shift=shift))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cfg", [0.0, 0.8])
def test_a_round_is_cross_entropy_over_the_ratio(shift: int, cfg: float) -> None:
    found, prompt, answer = model(shift), torch.tensor([4, 5]), torch.tensor([6, 7, 8])
    noisy = torch.tensor([[4, 5, MASK, 7, MASK], [4, 5, MASK, MASK, MASK]])
    ratio = torch.tensor([2 / 3, 1.0])
    total = 0.0
    with torch.no_grad():
        for row, p in zip(noisy, ratio.tolist(), strict=True):
            logits = found.model.logits(found.model(row[None]))[0]
            if cfg:
                blind = row.clone()
                blind[:2] = MASK
                un = found.model.logits(found.model(blind[None]))[0]
                logits = un + (cfg + 1) * (logits - un)
            for i in range(2, 5):
                if row[i] == MASK:
                    total += -float(logits[i - shift].log_softmax(-1)[answer[i - 2]]) / p
    value = round_value(found, noisy, torch.cat((prompt, answer)), ratio, 2, cfg)
    assert value == pytest.approx(-total / 2, rel=1e-5)


def test_a_single_token_answer_is_its_log_probability() -> None:
    found = model()
    value = log_likelihood(found, [4, 5], [6])
    with torch.no_grad():
        logits = found.model.logits(found.model(torch.tensor([[4, 5, MASK]])))[0, 2]
    assert value.value == pytest.approx(float(logits.log_softmax(-1)[6]), rel=1e-5)
    assert value.error == 0.0


def test_masked_counts_are_the_strata_and_the_prompt_is_never_masked() -> None:
    prompt, answer = torch.tensor([4, 5]), torch.arange(6, 13)
    noisy, ratio = noisy_rows(prompt, answer, 14, MASK, torch.Generator().manual_seed(1))
    counts = (noisy == MASK).sum(1)
    assert torch.equal(noisy[:, :2], prompt.expand(14, -1))
    assert torch.allclose(ratio, counts / 7)
    assert counts.tolist() in [strata(first, 14, 7).tolist() for first in range(1, 8)]
    assert set(counts.tolist()) == {1, 2, 3, 4, 5, 6, 7}
    kept = noisy[:, 2:] != MASK
    assert torch.equal(noisy[:, 2:][kept], answer.expand(14, -1)[kept])
