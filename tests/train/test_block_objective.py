"""Block diffusion against a dense float64 reference: one [noisy; clean] forward per view and row, a boolean mask, and
the published formula written out. Nothing of the training forward is used in it.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from unmask.cache.block import BlockCache
from unmask.core.errors import ConfigError
from unmask.core.types import Batch as QueryBatch
from unmask.core.types import Block, BlockCausal, Lane, Peers, Plan, Request, Sequence, Traits
from unmask.models.config import TransformerConfig
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.transformer import Transformer
from unmask.noise.block import BlockNoise
from unmask.ops.attention import blocks as ops
from unmask.ops.attention.blocks import training_mask
from unmask.testing import strategy
from unmask.train import block_forward
from unmask.train.batch import Batch, Row, collate
from unmask.train.forward import Net
from unmask.train.objectives import block_diffusion as bd
from unmask.train.objectives.autoregressive import Autoregressive
from unmask.train.objectives.block_diffusion import BlockDiffusion, search_clip

MASK, EOS, PAD, VOCAB = 49, 1, 2, 50
VARIANTS = {
    "v2": BlockDiffusion(4),
    "v2, one level per sample": BlockDiffusion(5, BlockNoise(t_per="sample", stratified=True)),
    "bd3lm": bd.bd3lm(4),
    "bd3lm clipped": bd.bd3lm(8, (0.3, 0.8)),
    "bd3lm clipped high": bd.bd3lm(4, (0.6, 0.9)),
    "sdar": bd.sdar(PAD, 4),
    "a2d": bd.a2d(8),
    "a2d shifted": dataclasses.replace(bd.a2d(8), shift=1),
    "by row": dataclasses.replace(bd.a2d(4), normalise="row"),
    "context-causal": BlockDiffusion(4, context="causal", ar_weight=1.0),
    "context-causal without ar": BlockDiffusion(5, context="causal"),
    "context-causal a2d": dataclasses.replace(bd.a2d(4), shift=1, context="causal", ar_weight=0.5),
}


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.set_num_threads(1)
    cfg = TransformerConfig(
        vocab_size=VOCAB, dim=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=24, qk_norm="full", tied=True
    )
    made = Transformer(cfg)
    made.init_weights(0, 0.3)
    return made.double()


def rows(*shapes: tuple[int, int], tail: int = 0, seed: int = 0) -> Batch:
    """Rows of (length, prompt) with random tokens."""
    gen = torch.Generator().manual_seed(seed)
    made = [Row(tuple(torch.randint(3, 48, (n,), generator=gen).tolist()), p) for n, p in shapes]
    return collate([dataclasses.replace(r, ids=r.ids + (EOS,) * tail, tail=tail) for r in made], EOS)


RAGGED = ((19, 7), (3, 1), (8, 8), (16, 5), (27, 0), (9, 8), (12, 3))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense_loss(model: Transformer, objective: BlockDiffusion, batch: Batch, seed: int) -> torch.Tensor:
    """The published formula. Its noise comes from the noise process; everything else is written out."""
    batch, size, o = batch.without_tail(), objective.block, objective
    cut = o.blocks(batch)
    masked, p = o.noise.masks(cut.scored, cut.count, rng(seed))
    sums, counts, reachable, told = [], 0, [], []
    for i in range(batch.ids.shape[0]):
        real = int(batch.real[i].sum())
        length = -(-real // size) * size
        fill = {"mask": MASK, "eos": EOS, "pad": PAD}[o.pad]
        clean = torch.cat([batch.ids[i, :real], torch.full((length - real,), fill)])
        free = torch.cat([batch.scored[i, :real], torch.full((length - real,), o.pad != "mask")])
        free[0] &= not (o.shift or o.keep_first)
        reachable.append(int(free.sum()))
        for view in masked:
            hole = view[i].flatten()[:length]
            noisy = torch.where(hole, MASK, clean)
            logits = both_halves(model, noisy, clean, size, o.context)
            weight = 1 / p[i].flatten()[:length] if o.weight == "1/t" and o.noise.clip[0] <= 0.5 else torch.ones(length)
            speaks = hole & free
            row = torch.arange(length)[speaks] - o.shift
            if o.context == "causal":  # a block's first token is read from the clean half, as decoding does
                row = torch.where(row % size == size - 1, row + length, row)
            ce = F.cross_entropy(logits[row], clean[speaks], reduction="none") * weight[speaks]
            sums.append(ce.sum() / (max(1, reachable[i]) if o.normalise == "row" else 1))
            counts += int(speaks.sum())
        if o.ar_weight:
            at = free.nonzero().flatten()
            told.append(F.cross_entropy(logits[length + at - 1], clean[at], reduction="none"))
    total = torch.stack(sums).sum() / {"tokens": counts, "scored": sum(reachable), "row": len(batch.ids)}[o.normalise]
    return total + o.ar_weight * torch.cat(told).mean() if told else total


def both_halves(
    model: Transformer, noisy: torch.Tensor, clean: torch.Tensor, size: int, context: str = "block"
) -> torch.Tensor:
    mask, n = training_mask(len(clean), size), len(clean)
    if context == "causal":
        mask[n:, n:] = torch.ones(n, n, dtype=torch.bool).tril()

    def attend(_: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)

    x = model.embed_ids(torch.cat([noisy, clean])[None])
    return model.logits(model.norm(model.run(x, torch.arange(len(clean)).repeat(2)[None], attend)))[0]


def gradients(model: Transformer, loss: torch.Tensor) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if g is None else g for p, g in zip(
        model.parameters(), torch.autograd.grad(loss, list(model.parameters()), allow_unused=True), strict=True
    )]  # fmt: skip


def assert_equal(
    model: Transformer, objective: BlockDiffusion, batch: Batch, seed: int, net: Net | None = None
) -> None:
    bound = objective.bound(MASK, EOS)
    ours, right = bound(net or Net(model), batch, rng(seed)).total, dense_loss(model, bound, batch, seed)
    assert torch.allclose(ours.double(), right, atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients(model, ours), gradients(model, right), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_equal_the_dense_reference(model: Transformer, name: str) -> None:
    assert_equal(model, VARIANTS[name], rows(*RAGGED), 3)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 30), st.integers(0, 20)), min_size=1, max_size=5),
    st.sampled_from(["v2", "sdar", "a2d shifted", "context-causal"]),
    st.integers(1, 9),
    st.integers(0, 10**6),
)
def test_any_lengths_prompts_and_blocks(shapes: list[tuple[int, int]], name: str, block: int, seed: int) -> None:
    torch.set_num_threads(1)
    cfg = TransformerConfig(vocab_size=VOCAB, dim=8, layers=2, heads=2, kv_heads=1, head_dim=4, mlp_dim=8, tied=True)
    small = Transformer(cfg)
    small.init_weights(0, 0.3)
    objective = dataclasses.replace(VARIANTS[name], block=block)
    batch = rows(*((n, min(p, n - 1)) for n, p in shapes), seed=seed)
    bound = objective.bound(MASK, EOS)
    if bound.noise.masks(*blocks_of(bound, batch), rng(seed))[0].flatten(2)[:, :, 1:].any():
        assert_equal(small.double(), objective, batch, seed)


def blocks_of(objective: BlockDiffusion, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    cut = objective.blocks(batch)
    return cut.scored, cut.count


@pytest.mark.parametrize("name", ["v2", "context-causal"])
def test_remade_attention_weights_and_checkpointing_change_nothing(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert_equal(model, VARIANTS[name], rows(*RAGGED), 3, Net(model, checkpointing=True))
    monkeypatch.setattr(ops, "_KEEP", 0)
    assert_equal(model, VARIANTS[name], rows(*RAGGED), 3)


@pytest.mark.parametrize("name", ["v2", "context-causal"])
def test_tail_is_taken_off_and_replaced_by_the_block_padding(model: Transformer, name: str) -> None:
    v2 = VARIANTS[name].bound(MASK, EOS)
    plain, tailed = (v2(Net(model), rows(*RAGGED, tail=t), rng(3)) for t in (0, 6))
    assert torch.equal(plain.total, tailed.total)


def test_pads_of_the_data_are_those_of_the_objective(model: Transformer) -> None:
    """A row that its data filled up with EOS is the row that the objective fills up with its own padding."""
    v2 = VARIANTS["v2"].bound(MASK, EOS)
    ids = tuple(range(3, 13))
    short = collate([Row(ids, 3)], EOS)
    filled = collate([Row((*ids, EOS, EOS), 3, answers=((3, 10),), pads=((10, 12),))], EOS)
    assert torch.equal(v2(Net(model), short, rng(3)).total, v2(Net(model), filled, rng(3)).total)


def test_a_mask_id_in_the_data_is_an_ordinary_token(model: Transformer) -> None:
    batch = rows((16, 5))
    ids = batch.ids.clone()
    ids[0, [2, 9]] = MASK
    assert_equal(model, VARIANTS["v2"], dataclasses.replace(batch, ids=ids), 3)


@pytest.mark.parametrize("name", ["v2", "context-causal"])
def test_nothing_to_say_is_a_loss_of_zero(model: Transformer, name: str) -> None:
    loss = VARIANTS[name].bound(MASK, EOS)(Net(model), rows((8, 8), (5, 5)), rng())
    loss.total.backward()
    assert (loss.total.item(), loss.metrics["masked"], loss.metrics["positions"]) == (0.0, 0.0, 0.0)
    model.zero_grad()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_agree(model: Transformer) -> None:
    for name in ("v2", "context-causal"):
        assert_equal(model, VARIANTS[name], rows(*RAGGED), 3, Net(model, compiled=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_the_gpu_path_gives_the_same_loss(model: Transformer, name: str) -> None:
    cfg = dataclasses.replace(model.cfg, head_dim=16)
    cpu = Transformer(cfg)
    cpu.init_weights(0, 0.3)
    gpu = Transformer(cfg).cuda()
    gpu.load_state_dict(cpu.state_dict())
    bound, batch = VARIANTS[name].bound(MASK, EOS), rows(*RAGGED)
    left, right = bound(Net(cpu), batch, rng(3)), bound(Net(gpu), batch.to(torch.device("cuda")), rng(3))
    assert abs(left.total.item() - right.total.item()) < 1e-3 * abs(left.total.item())
    for a, b in zip(gradients(cpu, left.total), gradients(gpu, right.total), strict=True):
        assert torch.allclose(a, b.cpu(), atol=1e-2 * float(a.abs().max()) + 1e-5)


# --- the noise --------------------------------------------------------------------------------------------------------


def masks(objective: BlockDiffusion, batch: Batch, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    cut = objective.blocks(batch)
    views, p = objective.noise.masks(cut.scored, cut.count, rng(seed))
    return views.flatten(2), p.flatten(1)


def test_the_draws_are_the_published_ones() -> None:
    """t for every block, then u for every place; masked where u < (1 - 0.001) t + 0.001."""
    batch, size = rows((12, 0), (12, 0)), 4
    (first, second), _ = masks(BlockDiffusion(size).bound(MASK, EOS), batch, 7)
    draw = rng(7)
    t, u = torch.rand(6, generator=draw), torch.rand(6, size, generator=draw)
    want = (u < ((1 - 1e-3) * t + 1e-3)[:, None]).view(2, 12)
    assert torch.equal(first, want) and torch.equal(second, ~want)


def test_two_views_supervise_every_answer_token_once(model: Transformer) -> None:
    batch, v2 = rows(*RAGGED), VARIANTS["v2"].bound(MASK, EOS)
    for seed in range(5):
        (first, second), _ = masks(v2, batch, seed)
        width = batch.ids.shape[1]
        assert torch.equal(first[:, :width] ^ second[:, :width], batch.scored)
        assert not (first & second).any()
        plan = block_forward.plan(v2.blocks(batch).ids, torch.stack([first, second]).unflatten(2, (-1, 4)), MASK, 1)
        spoken = sorted(zip(plan.row.tolist(), plan.position.tolist(), strict=True))
        wanted = batch.scored.clone()
        wanted[:, 0] = False
        assert spoken == [tuple(at) for at in wanted.nonzero().tolist()]


def test_levels_per_block_and_per_sample() -> None:
    batch = rows((32, 0), (16, 0))
    _, by_block = masks(BlockDiffusion(4).bound(MASK, EOS), batch)
    _, by_sample = masks(VARIANTS["sdar"].bound(MASK, EOS), batch)
    assert len(set(by_block[1].tolist())) == 8 and len(set(by_sample[1].tolist())) == 1


def test_stratified_levels_fill_every_stratum() -> None:
    noise = BlockNoise((0.2, 0.6), stratified=True, complementary=False)
    _, p = noise.masks(torch.ones(4, 5, 2, dtype=torch.bool), torch.full((4,), 5), rng())
    strata = ((p[..., 0].flatten() - 0.2) / 0.4 * 20).floor().sort()[0]
    assert torch.equal(strata, torch.arange(20.0))


def test_every_sample_has_a_hole_if_asked() -> None:
    noise = BlockNoise((1e-3, 2e-3), t_per="sample", complementary=False, at_least_one=True)
    scored = torch.zeros(6, 3, 4, dtype=torch.bool)
    scored[1:, 1:, ::2] = True
    (view,), _ = noise.masks(scored, torch.full((6,), 3), rng())
    assert (view.flatten(1).sum(1) >= 1).tolist() == [False] + [True] * 5 and not (view & ~scored).any()


def test_resampled_blocks_lie_inside_the_clipped_interval() -> None:
    noise = BlockNoise((0.3, 0.8), complementary=False, resample=True)
    scored = torch.ones(20, 6, 8, dtype=torch.bool)
    scored[0, :, 1:] = False  # one place: no number of holes is inside the interval
    (view,), _ = noise.masks(scored, torch.full((20,), 6), rng())
    share = view[1:].float().mean(-1)
    assert share.min() >= 0.3 and share.max() <= 0.8


def test_cut_rows_are_masked_where_the_cut_says(model: Transformer) -> None:
    batch = collate([dataclasses.replace(Row(tuple(range(3, 17)), 4), cut=9), Row(tuple(range(3, 15)), 2)], EOS)
    v2 = VARIANTS["v2"].bound(MASK, EOS)
    (first, second), _ = v2._masks(v2.blocks(batch), rng())
    row = int(batch.real.sum(1).argmax())
    assert first[row].flatten().nonzero().flatten().tolist() == list(range(9, 14))
    assert second[row].flatten().nonzero().flatten().tolist() == list(range(4, 9))
    shown, scored = v2.shown(batch, rng())
    assert shown[row].nonzero().flatten().tolist() == list(range(9, 14)) and torch.equal(scored, batch.scored)


# --- what is computed -------------------------------------------------------------------------------------------------


def plan_of(holes: list[list[int]], length: int, size: int, shift: int, clean_reads: bool = False):
    """One row, the given places masked in each view."""
    masked = torch.zeros(len(holes), 1, length, dtype=torch.bool)
    for view, places in enumerate(holes):
        masked[view, 0, places] = True
    ids = torch.arange(3, 3 + length)[None].unflatten(1, (-1, size))
    return block_forward.plan(ids, masked.unflatten(2, (-1, size)), MASK, shift, clean_reads)


def computed(plan: block_forward.BlockPlan) -> set[tuple[int, int]]:
    return set(zip(plan.layout.copy.tolist(), plan.layout.index.tolist(), strict=True))


def test_what_is_computed_is_what_the_loss_needs() -> None:
    """Blocks of 4. View 1: holes inside block 1. View 2: none there; a hole at the first place of block 2."""
    plan = plan_of([[5, 6], [8]], 16, 4, 1)
    assert computed(plan) == {(1, 1), (0, 0), (0, 1)}  # token 8 is read from clean block 1: view 2's equals it
    assert plan.ids.numel() == 12 < 3 * 16
    assert sorted(plan.position.tolist()) == [5, 6, 8]


def test_a_first_token_is_read_from_the_noisy_block_before_it_where_that_has_holes() -> None:
    trained, decoded = plan_of([[6, 8]], 12, 4, 1), plan_of([[6, 8]], 12, 4, 1, clean_reads=True)
    assert computed(trained) == {(0, 0), (1, 1)}
    assert computed(decoded) == {(0, 0), (0, 1), (1, 1)}


def test_without_shift_only_blocks_with_holes() -> None:
    assert computed(plan_of([[8]], 12, 4, 0)) == {(0, 0), (0, 1), (1, 2)}
    assert computed(plan_of([[0]], 12, 4, 0)) == {(1, 0)}
    assert computed(plan_of([[0]], 12, 4, 1)) == set()


def test_clean_rows_that_speak_are_computed_and_no_others() -> None:
    """Blocks of 4, answer from token 5 on: clean block 1 says up to token 8, clean block 2 tokens 9 to 11."""
    masked, scored = torch.zeros(1, 1, 12, dtype=torch.bool), torch.zeros(1, 12, dtype=torch.bool)
    masked[0, 0, [6, 8]], scored[0, 5:] = True, True
    ids = torch.arange(3, 15)[None].unflatten(1, (-1, 4))
    cut = (t.unflatten(-1, (-1, 4)) for t in (masked, scored))
    plan = block_forward.plan(ids, next(cut), MASK, 1, True, "causal", next(cut))
    assert computed(plan) == {(0, 0), (0, 1), (0, 2), (1, 1)}
    assert plan.clean_position.tolist() == list(range(5, 12)) and plan.clean_row.tolist() == [0] * 7
    for at, position in zip(plan.clean_speakers.tolist(), plan.clean_position.tolist(), strict=True):
        assert plan.ids[at] == ids.flatten()[position - 1] and plan.positions[at] == position - 1
    first = plan.speakers[plan.position == 8]
    assert int(plan.layout.copy[first // 4]) == 0, "a block's first token is read from the clean row before it"


def test_positions_count_the_computed_rows(model: Transformer) -> None:
    """A batch of answers computes less than three copies of itself, padded."""
    batch = rows((16, 4), (24, 9), (20, 13))
    loss = VARIANTS["v2"].bound(MASK, EOS)(Net(model), batch, rng())
    assert loss.metrics["masked"] == 34
    assert loss.metrics["positions"] < 3 * 60


# --- training and decoding --------------------------------------------------------------------------------------------


def test_noisy_logits_are_decoding_logits(model: Transformer) -> None:
    """Block by block: commit the clean blocks before it through the store, then forward the partly masked block."""
    size, count = 8, 4
    batch = rows((size * count, 5))
    objective = BlockDiffusion(size).bound(MASK, EOS)
    cut = objective.blocks(batch)
    masked, _ = objective.noise.masks(cut.scored, cut.count, rng(2))
    plan = block_forward.plan(cut.ids, masked, MASK, 1)
    every = dataclasses.replace(plan, speakers=torch.arange(plan.ids.numel()))
    with torch.no_grad():
        trained = block_forward.hidden(Net(model), every).unflatten(0, (-1, size))
    denoiser = TransformerDenoiser(model, Traits(MASK, 1, BlockCausal(size), (EOS,), grid_origin="zero"))
    compared = 0
    for unit, (index, copy) in enumerate(zip(plan.layout.index.tolist(), plan.layout.copy.tolist(), strict=True)):
        if copy:
            noisy = cut.ids[0, index].masked_fill(masked[copy - 1, 0, index], MASK)
            decoded = decode_block(denoiser, cut.ids[0], index, noisy)
            assert torch.allclose(trained[unit], decoded, atol=1e-10)
            compared += 1
    assert compared >= 4


def decode_block(denoiser: TransformerDenoiser, clean: torch.Tensor, index: int, noisy: torch.Tensor) -> torch.Tensor:
    """Final hidden states of block `index` after `index` commit forwards, as the engine runs them."""
    size = len(noisy)
    store = denoiser.new_store(1, clean.numel())
    for b in range(index + 1):
        query = ((b * size, (b + 1) * size),)
        visible = BlockCausal(size).visible(query, (b + 1) * size)
        lane = Lane(0, Plan(query, torch.arange(size), query if b < index else (), visible, "full", ()))
        ids = clean[b] if b < index else noisy
        out = denoiser(QueryBatch(ids, torch.arange(*query[0]), torch.arange(size), (lane,)), store)
    return out.hidden.clone()


def test_hidden_states_of_a_causal_context_are_those_of_decoding(model: Transformer) -> None:
    """The block cache prefills the prompt, opens each block and commits it with the next; both copies must agree."""
    size, count = 8, 5
    batch = rows((size * count, 13))
    objective = BlockDiffusion(size, context="causal").bound(MASK, EOS)
    cut = objective.blocks(batch)
    masked, _ = objective.noise.masks(cut.scored, cut.count, rng(2))
    plan = block_forward.plan(cut.ids, masked, MASK, 1, True, "causal", cut.scored)
    every = dataclasses.replace(plan, speakers=torch.arange(plan.ids.numel()), clean_speakers=plan.speakers[:0])
    with torch.no_grad():
        trained = block_forward.hidden(Net(model), every).unflatten(0, (-1, size))
    units = zip(plan.layout.copy.tolist(), plan.layout.index.tolist(), trained, strict=True)
    trained_at = {(copy, index): states for copy, index, states in units}
    seen = set()
    for view, holes in enumerate(masked[:, 0], 1):
        for index, clean, noisy in decoded_blocks(model, cut.ids[0], holes):
            assert clean.shape[0] % size == 0
            for block, states in enumerate(clean.unflatten(0, (-1, size)), index - clean.shape[0] // size):
                assert torch.allclose(trained_at[0, block], states, atol=1e-9, rtol=0), (view, block)
                seen.add((0, block))
            assert torch.allclose(trained_at[view, index], noisy, atol=1e-9, rtol=0), (view, index)
            seen.add((view, index))
    assert {c for c, _ in seen} == {0, 1, 2} and len(seen) >= 10
    assert {(c, i) for c, i in trained_at if c} <= seen


def decoded_blocks(
    model: Transformer, clean: torch.Tensor, holes: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(block, hidden states of the rows committed with it, of its own rows), for every block with holes."""
    size = clean.shape[1]
    traits = Traits(MASK, 1, BlockCausal(size, "causal"), (EOS,), grid_origin="zero")
    denoiser, cache, state = TransformerDenoiser(model, traits), BlockCache(), 0
    store = denoiser.new_store(1, clean.numel())
    for b in holes.any(1).nonzero().flatten().tolist():
        canvas = torch.cat([clean[:b].flatten(), clean[b].masked_fill(holes[b], MASK)])
        decided = torch.cat([torch.ones(b * size, dtype=torch.bool), ~holes[b]])
        request = Request("a", canvas, decided, int(decided.long().cumprod(0).sum()), strategy(cache=cache))
        seq = Sequence(request, traits, canvas, decided, decided.clone(), open_holes=int((~decided).sum()))
        start, need = state, torch.arange(state, (b + 1) * size)
        plan, state = cache.plan(seq, (Block(b * size, (b + 1) * size),), need, len(canvas), state, Peers())
        rows = torch.arange(*plan.query[0])
        states = denoiser(QueryBatch(canvas[rows], rows, need - rows[0], (Lane(0, plan),)), store).hidden.clone()
        assert state == plan.final == b * size
        yield b, states[: b * size - start], states[b * size - start :]


def test_clean_rows_of_a_causal_context_are_the_autoregressive_parent(model: Transformer) -> None:
    """The added loss is the AR objective's on the answers, whatever else the batch computes."""
    for batch in (rows(*RAGGED), rows(*RAGGED, tail=4)):
        right = Autoregressive(prompt_loss=False).bound(MASK, EOS)(Net(model), batch, rng())
        plain = BlockDiffusion(4, context="causal").bound(MASK, EOS)
        half = dataclasses.replace(plain, ar_weight=0.5)
        without, added = (o(Net(model), batch, rng(3)) for o in (plain, half))
        assert added.metrics["ar_ce"] == pytest.approx(right.total.item(), abs=1e-6)
        assert added.total.item() == pytest.approx(without.total.item() + 0.5 * right.total.item(), abs=1e-6)
        assert "ar_ce" not in without.metrics and added.metrics["positions"] >= without.metrics["positions"]
        parts = gradients(model, without.total), gradients(model, right.total)
        for a, b, c in zip(*parts, gradients(model, added.total), strict=True):
            assert torch.allclose(a + 0.5 * b, c, atol=1e-6)
        assert half.held_out(Net(model), batch, rng(5)) == plain.held_out(Net(model), batch, rng(5))


def test_the_context_matters_and_blocks_of_one_token_have_only_one(model: Transformer) -> None:
    for size, same in ((4, False), (1, True)):
        ours, other = (
            BlockDiffusion(size, context=c).bound(MASK, EOS).held_out(Net(model), rows(*RAGGED), rng(3))  # type: ignore[arg-type]
            for c in ("block", "causal")
        )
        assert ours[1] == other[1] and (abs(ours[0] - other[0]) < 1e-4) == same


def test_the_nelbo_is_that_of_decoding_order(model: Transformer) -> None:
    """With one token per block everything is masked and p does not matter on average: NELBO = the chain rule's sum."""
    batch = rows((7, 2), (5, 1))
    objective = BlockDiffusion(1).bound(MASK, EOS)
    draws = [objective.held_out(Net(model), batch, rng(s)) for s in range(400)]
    exact = 0.0
    with torch.no_grad():
        for i in range(2):
            n = int(batch.real[i].sum())
            logits = model.logits(model(batch.ids[i : i + 1, :n], causal=True))[0]
            ce = F.cross_entropy(logits[:-1], batch.ids[i, 1:n], reduction="none")
            exact += float(ce[batch.scored[i, 1:n]].sum())
    assert {tokens for _, tokens in draws} == {9}
    mean = sum(nats for nats, _ in draws) / len(draws)
    assert abs(mean / exact - 1) < 0.1


def test_the_nelbo_ignores_views_weights_and_schedules(model: Transformer) -> None:
    batch = rows(*RAGGED)
    values = {
        dataclasses.replace(o, block=4, shift=0, keep_first=False).bound(MASK, EOS).held_out(Net(model), batch, rng(5))
        for o in (VARIANTS["v2"], VARIANTS["bd3lm clipped"], VARIANTS["sdar"], VARIANTS["a2d"])
    }
    assert len(values) == 1


def test_the_search_finds_the_calmest_interval(model: Transformer) -> None:
    """Against the variance of the weighted loss per block, computed here from the definition."""
    objective, batches = VARIANTS["bd3lm"].bound(MASK, EOS), [rows(*RAGGED, seed=s) for s in range(2)]
    found = search_clip(objective, Net(model), batches, rng(1), widths=(0.5, 0.8), step=0.25)
    seed = int(torch.randint(1 << 31, (1,), generator=rng(1)))
    spread = {}
    for clip in ((1e-3, 0.5), (0.25, 0.75), (0.5, 1.0), (1e-3, 0.8)):
        trial = dataclasses.replace(objective, noise=dataclasses.replace(objective.noise, clip=clip))
        draw = rng(seed)
        with torch.no_grad():
            losses = torch.cat([trial.block_losses(Net(model), b, draw) for b in batches])
        assert losses.numel() == sum(int(trial.blocks(b).scored.any(2).sum()) for b in batches)
        spread[clip] = float(losses.double().var())
    assert found == min(spread, key=spread.__getitem__)
    with pytest.raises(ConfigError, match="1/t"):
        search_clip(VARIANTS["v2"].bound(MASK, EOS), Net(model), batches, rng())


def test_block_losses_add_up_to_the_loss(model: Transformer) -> None:
    objective, batch = VARIANTS["a2d"].bound(MASK, EOS), rows((16, 0), (16, 0))
    total = objective(Net(model), batch, rng(4)).total
    assert torch.allclose(objective.block_losses(Net(model), batch, rng(4)).mean(), total.float(), atol=1e-5)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"block": 0},
        {"shift": 2},
        {"weight": "1/t"},
        {"pad": "pad"},
        {"pad_id": 3},
        {"context": "prefix"},
        {"context": "causal", "shift": 0},
        {"ar_weight": 1.0},
        {"context": "causal", "ar_weight": -0.1},
        {"context": "causal", "ar_weight": float("inf")},
        {"context": "causal", "ar_weight": float("nan")},
    ],
)
def test_bad_objectives_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        BlockDiffusion(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"clip": (0.0, 1.0)}, {"clip": (0.8, 0.3)}, {"at_least_one": True}])
def test_bad_noise_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        BlockNoise(**bad)  # type: ignore[arg-type]


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(ConfigError, match="mask token"):
        BlockDiffusion().bound(None, EOS)


def test_the_defaults_are_fast_dllm_v2() -> None:
    assert bd.fast_dllm_v2() == BlockDiffusion(32, BlockNoise((1e-3, 1.0), "block", False, True), 1, "none", "tokens")


def test_several_draws_share_one_clean_copy_and_average_their_losses(tiny_model):
    rows = [Row(tuple(range(5, 5 + n)), 3) for n in (11, 17, 20)]
    batch = collate(rows, 48)
    one = BlockDiffusion(4).bound(49, 48)
    three = BlockDiffusion(4, BlockNoise(draws=3)).bound(49, 48)
    rng = torch.Generator().manual_seed(5)
    apart = [one(Net(tiny_model), batch, rng) for _ in range(3)]
    together = three(Net(tiny_model), batch, torch.Generator().manual_seed(5))
    assert together.metrics["masked"] == 3 * int(batch.scored.sum())
    assert together.total.item() == pytest.approx(sum(x.total.item() for x in apart) / 3, abs=1e-5)
    assert together.metrics["positions"] < sum(x.metrics["positions"] for x in apart)


def test_draws_are_refused_where_they_have_no_weight():
    with pytest.raises(ConfigError, match="draws"):
        BlockDiffusion(4, BlockNoise(complementary=False, draws=2), weight="1/t")
