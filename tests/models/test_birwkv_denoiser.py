"""The recurrent model in the engine: samplers, guidance, the boundary cache, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.test_birwkv_net import ADALN, KINDS_OF_MODEL, made
from torch import Tensor

from unmask import load
from unmask import testing as t
from unmask.core.errors import InputError, RequestError, RunError
from unmask.core.events import Finished, Stepped
from unmask.core.types import (
    EDIT,
    FILL,
    Batch,
    Candidates,
    Lane,
    Latents,
    LatentSpace,
    Plan,
    Recurrent,
    Request,
    Sampling,
    Spans,
    Traits,
)
from unmask.decode.gaussian import Walk, _ancestral, levels_of, move
from unmask.decode.guidance import ClassifierFree
from unmask.engine.engine import sequence_of
from unmask.engine.noise import PositionNoise
from unmask.engine.options import DecodeOptions
from unmask.engine.profiles import build
from unmask.models import birwkv
from unmask.models.birwkv_denoiser import BiRWKVDenoiser, BoundaryStore
from unmask.models.birwkv_net import NOISY, NULL
from unmask.pipeline.settings import spelled

MASK, EOS = 39, 38
SAMPLERS = ("ddpm(steps=5)", "ddim(steps=5)", "ddim(steps=5, eta=0.5)", "dpmpp(steps=5)")
HOT = Sampling(temperature=0.8)


def denoiser(name: str = "adaln", spread: float = 0.3, seedless: bool = True) -> BiRWKVDenoiser:
    """Without end-of-text ids, so that nothing stops early."""
    config = KINDS_OF_MODEL[name] | ({"eos_token_id": None} if seedless else {})
    return BiRWKVDenoiser(made(config, torch.float32, spread), birwkv.traits(config))


def prompt(seed: int, length: int) -> list[int]:
    return torch.randint(0, 38, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def one(
    policy: str, length: int = 10, cache: str = "none", schedule: str = "whole", guidance: ClassifierFree | None = None,
    sampling: Sampling | None = None, **more: object,
) -> Request:  # fmt: skip
    return t.request(prompt(5, 4), length, t.strategy(schedule, policy, cache, guidance, sampling), **more)  # type: ignore[arg-type]


def written(found: t.Outcome) -> list[tuple[tuple[int, int, float, int], ...]]:
    return [e.writes for e in found.events if isinstance(e, Stepped)]


# ---- what is given, and what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaln", "adaln-untied", "epsilon", "v_prediction", "hybrid", "origin"])
@pytest.mark.parametrize("policy", SAMPLERS)
def test_given_tokens_stand_and_every_hole_is_filled_once(name: str, policy: str) -> None:
    model = denoiser(name)
    found = t.decode(model, [one(policy, fixed={2: 6, 9: 1})])
    answer = found.answers["a"]
    assert (answer[2], answer[9]) == (6, 1) and MASK not in answer and found.nfe["a"] == 5
    steps = written(found)
    assert [{kind for *_, kind in writes} for writes in steps[:-1] if writes] == [{EDIT}] * sum(map(bool, steps[:-1]))
    assert {kind for *_, kind in steps[-1]} == {FILL}
    free = [4 + i for i in range(10) if i not in (2, 9)]
    assert [p for p, *_ in steps[0]] == [p for p, *_ in steps[-1]] == free
    assert t.fold(found.events)["a"].ids[4:] == answer


def test_edits_are_written_only_where_something_changed() -> None:
    """Between two writes of a position its token or its confidence band is another."""
    for policy in SAMPLERS:
        last: dict[int, tuple[int, int]] = {}
        edits = 0
        for writes in written(t.decode(denoiser(), [one(policy.replace("steps=5", "steps=16"), 14)]))[:-1]:
            for position, token, confidence, _ in writes:
                now = token, sum(confidence > edge for edge in (0.3, 0.7))
                assert last.get(position) != now
                last[position], edits = now, edits + 1
        assert edits > 14


def test_a_step_shows_what_moved_and_only_that() -> None:
    """One step by hand: position 0 keeps token and band, 1 another token, 2 another band."""
    seq = sequence_of(one("ddpm(steps=3)", 3), replace(denoiser().traits, latent=LatentSpace(2, -4.0, 4.0)))
    walk = Walk(4, 0, torch.arange(4, 7), torch.zeros(3, 2).double(), torch.zeros(3, 2).double())
    noise, zero = PositionNoise(0), torch.zeros(3, 2)
    first = Candidates(torch.tensor([5, 6, 7]), torch.tensor([0.5, 0.5, 0.5]), mean=zero)
    commit, walk = move(seq, first, walk, 3, 0.0, noise, _ancestral)
    assert commit.slots.tolist() == [0, 1, 2] and commit.kind == EDIT and commit.busy
    then = Candidates(torch.tensor([5, 9, 7]), torch.tensor([0.6, 0.5, 0.9]), mean=zero)
    commit, walk = move(seq, then, walk, 3, 0.0, noise, _ancestral)
    assert commit.slots.tolist() == [1, 2] and commit.tokens.tolist() == [9, 7]
    commit, walk = move(seq, then, walk, 3, 0.0, noise, _ancestral)
    assert commit.slots.tolist() == [0, 1, 2] and commit.kind == FILL and not commit.busy and walk.block == -1


def test_levels_rise_from_the_noisy_end_to_the_clean_one() -> None:
    space = LatentSpace(8, -7.0, 5.0)
    assert levels_of(space, 4) == pytest.approx([-7.0, -3.0, 1.0, 5.0])
    assert levels_of(space, 1) == [-7.0]


@pytest.mark.parametrize("policy", [*SAMPLERS, "ddim(steps=1)"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_fixed_clean_vector_is_where_the_samplers_end(policy: str, kind: str) -> None:
    """A silent head with evidence reads the nearest token; the denoiser points at token 17."""
    config = KINDS_OF_MODEL[kind] | {"eos_token_id": None}
    model = made(config, torch.float32)
    with torch.no_grad():
        model.transformer["to_embed"].weight.zero_()
    found = BiRWKVDenoiser(model, birwkv.traits(config))
    target = model.table[17].detach()
    model.denoised = lambda hidden, *_: target.expand(len(hidden), -1)  # type: ignore[method-assign]
    answers = t.decode(found, [one(policy)]).answers["a"]
    assert (answers == [17] * 10) == ("steps=1" not in policy), "one forward reads pure noise"


# ---- samplers --------------------------------------------------------------------------------------------------------


def test_ddim_with_all_its_noise_is_ddpm() -> None:
    model = denoiser()
    found = [written(t.decode(model, [one(p, 12, seed=3)])) for p in ("ddpm(steps=6)", "ddim(steps=6, eta=1.0)")]
    assert [[w[:2] for w in writes] for writes in found[0]] == [[w[:2] for w in writes] for writes in found[1]]
    flat = [torch.tensor([w[2] for writes in run for w in writes]) for run in found]
    assert float((flat[0] - flat[1]).abs().max()) < 1e-5


@pytest.mark.parametrize("policy", ["ddpm(steps=5)", "ddim(steps=5)", "dpmpp(steps=5)", "dream(alg='origin', steps=6)"])
@pytest.mark.parametrize("schedule", ["whole", "blocks(4)"])
def test_the_seed_decides(policy: str, schedule: str) -> None:
    model = denoiser()
    runs = [
        t.decode(model, [one(policy, 16, "none", schedule, sampling=HOT, seed=seed)]).answers["a"] for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_clamping_and_temperature_have_an_effect() -> None:
    model = denoiser()
    plain = written(t.decode(model, [one("ddpm(steps=6)", 12)]))
    assert written(t.decode(model, [one("ddpm(steps=6, clamp=1.0)", 12)])) != plain
    assert written(t.decode(model, [one("ddpm(steps=6)", 12, sampling=HOT)])) != plain
    assert plain == written(t.decode(model, [one("ddpm(steps=6, clamp=0.0)", 12)]))


def test_noise_is_normal_and_a_function_of_seed_step_and_position() -> None:
    positions = torch.arange(3, 503)
    drawn = PositionNoise(4).normal(2, positions, 8)
    assert drawn.dtype == torch.float64 and bool(drawn.isfinite().all())
    assert abs(float(drawn.mean())) < 0.06 and float(drawn.std()) == pytest.approx(1.0, abs=0.05)
    assert float((drawn.abs() < 1).double().mean()) == pytest.approx(0.683, abs=0.03)
    both = torch.corrcoef(torch.stack([drawn[:-1].flatten(), drawn[1:].flatten()]))
    assert abs(float(both[0, 1])) < 0.06
    assert torch.equal(PositionNoise(4).normal(2, positions[40:50], 8), drawn[40:50])
    for other in (PositionNoise(5).normal(2, positions, 8), PositionNoise(4).normal(3, positions, 8)):
        assert abs(float(torch.corrcoef(torch.stack([drawn.flatten(), other.flatten()]))[0, 1])) < 0.06


MIXED = (
    t.strategy("whole", "ddpm(steps=6)"),
    t.strategy("whole", "ddim(steps=4)", guidance=ClassifierFree(2.0)),
    t.strategy("blocks(4)", "dpmpp(steps=8)", "boundary"),
    t.strategy("blocks(5)", "ddpm(steps=9)", "boundary(refresh=2)", sampling=HOT),
    t.strategy("blocks(4)", "threshold(0.5)", "boundary"),
    t.strategy("whole", "dream(alg='origin', steps=7)", guidance=ClassifierFree(1.5), sampling=HOT),
)


@pytest.mark.parametrize("name", ["adaln", "adaln-untied", "epsilon", "hybrid"])
def test_alone_and_in_a_crowd_of_other_lengths(name: str) -> None:
    model = denoiser(name, 0.2)
    mixed = MIXED if name != "hybrid" else [s for s in MIXED if not repr(s.cache).startswith("boundary")]
    crowd = [t.request(prompt(i, 2 + 3 * i), 8 + 2 * i, s, str(i), seed=i) for i, s in enumerate(mixed)]
    together = t.decode(model, crowd, slots=16)
    assert together.calls == max(together.nfe.values())
    for request in crowd:
        alone = t.decode(model, [request])
        assert alone.answers[request.id] == together.answers[request.id], request.strategy
        assert alone.nfe[request.id] == together.nfe[request.id]


@pytest.mark.parametrize("name", ["adaln", "adaln-untied", "v_prediction", "origin", "hybrid"])
def test_bf16_weights_decode(name: str) -> None:
    config = KINDS_OF_MODEL[name] | {"eos_token_id": None}
    model = BiRWKVDenoiser(made(config, torch.bfloat16), birwkv.traits(config))
    cache = "none" if name == "hybrid" else "boundary"
    found = t.decode(model, [one("ddpm(steps=6)", 8, cache, "blocks(4)"), one("threshold(0.9)", 5, id="b")])
    assert MASK not in found.answers["a"] + found.answers["b"]


# ---- guidance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["ddpm(steps=4)", "threshold(0.9)"])
@pytest.mark.parametrize("name", ["adaln", "epsilon"])
def test_guidance(name: str, policy: str) -> None:
    model = denoiser(name)

    def ran(**options: object) -> list[tuple[tuple[int, int, float, int], ...]]:
        made = build(DecodeOptions(policy=policy, **options), model.traits, "birwkv", 10)  # type: ignore[arg-type]
        return written(t.decode(model, [t.request(prompt(5, 4), 10, made)]))

    plain = ran()
    assert ran(guidance_scale=1.0) == plain and ran(cfg_scale=0.0) == plain
    assert ran(guidance_scale=2.0) == ran(cfg_scale=1.0) != plain


@pytest.mark.parametrize("policy", [*SAMPLERS, "threshold(0.5)", "dream(alg='origin', steps=7)"])
@pytest.mark.parametrize("name", ["adaln", "epsilon"])
def test_a_guidance_of_scale_one_is_the_conditional_model_bit_for_bit(name: str, policy: str) -> None:
    """Also where it is built by hand: tokens, confidences and forwards, greedy and sampled."""
    model = denoiser(name)
    for sampling in (Sampling(), HOT):
        plain, one_lane, guided = (
            t.decode(model, [one(policy, guidance=g, sampling=sampling)])
            for g in (None, ClassifierFree(1.0), ClassifierFree(1.5))
        )
        assert written(one_lane) == written(plain) and one_lane.head_rows == plain.head_rows
        assert written(guided) != written(plain) and guided.head_rows > plain.head_rows


def test_the_guidance_lane_sees_no_prompt_and_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its given positions are null, not masked; the noised vectors are those of the first lane."""
    model, seen = denoiser(), []
    enter = model.model.enter
    monkeypatch.setattr(model.model, "enter", lambda v, h, k, at: (seen.append((v, h, k)), enter(v, h, k, at))[1])
    t.decode(model, [one("ddpm(steps=3)", 6, guidance=ClassifierFree(2.0), fixed={1: 7})])
    assert len(seen) == 3
    for vectors, hint, kinds in seen:
        given = [0, 0, 0, 0, NOISY, 0, NOISY, NOISY, NOISY, NOISY]
        assert kinds.tolist() == [given, [NULL if k == 0 else k for k in given]]
        own = kinds[0] == NOISY
        assert torch.equal(vectors[0, own], vectors[1, own]) and torch.equal(hint[0], hint[1])
        assert not hint[0, ~own].any()
    assert not seen[0][1].any() and seen[1][1].any(), "the first forward has no hint, the next ones do"
    assert torch.equal(seen[0][0][0, :4], model.table[prompt(5, 4)])


# ---- boundary cache --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["ddpm(steps=9)", "dpmpp(steps=9)", "threshold(0.5)", "low_confidence(steps=9)"])
def test_a_cache_renewed_at_each_step_is_no_cache(policy: str) -> None:
    model = denoiser()
    plain, cached, stale = (
        written(t.decode(model, [one(policy, 13, c, "blocks(5)")])) for c in ("none", "boundary(refresh=1)", "boundary")
    )
    assert cached == plain
    assert [w[:1] for w in stale[0]] == [w[:1] for w in plain[0]], "a block's entry is a full forward"


def batch(ids: list[int], query: Spans, keep: Spans, rows: range, latents: Latents | None = None) -> Batch:
    n = len(ids)
    at = torch.cat([torch.arange(a, b) for a, b in query])
    plan = Plan(query, torch.tensor(list(rows)), keep, ((len(at), ((0, n),)),))
    need = torch.tensor([p - query[0][0] for p in rows])
    return Batch(torch.tensor(ids)[at], at, need, (Lane(0, plan),), latents)


@pytest.mark.parametrize(("start", "stop"), [(6, 11), (0, 5), (14, 20), (9, 10)])
@pytest.mark.parametrize("name", ["adaln", "adaln-untied", "origin"])
@pytest.mark.parametrize("noised", [False, True])
def test_right_after_its_entry_a_block_is_what_the_whole_says(name: str, start: int, stop: int, noised: bool) -> None:
    model, ids = denoiser(name), prompt(2, 20)
    ids[start:stop] = [MASK] * (stop - start)
    store, rows = model.new_store(1, 20), range(start, stop)
    width = model.model.cfg.embed_dim
    noisy = (torch.arange(20) >= start) & (torch.arange(20) < stop)
    vectors = torch.randn(20, width, generator=torch.Generator().manual_seed(0))
    whole = Latents(noisy, vectors, 0.5 * vectors, (-1.0,)) if noised else None
    part = Latents(noisy[start:stop], vectors[start:stop], 0.5 * vectors[start:stop], (-1.0,)) if noised else None
    keep = tuple((a, b) for a, b in ((0, start), (stop, 20)) if a < b)
    full = model(batch(ids, ((0, 20),), keep, rows, whole), store).hidden
    inside = model(batch(ids, ((start, stop),), (), rows, part), store).hidden
    assert full.shape[0] == stop - start
    assert float((full - inside).abs().max()) <= 1e-5 * max(1.0, float(full.abs().max()))
    ids[start - 1 if start else stop] = 3  # a neighbour outside of the block: the store does not know it yet
    assert torch.equal(model(batch(ids, ((start, stop),), (), rows, part), store).hidden, inside)
    assert not torch.allclose(model(batch(ids, ((0, 20),), keep, rows, whole), store).hidden, full)


def kept(store: BoundaryStore) -> tuple[int, int]:
    """Bytes of the summaries, and of the memory that they hold."""
    tensors = [x for b in store.borders[0] for x in (*b.left, *b.right, *(x for pair in b.rows for x in pair))]
    held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return store.bytes, sum(held.values())


def test_the_store_is_as_large_for_a_long_sequence() -> None:
    model, found = denoiser(), []
    for length in (12, 48):
        store = model.new_store(1, length)
        model(batch(prompt(1, length), ((0, length),), ((0, 4), (8, length)), range(4, 8)), store)
        assert store.spans == {0: (4, 8)}
        found.append(kept(store))
        grown = model.grow_store(store, 4, 99)
        assert (grown.slots, grown.rows, grown.bytes) == (4, 99, store.bytes)
        store.free(0)
        assert not store.bytes and grown.bytes
    assert found[0] == found[1]
    assert found[0][1] <= found[0][0], "a view of one row would keep all rows"


def test_a_block_without_known_ends_is_an_error() -> None:
    model, ids = denoiser(), prompt(1, 12)
    store = model.new_store(1, 12)
    with pytest.raises(RunError, match="states at both ends"):
        model(batch(ids, ((4, 8),), (), range(4, 8)), store)
    model(batch(ids, ((0, 12),), ((0, 4), (8, 12)), range(4, 8)), store)
    with pytest.raises(RunError, match="rows 5 to 9"):
        model(batch(ids, ((5, 9),), (), range(5, 9)), store)


def test_the_cache_computes_fewer_rows() -> None:
    model = denoiser()
    rows = {c: t.decode(model, [one("ddpm(steps=12)", 12, c, "blocks(4)")]).rows for c in ("none", "boundary")}
    assert rows["none"] == 12 * 16 and rows["boundary"] == 3 * 16 + 9 * 4


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["prefix", "dual", "block", "sub_block"])
def test_caches_of_keys_are_refused(cache: str) -> None:
    with pytest.raises(RequestError, match="recurrent") as caught:
        sequence_of(one("threshold(0.9)", cache=cache), denoiser().traits)
    assert f"cache {cache}" in str(caught.value) and "boundary" in caught.value.remedy


@pytest.mark.parametrize(
    "traits", [Traits(MASK), Traits(MASK, attention=Recurrent(boundaries=False))], ids=["transformer", "hybrid"]
)
def test_boundaries_need_recurrent_layers(traits: Traits) -> None:
    with pytest.raises(RequestError, match="cache boundary") as caught:
        sequence_of(one("threshold(0.9)", cache="boundary"), traits)
    assert "none" in caught.value.remedy
    assert denoiser("hybrid").traits.attention == Recurrent(False) == denoiser("attention").traits.attention
    assert denoiser().traits.attention == Recurrent()


@pytest.mark.parametrize("policy", SAMPLERS)
def test_samplers_need_a_model_that_denoises_vectors(policy: str) -> None:
    token = birwkv.traits(ADALN | {"diffusion_mode": "token"})
    for traits in (Traits(MASK), token):
        with pytest.raises(RequestError, match=f"policy {policy.split('(')[0]}") as caught:
            sequence_of(one(policy), traits)
        assert "policy of masks" in caught.value.remedy


@pytest.mark.parametrize(
    "policy", ["threshold(0.9)", "dream(alg='origin')", "low_confidence(steps=4)", "left_to_right"]
)
def test_policies_of_masks_need_a_model_that_has_seen_masks(policy: str) -> None:
    for mode in ("mixed", "token"):
        assert sequence_of(one(policy), birwkv.traits(ADALN | {"diffusion_mode": mode})).blocks
    diffusion = birwkv.traits(ADALN | {"diffusion_mode": "diffusion"})
    assert sequence_of(one("ddpm(steps=4)"), diffusion).blocks
    with pytest.raises(RequestError, match=f"policy {policy.split('(')[0]}") as caught:
        sequence_of(one(policy), diffusion)
    assert "fill masks" in caught.value.expected and "ddpm" in caught.value.remedy


@pytest.mark.parametrize(
    ("options", "policy"),
    [({}, "ddpm(steps=64"), ({"steps": 9}, "ddpm(steps=9"), ({"schedule": "blocks(4)"}, "ddpm(steps=64")],
)
def test_what_a_model_of_vectors_alone_does_by_default(options: dict[str, object], policy: str) -> None:
    diffusion = birwkv.traits(ADALN | {"diffusion_mode": "diffusion"})
    assert spelled(build(DecodeOptions(**options), diffusion, "birwkv", 8).policy).startswith(policy)  # type: ignore[arg-type]


def test_an_end_of_text_ends_the_answer_after_the_last_forward() -> None:
    config = KINDS_OF_MODEL["v_prediction"]
    model = made(config, torch.float32)
    with torch.no_grad():
        model.transformer["to_embed"].weight.zero_()
    target = model.table[EOS].detach()
    model.denoised = lambda hidden, *_: target.expand(len(hidden), -1)  # type: ignore[method-assign]
    found = t.decode(BiRWKVDenoiser(model, birwkv.traits(config)), [one("ddpm(steps=5)", 6)])
    end = next(e for e in found.events if isinstance(e, Finished))
    assert (end.reason, end.end, end.nfe) == ("stop", 4, 5)


def test_changed_weights_change_the_head() -> None:
    model = denoiser("adaln-untied")
    before: Tensor = model.head.weight.clone()
    assert model.head.weight.data_ptr() == model.head.weight.data_ptr()
    with torch.no_grad():
        model.model.transformer["ff_out"].weight.add_(1.0)
    assert not torch.equal(model.head.weight, before)


def test_a_block_model_refuses_a_sampler_of_vectors_by_name_and_not_by_its_schedule() -> None:
    with pytest.raises(InputError, match="denoise vectors"):
        load("nano").generate("hi", policy="ddpm(steps=4)", max_tokens=8)
