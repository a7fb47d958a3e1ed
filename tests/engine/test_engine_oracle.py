"""The engine against the page-long loop, and autoregressive decoding against a plain argmax loop."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models_for_tests import EOS, MASK, denoiser, dense_logits, prompt

from unmask import nano
from unmask import testing as t
from unmask.core.events import Finished
from unmask.core.types import Sampling
from unmask.decode.guidance import ClassifierFree
from unmask.engine.noise import PositionNoise

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@QUICK
@given(
    kind=st.sampled_from(["llada", "dream"]),
    seed=st.integers(0, 3),
    length=st.integers(1, 12),
    gen=st.integers(1, 21),
    block=st.integers(1, 24),
    rule=st.one_of(st.floats(0.05, 1.0).map(lambda v: (v, None)), st.integers(1, 30).map(lambda v: (None, v))),
    cfg=st.sampled_from([0.0, 0.0, 0.6]),
    eos=st.booleans(),
)
def test_the_engine_equals_nano(
    kind: str,
    seed: int,
    length: int,
    gen: int,
    block: int,
    rule: tuple[float | None, int | None],
    cfg: float,
    eos: bool,
) -> None:
    threshold, steps = rule
    model = denoiser(kind, seed, (3, 7, 11, 19, EOS) if eos else ())
    policy = f"threshold({threshold})" if steps is None else f"low_confidence(steps={steps})"
    guidance = ClassifierFree(cfg + 1) if cfg else None
    ids = prompt(100 * seed + length, length)
    found = t.decode(model, [t.request(ids, gen, t.strategy(f"blocks({block})", policy, guidance=guidance))])
    right, nfe = nano.generate(
        dense_logits(model), ids, gen, MASK, block_length=block, threshold=threshold, steps=steps,
        eos_ids=model.traits.eos_ids, shift=model.traits.shift, cfg_scale=cfg,
    )  # fmt: skip
    end = next(e for e in found.events if isinstance(e, Finished))
    assert found.answers["a"][: end.end - length] == right
    assert end.nfe == nfe


@pytest.mark.parametrize("cache", ["block", "none", "prefix", "dual"])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_autoregressive_decoding_is_the_argmax_loop(cache: str, length: int) -> None:
    model = denoiser("causal", 1, (EOS,))
    ids = prompt(length, length)
    found = t.decode(model, [t.request(ids, 14, t.strategy("growing(1)", "left_to_right", cache))])
    right = list(ids)
    while len(right) < length + 14 and (len(right) == length or right[-1] != EOS):
        right.append(int(dense_logits(model)(torch.tensor([right]))[0, -1].argmax()))
    answer = [i for i in found.answers["a"] if i >= 0]
    assert answer == right[length:]
    if cache == "block":
        assert found.rows == length + len(answer) - 1, "every decided row is computed exactly once"


def test_autoregressive_decoding_with_temperature_draws_by_inverse_distribution() -> None:
    model, ids = denoiser("causal", 2), prompt(5, 6)
    hot = t.strategy("growing(1)", "left_to_right", "block", sampling=Sampling(temperature=0.9))
    found = t.decode(model, [t.request(ids, 12, hot, seed=17)])
    right, noise = list(ids), PositionNoise(17)
    for step in range(12):
        logits = dense_logits(model)(torch.tensor([right]))[0, -1].double() / 0.9
        u = float(noise.uniform("token", step + 1, torch.tensor([len(right)]), 18))
        reached = list(itertools.accumulate(logits.softmax(0).tolist()))
        right.append(next(token for token, total in enumerate(reached) if total > u))
    assert found.answers["a"] == right[6:]
    greedy = t.decode(model, [t.request(ids, 12, t.strategy("growing(1)", "left_to_right", "block"))])
    assert greedy.answers["a"] != found.answers["a"]


def test_infilling_reaches_over_given_tokens_on_both_sides() -> None:
    """Full attention: given tokens after a hole change what is written into it."""
    model, ids = denoiser("llada"), prompt(1, 5)
    plain = t.decode(model, [t.request(ids, 12, t.strategy("whole"))]).answers["a"]
    other = (plain[-1] + 1) % EOS
    filled = t.decode(model, [t.request(ids, 12, t.strategy("whole"), fixed={11: other, 6: 3})]).answers["a"]
    assert (filled[11], filled[6]) == (other, 3)
    assert filled[:6] != plain[:6]
