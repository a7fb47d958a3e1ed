"""Candidates against straightforward torch: filters, confidences, guidance, suppressed and demoted ids, chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask.core.types import Head, Sampling
from unmask.ops import score as module
from unmask.ops.score import draw, score, score_logits, shape

ROWS, WIDTH, VOCAB, MASK = 9, 12, 30, 29


def material(seed: int = 0) -> tuple[Tensor, Head, Tensor]:
    """hidden [n, C], the head, and the logits that it gives."""
    gen = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(ROWS, WIDTH, generator=gen), torch.randn(VOCAB, WIDTH, generator=gen)
    return hidden, Head(weight, 0.7), (hidden @ weight.T) * 0.7


def without_mask(logits: Tensor) -> Tensor:
    out = logits.clone()
    out[:, MASK] = -torch.inf
    return out


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Token by token: kept while the probability of the better ones does not exceed top_p."""
    out = torch.full_like(logits, torch.finfo(logits.dtype).min)
    for i, row in enumerate(logits):
        total = 0.0
        for j in row.argsort(descending=True, stable=True).tolist():
            if total > top_p:
                break
            out[i, j] = row[j]
            total += float(row.softmax(-1)[j])
    return out


def best_k(logits: Tensor, k: int) -> Tensor:
    least = logits.sort(descending=True).values[:, min(k, VOCAB) - 1 : min(k, VOCAB)]
    return logits.masked_fill(logits < least, torch.finfo(logits.dtype).min)


def test_greedy_candidates_are_argmax_and_its_probability() -> None:
    hidden, head, logits = material()
    found = score([hidden], head, Sampling(), mask_id=MASK, wanted=("margin", "entropy"))
    probs = without_mask(logits).softmax(-1)
    best = probs.sort(descending=True).values
    assert torch.equal(found.token, probs.argmax(-1))
    assert torch.allclose(found.prob, best[:, 0], atol=1e-6)
    assert found.margin is not None and torch.allclose(found.margin, best[:, 0] - best[:, 1], atol=1e-6)
    assert found.entropy is not None and torch.allclose(
        found.entropy, (probs * (probs + 1e-10).log()).sum(-1), atol=1e-5
    )
    plain = score([hidden], head, Sampling(), mask_id=MASK)
    assert plain.margin is None and plain.entropy is None
    assert torch.allclose(plain.prob, found.prob, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "float64", "model"])
def test_precision_is_that_of_the_softmax(precision: str) -> None:
    hidden, head, _ = material()
    found = score([hidden.bfloat16()], Head(head.weight.bfloat16()), Sampling(precision=precision))  # type: ignore[arg-type]
    expected = {"float32": torch.float32, "float64": torch.float64, "model": torch.bfloat16}[precision]
    assert found.prob.dtype == expected
    logits = torch.nn.functional.linear(hidden.bfloat16(), head.weight.bfloat16())
    assert torch.allclose(found.prob.float(), logits.to(expected).softmax(-1).amax(-1).float(), atol=1e-6)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.7),
        Sampling(0.7, 0.9),
        Sampling(1.3, None, 5),
        Sampling(0.5, 0.8, 7),
        Sampling(1.0, 1e-6),
        Sampling(1.0, 1.0, 1),
        Sampling(2.0, 0.5, 99),
        Sampling(0.0, 0.9, 4, filtered_confidence=True, precision="model"),
    ],
)
def test_filters_are_temperature_then_nucleus_then_best_k(sampling: Sampling) -> None:
    logits = without_mask(material(2)[2])
    right = logits / sampling.temperature if sampling.temperature else logits
    if sampling.top_p is not None and sampling.top_p < 1:
        right = nucleus(right, sampling.top_p)
    if sampling.top_k is not None:
        right = best_k(right, sampling.top_k)
    assert torch.allclose(shape(logits, sampling).softmax(-1), right.softmax(-1), atol=1e-6)


def test_equal_logits_at_the_edge_of_best_k_are_all_kept() -> None:
    logits = torch.tensor([[3.0, 2.0, 2.0, 1.0]])
    assert (shape(logits, Sampling(1.0, None, 2)).softmax(-1) > 0).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("filtered", [True, False])
def test_confidence_is_of_the_raw_or_of_the_filtered_distribution(filtered: bool) -> None:
    hidden, head, logits = material(3)
    sampling = Sampling(0.6, 0.8, filtered_confidence=filtered)
    u = torch.rand(ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = score([hidden], head, sampling, mask_id=MASK, uniforms=lambda a, b: u[a:b])
    base = without_mask(logits)
    probs = (nucleus(base / 0.6, 0.8) if filtered else base).softmax(-1)
    assert torch.allclose(found.prob, probs.gather(-1, found.token[:, None])[:, 0], atol=1e-6)


def test_a_draw_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0, 0.0]]).repeat(6, 1)
    u = torch.tensor([0.0, 0.33, 0.34, 0.66, 0.67, 1.0], dtype=torch.float64)
    assert draw(logits, logits, Sampling(1.0), u).tolist() == [0, 0, 2, 2, 3, 3]


def test_gumbel_is_the_published_form() -> None:
    logits = material(4)[2]
    u = torch.rand(ROWS, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    token, *_ = score_logits(logits.clone(), Sampling(0.8, gumbel=True, exclude_mask=False), MASK, (), u)
    assert torch.equal(token, (logits.double() - 0.8 * (-(u.log())).log()).argmax(-1))


def test_suppressed_ids_are_gone_before_anything_else() -> None:
    hidden, head, logits = material(5)
    best = int(logits[0].argmax())
    found = score([hidden], head, Sampling(suppress=(best,), exclude_mask=False))
    right = logits.clone()
    right[:, best] = -torch.inf
    assert torch.equal(found.token, right.argmax(-1))
    assert torch.allclose(found.prob, right.softmax(-1).amax(-1), atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "float64", "model"])
def test_demoted_ids_are_chosen_with_confidence_zero_and_the_others_rise(precision: str) -> None:
    hidden, head, logits = material(6)
    best = int(logits[0].argmax())
    sampling = Sampling(demote=(best,), exclude_mask=False, precision=precision)  # type: ignore[arg-type]
    found = score([hidden], head, sampling)
    assert torch.equal(found.token, logits.argmax(-1)), "the token is taken before they are removed"
    right = logits.clone()
    right[:, best] = -torch.inf
    expected = right.softmax(-1).gather(-1, found.token[:, None])[:, 0]
    assert torch.allclose(found.prob.float(), expected, atol=1e-6)
    assert float(found.prob[0]) == 0.0
    assert bool((found.prob >= logits.softmax(-1).amax(-1) - 1e-6)[found.token != best].all())


def test_the_mask_id_leaves_no_mass_behind() -> None:
    hidden, head, logits = material(7)
    head.weight[MASK] *= 9
    u = torch.rand(ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for sampling in (Sampling(), Sampling(5.0), Sampling(5.0, 0.95), Sampling(5.0, None, 3)):
        found = score([hidden], head, sampling, mask_id=MASK, uniforms=lambda a, b: u[a:b])
        assert MASK not in found.token.tolist()
    with_mask = score([hidden], head, Sampling(exclude_mask=False), mask_id=MASK)
    assert MASK in with_mask.token.tolist()
    assert logits.shape == (ROWS, VOCAB)


def test_guidance_mixes_logits_of_the_lanes() -> None:
    hidden, head, logits = material(8)
    other = material(9)[0]
    found = score([hidden, other], head, Sampling(exclude_mask=False), combine=lambda l: l[1] + 1.5 * (l[0] - l[1]))
    blind = (other @ head.weight.T) * 0.7
    mixed = blind + 1.5 * (logits - blind)
    assert torch.equal(found.token, mixed.argmax(-1))
    assert torch.allclose(found.prob, mixed.softmax(-1).amax(-1), atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, 0.9), Sampling(0.9, gumbel=True)])
def test_chunks_change_nothing(chunk: int, sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, _ = material(1)
    gen = torch.Generator().manual_seed(5)
    u = torch.rand(ROWS, *([VOCAB] if sampling.gumbel else []), dtype=torch.float64, generator=gen)

    def run() -> list[Tensor | None]:
        found = score(
            [hidden], head, sampling, mask_id=MASK, wanted=("margin", "entropy"), uniforms=lambda a, b: u[a:b]
        )
        return [found.token, found.prob, found.margin, found.entropy]

    whole = run()
    monkeypatch.setattr(module, "CHUNK", chunk)
    for a, b in zip(run(), whole, strict=True):
        assert a is not None and b is not None and torch.allclose(a, b, atol=1e-6)


def test_no_rows_is_no_candidates() -> None:
    hidden, head, _ = material()
    found = score([hidden[:0]], head, Sampling(), mask_id=MASK, wanted=("margin",))
    assert found.token.shape == found.prob.shape == (0,)


def test_a_temperature_without_random_numbers_is_refused() -> None:
    hidden, head, _ = material()
    with pytest.raises(ValueError, match="random numbers"):
        score([hidden], head, Sampling(0.5))
