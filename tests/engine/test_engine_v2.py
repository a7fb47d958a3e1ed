"""Block diffusion: profile `fast-dllm-v2` against the published samplers restated, and the parity list of the default
profile (block-causal exactness, sub-blocks, lengths around block edges, numbers of forwards).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from models_for_tests import EOS, MASK, backbone, prompt
from published_v2 import Call, Net, batch_sample, generate
from torch import Tensor

from unmask import testing as t
from unmask.core import catalog
from unmask.core.errors import ConfigError, SpecError
from unmask.core.events import Finished, Stepped
from unmask.core.types import BlockCausal, Request, Traits
from unmask.engine.engine import Engine
from unmask.engine.options import DecodeOptions
from unmask.engine.profiles import answer_length, build, ignored
from unmask.evals import verify_v2
from unmask.evals.recorded import forward
from unmask.models import fast_dllm
from unmask.models.denoiser import TransformerDenoiser
from unmask.ops import attention
from unmask.ops.attention.blocks import training_mask


def model(seed: int = 1, size: int = 32, eos: tuple[int, ...] = (), shift: int = 1) -> TransformerDenoiser:
    """A random block-diffusion model that does not propose the mask id (the published samplers do not exclude it)."""
    body = copy.deepcopy(backbone(seed))
    assert body.head is not None
    body.head.weight.data[MASK] = 0.0
    rule = Traits(MASK, shift=shift, attention=BlockCausal(size), eos_ids=eos, pad_id=EOS, grid_origin="zero")
    return TransformerDenoiser(body, rule)


# ---- the profile against the published samplers ----------------------------------------------------------------------


def settings(call: Call, batch: bool) -> dict[str, Any]:
    names = {"new": "max_new_tokens", "block": "block_size", "small": "small_block_size", "cached": "use_block_cache",
             "threshold": "threshold", "stop": "stop_token", "pad": "pad_token_id"}  # fmt: skip
    given = {theirs: getattr(call, ours) for ours, theirs in names.items()}
    return {**given, "sampler": "v2_batch" if batch else "v2", "temperature": 0.0}


def against(found: TransformerDenoiser, prompts: list[list[int]], call: Call, batch: bool) -> list[list[int]]:
    """The published rows, asserted to be ours, with every model call's rows and mask ids."""
    net = Net(found.model, MASK)
    rows = batch_sample(net, prompts, call) if batch else [generate(net, prompts[0], call)]
    case = {"settings": settings(call, batch), "inputs": {"prompts" if batch else "input_ids": prompts},
            "expected": {"sequences": rows, "nfe": len(net.calls)}, "trace": net.calls}  # fmt: skip
    assert verify_v2.generate(found, case) == "", (list(map(len, prompts)), call)
    return rows


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("small", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 8, 9, 12])
def test_generate_is_the_published_one(length: int, small: int, cached: bool) -> None:
    """With G-1 at a length of one block, bonus tokens, commits, and a stop id wherever it comes."""
    found, ids = model(size=4), prompt(length, length)
    call = Call(12, 4, small, cached, 0.3 if length != 4 else 0.0, -1)  # rows that see masks only tie exactly
    (plain,) = against(found, [ids], call, False)
    for stop in {plain[length], plain[length + 2], plain[-2], plain[-1]}:
        against(found, [ids], replace(call, stop=stop), False)


LENGTHS = [(3, 3), (8, 8), (4, 4), (4, 9), (5, 8, 10), (5, 8, 8), (6, 8, 9), (2, 5), (9, 3, 6, 4)]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("small", [2, 4])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_batch_sample_is_the_published_one(lengths: tuple[int, ...], small: int, cached: bool) -> None:
    """G-1, G-2 (a prompt that ends with a block between the shortest and the longest), G-5, rows that leave early."""
    found = model(3, size=4)
    prompts = [prompt(10 * n + i, n) for i, n in enumerate(lengths)]
    call = Call(12, 4, small, cached, 0.3 if min(lengths) != 4 else 0.0, -1, EOS)
    plain = against(found, prompts, call, True)
    for row, n in zip(plain, lengths, strict=True):
        for stop in {row[n + 1], row[-1]}:
            against(found, prompts, replace(call, stop=stop), True)


def test_batches_end_in_every_way() -> None:
    """The stop ids above really make rows leave early, together, and not at all (a bonus token that is the stop id)."""
    found, prompts = model(3, size=4), [prompt(30, 3), prompt(71, 7)]
    call = Call(12, 4, 2, False, 0.3, -1, EOS)
    plain = against(found, prompts, call, True)
    seen = set()
    for stop in {token for row in plain for token in row[7:]}:
        rows = against(found, prompts, replace(call, stop=stop), True)
        short = [len(r) < len(plain[0]) for r in rows]
        unnoticed = any(stop in r[len(p) :] and r == full for r, p, full in zip(rows, prompts, plain, strict=True))
        seen.add((*sorted(short), unnoticed))
    assert {(False, False, False), (False, True, False), (False, False, True)} <= seen


def test_the_profile_refuses_what_it_cannot_do() -> None:
    options = DecodeOptions(profile="fast-dllm-v2")
    with pytest.raises(ConfigError, match="block-diffusion"):
        build(options, Traits(MASK), "llada", 64)
    with pytest.raises(ConfigError, match="at least one block"):
        answer_length(options, 5, 31)
    assert not t.serves(t.strategy(cache="v2_cache").cache, t.TRAITS["full"])
    assert not t.serves(t.strategy(cache="v2_cache").cache, t.TRAITS["context-causal"])
    with pytest.raises(SpecError, match="divisor"):
        build(DecodeOptions(profile="fast-dllm-v2", small_block_size=12), model().traits, "Fast_dLLM_Qwen", 64)
    assert [answer_length(options, n, 64) for n in (11, 32, 40, 64, 65)] == [54, 65, 57, 65, 64]


ALL_PARTS = {"schedule": "v2_blocks", "policy": "v2_threshold", "cache": "v2_cache"}


@pytest.mark.parametrize("parts", [[k] for k in ALL_PARTS] + [["schedule", "policy"], ["policy", "cache"]])
def test_published_parts_go_together_only(parts: list[str]) -> None:
    options = DecodeOptions(**{k: ALL_PARTS[k] for k in parts})  # type: ignore[arg-type]
    for kind in (model().traits, Traits(MASK)):
        with pytest.raises(ConfigError, match="v2_blocks, v2_threshold, v2_cache together") as refused:
            build(options, kind, "", 32)
        assert "--profile fast-dllm-v2" in refused.value.remedy


def test_all_published_parts_are_the_profile_on_its_own_model_and_with_one_size_only() -> None:
    whole = DecodeOptions(**ALL_PARTS)  # type: ignore[arg-type]
    made, profile = (
        build(o, model().traits, "Fast_dLLM_Qwen", 32) for o in (whole, DecodeOptions(profile="fast-dllm-v2"))
    )
    assert (made.schedule, made.cache) == (profile.schedule, profile.cache)
    for wrong in ({"cache": "v2_cache(length=4)"}, {"policy": "v2_threshold(block=8)"}):
        with pytest.raises(ConfigError, match="the same block"):
            build(replace(whole, **wrong), model().traits, "Fast_dLLM_Qwen", 32)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no guidance"):
        build(replace(whole, cfg_scale=1.0), model().traits, "Fast_dLLM_Qwen", 32)
    for options in (whole, DecodeOptions(profile="fast-dllm-v2")):
        with pytest.raises(ConfigError, match="a block-diffusion model"):
            build(options, Traits(MASK), "llada", 32)
        with pytest.raises(ConfigError, match=r"shift 1.*sdar, shift 0"):
            build(options, model(shift=0).traits, "sdar", 32)
        with pytest.raises(ConfigError, match=r"from both sides.*unmask_context_causal, whose context") as refused:
            build(options, replace(model().traits, attention=BlockCausal(32, "causal")), "unmask_context_causal", 32)
        assert "default profile" in refused.value.remedy


@pytest.mark.parametrize("name", ["llada", "fast-dllm", "dream"])
def test_whole_canvas_profiles_are_refused_on_block_models(name: str) -> None:
    with pytest.raises(ConfigError, match=f"profile {name}.*sdar, a block-diffusion model") as refused:
        build(DecodeOptions(profile=name), model(shift=0).traits, "sdar", 32)
    assert "fast-dllm-v2" in refused.value.remedy


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"block_length": 32}, "a length of at most 12"), ({"small_block_size": 64}, "a length of at most 12"),
        ({"schedule": "blocks(16)"}, "a length of at most 12"), ({"schedule": "growing(24)"}, "a length of at most 12"),
        ({"block_length": 5}, "a divisor of 12"), ({"small_block_size": 8}, "a divisor of 12"),
        ({"schedule": "growing(5)"}, "a divisor of 12"), ({"schedule": "whole"}, "blocks of at most 12"),
        ({"block_length": 6, "small_block_size": 2}, "beside small-block-size; expected 12"),
    ],
)  # fmt: skip
def test_blocks_of_the_schedule_lie_inside_the_models_own(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(DecodeOptions(**given), model(size=12).traits, "Fast_dLLM_Qwen", 32)


@pytest.mark.parametrize(("size", "length"), [(8, 8), (12, 12), (32, 32), (48, 24), (64, 32), (37, 1)])
def test_the_default_block_is_a_part_of_the_models_own(size: int, length: int) -> None:
    def blocks(**given: Any) -> Any:
        return build(DecodeOptions(**given), model(size=size).traits, "Fast_dLLM_Qwen", 32).schedule

    assert blocks().length == blocks(schedule="growing").length == length
    assert blocks(block_length=size).length == blocks(small_block_size=size, block_length=size).length == size
    advised = catalog.parse("schedule", fast_dllm.recommended({"bd_size": size}, True, 32).schedule).length
    assert size % advised == 0 and advised <= 8


def test_the_profile_samples_from_the_published_distribution() -> None:
    strategy = build(DecodeOptions(profile="fast-dllm-v2", temperature=0.7), model().traits, "Fast_dLLM_Qwen", 64)
    assert (strategy.sampling.top_p, strategy.sampling.filtered_confidence) == (0.95, True)
    one = replace(t.request(prompt(1, 5), 28, strategy), seed=3)
    found = t.decode(model(), [one])
    assert found.answers == t.decode(model(), [one]).answers != t.decode(model(), [replace(one, seed=4)]).answers


def test_what_published_switches_mean_depends_on_the_model() -> None:
    def cache(kind: Traits, **switches: bool) -> tuple[str, tuple[str, ...]]:
        options = DecodeOptions(**switches)  # type: ignore[arg-type]
        left = ignored(options, kind, "", 32)
        kept = replace(options, **dict.fromkeys(left))  # type: ignore[arg-type]
        return repr(build(kept, kind, "", 32).cache), left

    full, block, ar = Traits(MASK), model().traits, Traits(None, attention=BlockCausal(1))
    assert cache(full, use_cache=True) == ("prefix", ())
    assert cache(full, use_cache=True, dual_cache=True) == ("dual", ())
    assert cache(full, dual_cache=True) == ("none", ("dual_cache",))
    assert cache(block, use_cache=True) == ("block", ())
    assert cache(block, dual_cache=True) == cache(block, use_cache=True, dual_cache=True) == ("sub_block", ())
    assert cache(ar, use_cache=True) == ("block", ())


# ---- part H: what must hold of any implementation --------------------------------------------------------------------

EDGES = [31, 32, 33, 63, 64, 65]


def test_masks_equal_their_formulas() -> None:
    """H.1: [noisy; clean] of 96 tokens in blocks of 32; inference behind 64 rows, and over 96."""
    mask, n, size = training_mask(96, 32), 96, 32
    for q in range(2 * n):
        for k in range(2 * n):
            b, c = (q % n) // size, (k % n) // size
            clean = (q >= n, k >= n)
            right = {(False, False): b == c, (False, True): b > c, (True, False): False, (True, True): b >= c}[clean]
            assert bool(mask[q, k]) == right, (q, k)
    assert BlockCausal(32).visible(((64, 96),), 96) == ((32, ((0, 96),)),)
    assert BlockCausal(32).visible(((0, 96),), 96) == ((32, ((0, 32),)), (32, ((0, 64),)), (32, ((0, 96),)))


def test_prefill_in_one_call_equals_block_by_block_commits() -> None:
    """H.2: the same keys and values, to rounding."""
    found, ids = model(), torch.tensor(prompt(2, 96))
    once, steps = found.new_store(1, 96), found.new_store(1, 96)
    whole = forward(found, once, ids, 0, 96)
    parts = [forward(found, steps, ids[a : a + 32], a, a + 32) for a in (0, 32, 64)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(once.keys, steps.keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(once.values, steps.values, atol=1e-5, rtol=1e-5)


def test_training_sees_what_decoding_sees() -> None:
    """H.3: the noisy half's logits of every block are those of the same masked block behind its committed past."""
    found, clean = model(), torch.tensor(prompt(3, 96))
    noisy = torch.where(torch.arange(96) % 3 == 1, MASK, clean)
    case = {"kind": "v2_train", "settings": {"bd_size": 32}, "expected": {"loss": 0.0},
            "noisy_and_clean_input_ids": [torch.cat([noisy, clean]).tolist()],
            "final_labels": [clean.tolist()]}  # fmt: skip
    with torch.no_grad():
        trained, _ = verify_v2.logits(found, case)
    store = found.new_store(1, 96)
    for a in (0, 32, 64):
        decoded = forward(found, store, noisy[a : a + 32], a, a + 32)
        torch.testing.assert_close(decoded, trained[0, a : a + 32], atol=1e-4, rtol=1e-4)
        forward(found, store, clean[a : a + 32], a, a + 32)


def published(found: TransformerDenoiser, length: int, threshold: float, cached: bool) -> list[Stepped]:
    options = DecodeOptions(profile="fast-dllm-v2", threshold=threshold, dual_cache=cached or None)
    answer = answer_length(options, length, 64)
    strategy = build(options, found.traits, "Fast_dLLM_Qwen", answer)
    engine = Engine(found)
    canvas = torch.tensor(prompt(length, length) + [0] * answer)
    engine.submit(Request("a", canvas, torch.arange(len(canvas)) < length, length, strategy))
    return [e for e in engine.run() if isinstance(e, Stepped)]


@pytest.mark.parametrize("length", [11, *EDGES])
def test_published_forwards_at_threshold_1(length: int) -> None:
    """H.4: a prefill beyond one block; 32 - tail forwards and a commit, then 31 and a commit."""
    kinds = [e.work.kind for e in published(model(), length, 1.0, False)]
    tail = length % 32
    first = 32 - tail if tail or length == 32 else 31  # G-1: an unseen block gives no bonus token
    assert kinds.count("prefill") == (length >= 33) + (length <= 32)
    assert kinds.count("full") == first + 31
    assert len(kinds) == (length > 32) + (first + 1) + (31 + 1)


@pytest.mark.parametrize("length", [11, 40, 64])
def test_published_block_cache_runs_the_whole_block_while_a_sub_block_has_not_begun(length: int) -> None:
    """H.5: full forwards = one at a block's start and one for each step with a sub-block's first position masked."""
    steps = [e for e in published(model(), length, 0.4, True) if e.work.kind in ("full", "partial")]
    decided, block, full = set(range(length)), -1, 0
    for e in steps:
        at = min(p for p, *_ in e.writes)
        start = at - at % 8
        full += start not in decided or at // 32 != block
        block = at // 32
        decided |= {p for p, *_ in e.writes}
        decided |= {q for q in range(max(decided)) if q % 32 == 0}
    assert [e.work.kind for e in steps].count("full") == full
    assert 0 < full < len(steps)


@pytest.mark.parametrize("length", [40, 64])
def test_the_bonus_token_is_the_argmax_of_the_commit(length: int) -> None:
    """H.6, published: row s - 1 of the committed block, greedy, at whatever confidence."""
    found = model()
    steps = published(found, length, 0.4, False)
    ids = torch.tensor(prompt(length, length) + [0] * 80)
    for e in steps:
        for p, token, confidence, _ in e.writes:
            if e.work.kind in ("commit", "prefill") and p % 32 == 0:
                logits = forward(found, found.new_store(1, p), ids[:p], 0, p)[-1]
                assert token == int(logits.argmax())
                assert confidence == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
        for p, token, *_ in e.writes:
            ids[p] = token


def dense(found: TransformerDenoiser, ids: Tensor) -> Tensor:
    return forward(found, found.new_store(1, ids.numel()), ids, 0, ids.numel())


@pytest.mark.parametrize("length", EDGES)
@pytest.mark.parametrize("shift", [0, 1])
def test_lengths_around_a_block_edge(length: int, shift: int) -> None:
    """H.6, H.7: every first token comes from the model's own row for it; no cache, exact caches and crowds agree."""
    found = model(2, shift=shift)
    answers: dict[str, dict[str, list[int]]] = {}
    for cache in ("none", "block", "sub_block(refresh=1)"):
        requests = [
            t.request(prompt(n, n), 40, t.strategy("blocks(8)", "threshold(0.4)", cache), str(n)) for n in EDGES
        ]
        alone = t.decode(found, [next(r for r in requests if r.id == str(length))])
        answers[cache] = alone.answers
        if cache == "block":
            assert t.decode(found, requests, slots=3).answers[str(length)] == alone.answers[str(length)]
    assert answers["none"] == answers["block"] == answers["sub_block(refresh=1)"]
    ids = torch.tensor(prompt(length, length) + [MASK] * 40)
    one = t.decode(found, [t.request(prompt(length, length), 40, t.strategy("blocks(8)", "left_to_right", "block"))])
    for p in range(length, length + 4):
        stop = (p // 32 + 1) * 32
        logits = dense(found, ids[:stop])[p - shift].clone()
        logits[MASK] = -torch.inf
        assert one.answers["a"][p - length] == int(logits.argmax())
        ids[p] = one.answers["a"][p - length]


@pytest.mark.parametrize("length", EDGES)
def test_the_exact_cache_computes_the_open_block_and_the_row_before_it(length: int) -> None:
    """One forward per token at threshold 1; prompt blocks once; commits are part of the next block's first forward."""
    found = model()
    t_ = t.strategy("blocks(8)", "left_to_right", "block")
    run = t.decode(found, [t.request(prompt(length, length), 40, t_)])
    assert run.calls == 40
    layers = found.layers
    steps = [e.work.row_layers // layers for e in run.events if isinstance(e, Stepped)]
    expected, kept = [], 0
    for p in range(length, length + 40):
        base, needs = p // 32 * 32, p - 1
        stop = base if needs < base else min(base + 32, length + 40)  # row base - 1 alone speaks for base: no later row
        expected.append(max(stop, base) - min(kept, needs))
        kept = base
    assert steps == expected
    none = t.decode(found, [t.request(prompt(length, length), 40, t.strategy("blocks(8)", "left_to_right"))])
    beyond = [e.work.row_layers // layers for e in none.events if isinstance(e, Stepped)]
    assert beyond == [min((p // 32 + 1) * 32, length + 40) for p in range(length, length + 40)]


def test_an_open_first_position_takes_the_row_before_the_block_along() -> None:
    """A block whose first position stays open: 33 rows per forward, and the producer row is the right one."""
    found, length = model(), 64
    steps, hold = [], t.strategy("blocks(32)", "low_confidence(steps=32)", "block")
    run = t.decode(found, [t.request(prompt(4, length), 32, hold)])
    steps = [(e.work.row_layers // found.layers, e.writes[0][0]) for e in run.events if isinstance(e, Stepped)]
    first = next(i for i, (_, p) in enumerate(steps) if p == 64)
    assert first > 0, "the test needs a first position that is not the surest"
    assert [rows for rows, _ in steps] == [96] + [33] * first + [32] * (31 - first)


def test_the_sub_block_cache_computes_the_open_sub_block() -> None:
    """Rows by hand: the block at its entry; a sub-block, and the row before it while its first position is open."""
    found = model()
    run = t.decode(
        found, [t.request(prompt(4, 32), 64, t.strategy("blocks(8)", "low_confidence(steps=64)", "sub_block"))]
    )
    rows = [e.work.row_layers // found.layers for e in run.events if isinstance(e, Stepped)]
    writes = [e.writes[0][0] for e in run.events if isinstance(e, Stepped)]
    open_ = [min(p - p % 8 not in writes[:i] for p in [writes[i]]) for i in range(64)]
    assert rows[0] == 64 and rows[32] == 64, "entries: the prompt's block or the finished one, and the new block"
    assert [r for i, r in enumerate(rows) if i % 32] == [8 + first for i, first in enumerate(open_) if i % 32]
    assert {8, 9} <= set(rows)


def test_the_sub_block_cache_is_exact_at_block_boundaries() -> None:
    """H.9: whatever was stale inside, finished blocks are kept with the rows of their final tokens."""
    found, ids = model(), prompt(4, 40)
    engine = Engine(found, 1)
    one = t.request(ids, 80, t.strategy("blocks(8)", "threshold(0.4)", "sub_block"))
    engine.submit(one)
    kept = None
    while not engine.idle:
        events = engine.step()
        if kept is None and any(w[0] >= 96 for e in events if isinstance(e, Stepped) for w in e.writes):
            seq = engine._running[0].seq
            kept = seq.canvas[:96].clone(), engine._store.keys[:, 0, :, :96].clone()
    assert kept is not None
    store = found.new_store(1, 96)
    forward(found, store, kept[0], 0, 96)
    torch.testing.assert_close(store.keys[:, 0], kept[1], atol=1e-5, rtol=1e-5)
    stale = t.decode(found, [one]).answers
    exact = t.decode(found, [t.request(ids, 80, t.strategy("blocks(8)", "threshold(0.4)"))]).answers
    assert stale != exact, "this model shows that rows inside a block were stale"


def test_finished_rows_free_their_slots_for_others() -> None:
    """Mixed lengths, few slots, early ends: the answers of batch 1, and a slot is taken again at the next step."""
    found = model(2, eos=(3, 7, 11, 19, EOS))
    requests = [
        t.request(prompt(n, n), 70, t.strategy("blocks(8)", "threshold(0.4)", "block"), str(n)) for n in (33, 31, 64, 5)
    ]
    run = t.decode(found, requests, slots=2)
    ends = {e.id: e for e in run.events if isinstance(e, Finished)}
    assert any(e.reason == "stop" and e.end < n + 60 for n, e in ((int(k), v) for k, v in ends.items()))
    for one in requests:
        alone = t.decode(found, [one])
        assert alone.answers[one.id] == run.answers[one.id]
        assert alone.nfe[one.id] == run.nfe[one.id]
    assert run.calls < sum(run.nfe.values())


def test_replacing_a_layers_output_gives_the_stale_logits() -> None:
    """H.8: why layer reuse that puts back an older output commits blindly: nothing above it can see the new token."""
    found, ids = model(), torch.tensor(prompt(5, 32))
    body, store = found.model, found.new_store(1, 32)
    ids[8:] = MASK

    def run(ids: Tensor, replaced: tuple[int, Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        x, outs = body.embed_ids(ids), []

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            store.write(i, 0, ((0, 32),), k, v)
            return attention.rows(q, *store.kv(i, 0), [(32, ((0, 32),))])

        for i in range(found.layers):
            x = body.run(x, torch.arange(32), attend, range(i, i + 1))
            if replaced is not None and replaced[0] == i:
                x = replaced[1]
            outs.append(x)
        return body.logits(body.norm(x)), outs

    with torch.no_grad():
        stale, outs = run(ids)
        ids[8] = 5
        for layer in range(found.layers):
            again, _ = run(ids, (layer, outs[layer]))
            torch.testing.assert_close(again, stale)
        assert float((run(ids)[0] - stale).abs().max()) > 0.1
