"""Profiles against short restatements of the published samplers, random streams included, and their golden vectors."""

from __future__ import annotations

import copy

import pytest
import torch
from models_for_tests import MASK, denoiser, dense_logits, prompt
from torch import Tensor

from unmask.core.events import Failed, fold
from unmask.core.types import Request
from unmask.decode import dream, factor, select
from unmask.engine.engine import Engine
from unmask.engine.options import DecodeOptions
from unmask.engine.profiles import build
from unmask.evals.likelihood import strata
from unmask.models.denoiser import TransformerDenoiser


def quiet() -> TransformerDenoiser:
    """A model that does not propose the mask id: a random one does, and these profiles do not exclude it."""
    model = copy.deepcopy(denoiser("llada", 6))
    model.model.head_weight.data[MASK] = 0.0
    return model


def published_llada(
    model: TransformerDenoiser, rows: list[list[int]], length: int, steps: int, block: int, temperature: float,
    cfg: float, remasking: str, seed: int,
) -> tuple[Tensor, int]:  # fmt: skip
    """LLaDA generate.py in our own words (llada_dream.md, C.2 to C.4): whole [B, T, V] logits, one global stream."""
    logits_of, draw = dense_logits(model), torch.Generator().manual_seed(seed)
    x = torch.cat([torch.tensor(rows), torch.full((len(rows), length), MASK)], 1)
    given, start, calls = x != MASK, len(rows[0]), 0
    per_block = steps // (length // block)
    for a in range(start, start + length, block):
        open_count = (x[:, a : a + block] == MASK).sum(1)
        for i in range(per_block):
            logits, calls = logits_of(x), calls + 1
            if cfg > 0:
                blind = logits_of(torch.where(given, MASK, x))
                logits = blind + (cfg + 1) * (logits - blind)
            noisy = logits
            if temperature > 0:
                u = torch.rand(logits.shape, dtype=torch.float64, generator=draw)
                noisy = logits.double().exp() / (-u.log()) ** temperature
            best = noisy.argmax(-1)
            if remasking == "random":
                score = torch.rand(x.shape, generator=draw)
            else:
                score = logits.softmax(-1).gather(-1, best[..., None])[..., 0]
            score = torch.where(x == MASK, score, -torch.inf)
            score[:, a + block :] = -torch.inf
            for row, count in enumerate(open_count.tolist()):
                k = count // per_block + (i < count % per_block)
                take = score[row].topk(k).indices
                x[row, take] = best[row, take]
    return x, calls


def ours(
    model: TransformerDenoiser, rows: list[list[int]], length: int, seed: int, **options: object
) -> tuple[Tensor, int]:
    strategy = build(DecodeOptions(profile="llada", gen_length=length, **options), model.traits, "llada", length)  # type: ignore[arg-type]
    engine = Engine(model, 2 * len(rows))
    for i, row in enumerate(rows):
        canvas = torch.tensor(row + [MASK] * length)
        engine.submit(Request(str(i), canvas, canvas != MASK, len(row), strategy, seed=seed, cohort="rows"))
    events = list(engine.run())
    assert not [e for e in events if isinstance(e, Failed)]
    ids = [[MASK if t < 0 else t for t in fold(events)[str(i)].ids] for i in range(len(rows))]
    return torch.tensor(ids), engine.stats.model_calls


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("cfg", [0.0, 0.8])
@pytest.mark.parametrize(("length", "block", "steps"), [(12, 12, 12), (12, 4, 6), (12, 6, 16)])
@pytest.mark.parametrize("batch", [1, 3])
def test_profile_llada_draws_the_published_stream(
    remasking: str, temperature: float, cfg: float, length: int, block: int, steps: int, batch: int
) -> None:
    model = quiet()
    rows = [prompt(10 * batch + i, 5) for i in range(batch)]
    right, calls = published_llada(model, rows, length, steps, block, temperature, cfg, remasking, 11)
    found, own_calls = ours(
        model, rows, length, 11, steps=steps, block_length=block, temperature=temperature, remasking=remasking,
        **({"cfg_scale": cfg} if cfg else {}),
    )  # fmt: skip
    assert torch.equal(found, right)
    assert own_calls == calls


def test_profile_llada_treats_a_mask_id_in_the_prompt_as_the_published_code_does() -> None:
    """It competes for the quota, stays eligible in every block, and may leave answer positions unfilled."""
    model, row = quiet(), [4, 9, MASK, 7, 1]
    right, calls = published_llada(model, [row], 12, 6, 4, 0.0, 0.0, "low_confidence", 0)
    found, own_calls = ours(model, [row], 12, 0, steps=6, block_length=4)
    assert torch.equal(found, right)
    assert own_calls == calls
    assert int((right[0, 5:] == MASK).sum()) == 1


# ---- golden vectors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holes", "passes", "expected"),
    [
        (32, 5, [7, 7, 6, 6, 6]), (3, 8, [1, 1, 1, 0, 0, 0, 0, 0]), (32, 32, [1] * 32), (5, 1, [5]), (0, 3, [0, 0, 0]),
    ],
)  # fmt: skip
def test_quotas(holes: int, passes: int, expected: list[int]) -> None:
    assert select.quotas(holes, passes) == expected


def _counts(holes: int, steps: int, first: int = 0, settled: int = 0) -> list[int]:
    left, out = holes - settled, []
    for i in range(first, steps):
        k = dream.transfer_count(left, i, steps, 1e-3)
        out.append(k)
        left -= k
    return out


@pytest.mark.parametrize(
    ("holes", "steps", "expected"),
    [
        (256, 256, [0] + [1] * 254 + [2]), (512, 512, [0] + [1] * 510 + [2]), (1024, 1024, [0, 0] + [1] * 1021 + [3]),
        (256, 128, [1] + [2] * 126 + [3]), (256, 64, [3] + [4] * 62 + [5]), (256, 8, [31] + [32] * 6 + [33]),
    ],
)  # fmt: skip
def test_dream_schedule(holes: int, steps: int, expected: list[int]) -> None:
    assert _counts(holes, steps) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(32, [0] + [1] * 29 + [2]), (16, [2] * 14 + [3]), (8, [4, 4, 4, 4, 4, 5, 6]), (4, [10, 10, 11]), (2, [31])],
)
def test_dream_block_schedule_after_the_entry_pass(steps: int, expected: list[int]) -> None:
    assert _counts(32, steps, first=1, settled=1) == expected


@pytest.mark.parametrize(
    ("confidences", "published", "expected"),
    [
        ([0.99, 0.9, 0.9, 0.9], True, 4), ([0.99, 0.6, 0.5, 0.1], True, 1), ([0.9], True, 1), ([0.9, 0.1], True, 2),
        ([0.99, 0.99, 0.99, 0.1], True, 4), ([0.8, 0.7, 0.3], True, 3), ([0.99, 0.99, 0.99, 0.1], False, 3),
        ([0.9, 0.1], False, 1), ([0.8, 0.7, 0.3], False, 2), ([0.1, 0.1], False, 1), ([0.9, 0.75, 0.75], True, 3),
        ([0.9, 0.75, 0.75, 0.5], False, 2), ([0.9, 0.75, 0.75, 0.5, 0.5], True, 3),
    ],
)  # fmt: skip
def test_factor(confidences: list[float], published: bool, expected: int) -> None:
    assert factor.count(torch.tensor(confidences, dtype=torch.float64), 1.0, published) == expected


@pytest.mark.parametrize(
    ("first", "rows", "length", "expected"),
    [
        (1, 8, 3, [1, 1, 2, 2, 2, 3, 3, 1]),
        (5, 16, 7, [5, 5, 6, 6, 7, 7, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5]),
        (3, 8, 5, [3, 4, 4, 5, 1, 1, 2, 2]),
    ],
)
def test_likelihood_strata(first: int, rows: int, length: int, expected: list[int]) -> None:
    assert strata(first, rows, length).tolist() == expected
