"""Mode T and mode D against their definitions written out, and the loop around them: falling losses, bounds, damaged
gradients, resuming."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from unmask.core.errors import ConfigError, RunError
from unmask.models.birwkv_net import CLEAN, MASKED, NOISY, NULL, BiRWKV
from unmask.models.config import BiRWKVConfig
from unmask.models.transformer import Transformer
from unmask.noise.gaussian import snr_threshold
from unmask.train.batch import Batch, Row, collate
from unmask.train.events import Done, Progress
from unmask.train.export import published_config
from unmask.train.forward import Net
from unmask.train.objectives.embedding_diffusion import EmbeddingDiffusion, View, recurrent
from unmask.train.objectives.llada import LladaPretrain
from unmask.train.recipe import load_recipe
from unmask.train.trainer import Trainer, means

VOCAB, MASK, EOS, DIM = 40, 39, 1, 8
MODES, PREDICTIONS = ("mixed", "diffusion", "token"), ("sample", "epsilon", "v_prediction")
SCHEDULES = ("linear", "cosine", "sigmoid", "logsnr_linear", "logit_normal")


def new_model(spread: float = 0.1, **changes: Any) -> BiRWKV:
    torch.set_num_threads(1)
    cfg = BiRWKVConfig(**{"vocab_size": VOCAB, "dim": 16, "layers": 1, "mlp_dim": 24, "embed_dim": DIM} | changes)
    model = BiRWKV(cfg)
    model.init_weights(0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(spread * torch.randn(p.shape, generator=draw))
    return model


def rows(*shapes: tuple[int, int], seed: int = 0) -> Batch:
    """Rows of (length, prompt) with random tokens."""
    draw = torch.Generator().manual_seed(seed)
    made = [Row(tuple(torch.randint(2, 38, (n,), generator=draw).tolist()), p) for n, p in shapes]
    return collate(made, EOS)


BATCH = rows((9, 3), (5, 1), (7, 0), (9, 8))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(**options: Any) -> EmbeddingDiffusion:
    return EmbeddingDiffusion(**{"self_conditioning": 0.0, "prompt_dropout": 0.0} | options).bound(MASK, EOS)


def drawn(o: EmbeddingDiffusion, model: BiRWKV, batch: Batch = BATCH, seed: int = 0) -> View:
    return o._view(model, batch, rng(seed))


def spoken(
    model: BiRWKV, batch: Batch, view: View, vectors: Tensor, kinds: Tensor, tau: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden states and logits [B, T, .] by the backbone's own parts."""
    hidden = model.run(model.enter(vectors, None, kinds), tau, batch.real)
    level = torch.where(view.noisy, view.level[:, None], torch.inf)
    logits = model.speak(hidden.flatten(0, 1), vectors.flatten(0, 1), level.flatten())
    return hidden, logits.view(*batch.ids.shape, -1)


# ---- definitions -----------------------------------------------------------------------------------------------------


def test_mode_t_is_llada_over_masked_vectors() -> None:
    model, o = new_model(), objective(mode="token")
    view, found = drawn(o, model), o(Net(model), BATCH, rng())
    masked, t = view.masked, view.t
    assert masked.any() and not (masked & ~BATCH.scored).any() and bool(((t > 1e-3) & (t < 1)).all())
    vectors = model.table[BATCH.ids].masked_fill(masked[..., None], 0.0)
    tau = model.masked_level.expand(4, -1)
    _, logits = spoken(model, BATCH, view, vectors, torch.where(masked, MASKED, CLEAN), tau)
    total = torch.zeros(())
    for i in range(4):
        ce = F.cross_entropy(logits[i, masked[i]], BATCH.ids[i, masked[i]], reduction="sum")
        total = total + ce / t[i] / BATCH.scored[i].sum() / 4
    assert found.total.item() == pytest.approx(total.item(), rel=1e-5)
    assert set(found.metrics) == {"loss", "ce_masked", "positions", "table_cosine"}


@pytest.mark.parametrize("weighting", ["min_snr", "elbo", "none"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_mode_d_and_its_gradient(prediction: str, weighting: str) -> None:
    """Cross-entropy and weighted squared error at one level per row; the target is no path to the token table."""
    o = objective(mode="diffusion", token_loss_weight=0.3, vector_loss_weight=0.7, weighting=weighting)

    def by_hand(model: BiRWKV, target_follows: bool) -> Tensor:
        view, hit = drawn(o, model), BATCH.scored
        g = view.level
        signal = torch.sigmoid(g)[:, None, None]
        clean = model.table[BATCH.ids]
        z = torch.where(hit[..., None], signal.sqrt() * clean + (1 - signal).sqrt() * view.eps, clean)
        tau = model.levels(g)
        hidden, logits = spoken(model, BATCH, view, z, torch.where(hit, NOISY, CLEAN), tau)
        aim = clean if target_follows else clean.detach()
        if prediction == "sample":
            said, target, snr = torch.softmax(logits, -1) @ model.table, aim, torch.ones(4)
        else:
            said = torch.stack([model.vector(h, c.expand(len(h), -1)) for h, c in zip(hidden, tau, strict=True)])
            velocity = signal.sqrt() * view.eps - (1 - signal).sqrt() * aim
            target = view.eps if prediction == "epsilon" else velocity
            snr = g.exp() if prediction == "epsilon" else g.exp() + 1
        span = 12.0  # of logsnr_linear: -dg/dt
        weight = {
            "none": torch.ones(4),
            "min_snr": g.exp().clamp(max=5) / snr,
            "elbo": 0.5 * g.exp() * span * DIM / snr,
        }
        error = (said - target).square().mean(-1) * weight[weighting][:, None]
        ce = F.cross_entropy(logits.transpose(1, 2), BATCH.ids, reduction="none")
        own = torch.where(hit, 0.3 * ce + 0.7 * error, 0.0).sum(1)
        return (own / hit.sum(1)).mean()

    model = new_model(prediction=prediction)
    name = "transformer.wte.weight"
    found, right = o(Net(model), BATCH, rng()).total, by_hand(model, False)
    assert found.item() == pytest.approx(right.item(), rel=1e-4)
    grads = [
        torch.autograd.grad(loss, dict(model.named_parameters())[name])[0]
        for loss in (found, right, by_hand(model, True))
    ]
    assert torch.allclose(grads[0], grads[1], rtol=1e-3, atol=1e-6)
    if prediction != "epsilon":
        assert not torch.allclose(grads[0], grads[2], rtol=1e-2, atol=1e-5)


def test_prompts_are_clean_and_targets_are_all_noised() -> None:
    model, o = new_model(), objective(mode="diffusion")
    view, given = drawn(o, model), BATCH.real & ~BATCH.scored
    assert torch.equal(view.noisy, BATCH.scored) and torch.equal(view.spoken, BATCH.scored)
    assert torch.equal(view.vectors[given], model.table[BATCH.ids[given]])
    assert set(view.kinds[given].tolist()) == {CLEAN} and set(view.kinds[BATCH.scored].tolist()) == {NOISY}
    assert bool(((view.vectors - view.clean)[BATCH.scored].abs().amax(-1) > 1e-3).all())
    before = o(Net(model), BATCH, rng()).metrics["loss"]
    moved = dataclasses.replace(BATCH, ids=torch.where(given, (BATCH.ids + 5) % 38, BATCH.ids))
    assert o(Net(model), moved, rng()).metrics["loss"] != before, "the prompt is read"
    padded = dataclasses.replace(BATCH, ids=torch.where(BATCH.real, BATCH.ids, 7))
    assert o(Net(model), padded, rng()).metrics["loss"] == pytest.approx(before, rel=1e-6), "pads are not"


@pytest.mark.parametrize("mode", ["token", "diffusion"])
def test_dropped_prompts_are_null_and_unread(mode: str) -> None:
    model, o = new_model(), objective(mode=mode, prompt_dropout=1.0)
    given = BATCH.real & ~BATCH.scored
    assert torch.equal(drawn(o, model).kinds == NULL, given)
    moved = dataclasses.replace(BATCH, ids=torch.where(given, (BATCH.ids + 5) % 38, BATCH.ids))
    assert o(Net(model), moved, rng()).metrics["loss"] == o(Net(model), BATCH, rng()).metrics["loss"]
    many = rows(*[(6, 3)] * 400)
    dropped = (drawn(objective(mode=mode, prompt_dropout=0.1), model, many).kinds == NULL).any(1)
    assert 15 <= int(dropped.sum()) <= 70


def test_a_hint_stands_only_where_it_was_drawn() -> None:
    model = new_model()
    many = rows(*[(6, 2)] * 200)
    o = objective(self_conditioning=0.5, token_share=0.4)
    view = drawn(o, model, many)
    hint, cost = o._hint(Net(model), view, rng(7))
    assert hint is not None and not hint.requires_grad
    hinted = hint.abs().sum(-1) > 0
    assert not (hinted & ~view.noisy).any() and not hinted[view.token].any()
    share = float(hinted.any(1).sum() / (~view.token).sum())
    assert 0.35 < share < 0.65 and cost == 6 * int(hinted.any(1).sum())
    assert torch.equal(hinted.any(1), (hinted == view.noisy).all(1) & hinted.any(1)), "all targets of a row, or none"
    assert objective()._hint(Net(model), view, rng(7)) == (None, 0.0)
    assert o(Net(model), many, rng()).metrics["positions"] > many.real.sum()


def test_shares_of_the_modes() -> None:
    many = rows(*[(4, 1)] * 600)
    model = new_model()
    assert 120 <= int(drawn(objective(), model, many).token.sum()) <= 240
    for mode, share in (("token", 600), ("diffusion", 0)):
        assert int(drawn(objective(mode=mode), model, many).token.sum()) == share
    view = drawn(objective(mode="diffusion", hybrid=0.5), model, many)
    both = view.masked.any(1)
    assert 0.25 < float(both.float().mean()) < 0.5
    assert torch.equal(view.masked | view.noisy, many.scored) and not (view.masked & view.noisy).any()


CUT = collate([Row((5, 6, 7, 8, 9, 10, 11), 2, cut=4), Row((12, 13, 14, 15, 16, 17, 18), 2)], EOS)
"""A row that is hidden from position 4 on and nowhere else, and one as usual."""


def test_a_row_with_a_cut_is_hidden_behind_it_and_nowhere_else() -> None:
    model, behind = new_model(), torch.tensor([False] * 4 + [True] * 3)
    for mode in MODES:
        o = objective(mode=mode, prompt_dropout=1.0)
        for seed in range(5):
            view = drawn(o, model, CUT, seed)
            hit = view.masked if view.token[0] else view.noisy
            assert torch.equal(hit[0], behind) and torch.equal(view.spoken[0], behind)
            assert view.kinds[0, :4].tolist() == [NULL, NULL, CLEAN, CLEAN], "only the prompt is left out for guidance"
            assert bool((view.spoken[1] <= CUT.scored[1]).all())
    o = objective(mode="token")
    view, found = drawn(o, model, CUT), o(Net(model), CUT, rng())
    row = collate([Row((5, 6, 7, 8, 9, 10, 11), 2, cut=4)], EOS)
    alone = o(Net(model), row, rng()).total
    vectors = model.table[row.ids].masked_fill(behind[None, :, None], 0.0)
    kinds, tau = torch.where(behind, MASKED, CLEAN)[None], model.masked_level.expand(1, -1)
    _, logits = spoken(model, row, drawn(o, model, row), vectors, kinds, tau)
    assert alone.item() == pytest.approx(F.cross_entropy(logits[0, 4:], row.ids[0, 4:]).item(), rel=1e-5), (
        "all of it, once"
    )
    assert found.total.item() > alone.item() / 2 and view.t[0] == 1.0
    hidden, scored = o.shown(CUT, rng())
    assert torch.equal(hidden[0], behind) and torch.equal(scored, CUT.scored)


def test_a_bound_knows_no_cuts() -> None:
    model, whole = new_model(), dataclasses.replace(CUT, hidden=torch.zeros_like(CUT.hidden))
    with torch.no_grad():
        for mode in MODES:
            found, plain = (objective(mode=mode).held_out(Net(model), b, rng()) for b in (CUT, whole))
            assert found == plain and found[1] == 10


def test_positions_count_every_row_that_went_through_the_layers() -> None:
    """Rounding noises the rows of mode D again, and only those."""
    model, many = new_model(), rows(*[(6, 2)] * 50)
    for mode in MODES:
        o = objective(mode=mode, rounding_weight=1.0, self_conditioning=0.5)
        draw = rng()
        view = o._view(model, many, draw)
        again, (_, hint) = int(view.real[~view.token].sum()), o._hint(Net(model), view, draw)
        found = o(Net(model), many, rng()).metrics["positions"]
        assert found == 300 + again + hint, mode
        assert (again, hint) == (0, 0) if mode == "token" else again > 150
    walked = 0

    def counted(*args: Any) -> None:
        nonlocal walked
        walked += args[1][0].shape[0] * args[1][0].shape[1]

    model.blocks[0].register_forward_pre_hook(counted)
    o = objective(rounding_weight=1.0, self_conditioning=0.5)
    assert o(Net(model), many, rng()).metrics["positions"] == walked


def test_the_schedule_is_centred_on_what_can_be_told_apart() -> None:
    o = EmbeddingDiffusion()
    low, high = o.range(VOCAB, DIM)
    assert (low + high) / 2 == pytest.approx(snr_threshold(VOCAB, DIM) - 1)
    assert EmbeddingDiffusion(centre=False).range(VOCAB, DIM) == (-7.0, 5.0)


def test_a_head_of_its_own_is_trained_by_default() -> None:
    """With conditioning "origin" the noise head says the clean vectors, so it must have a loss."""
    model = new_model(conditioning="origin", embed_dim=16, prediction="sample")
    objective(mode="diffusion")(Net(model), BATCH, rng()).total.backward()
    assert model.noise_head.weight.grad is not None and bool(model.noise_head.weight.grad.any())


def test_checkpointing_changes_nothing() -> None:
    model, o = new_model(), objective(self_conditioning=0.5, rounding_weight=0.5, hybrid=0.5)
    grads = []
    for checkpointing in (False, True):
        model.zero_grad()
        o(Net(model, checkpointing), BATCH, rng()).total.backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][n], grads[1][n], rtol=1e-4, atol=1e-6) for n in grads[0])


def test_batches_with_nothing_to_say_are_no_accident() -> None:
    """Rows without targets, and a draw in which everything noised is masked."""
    model = new_model()
    empty = rows((4, 4), (3, 3))
    for mode in MODES:
        found = objective(mode=mode, rounding_weight=1.0)(Net(model), empty, rng())
        found.total.backward()
        assert found.total.item() == 0.0
    short = rows((1, 0))
    for seed in range(6):
        loss = objective(mode="diffusion", hybrid=1.0, rounding_weight=1.0)(Net(model), short, rng(seed))
        assert math.isfinite(loss.total.item())


# ---- learning --------------------------------------------------------------------------------------------------------


def learns(model: BiRWKV, o: EmbeddingDiffusion, steps: int = 20) -> tuple[float, float]:
    """The mean loss over fixed draws before and after a few steps on one batch."""
    batch, net = rows((8, 2), (8, 0), (6, 1), (8, 3), seed=3), Net(model)
    batch = dataclasses.replace(batch, ids=2 + batch.ids % 3)  # three tokens, quickly learnt

    def now() -> float:
        with torch.no_grad():
            return sum(float(o(net, batch, rng(100 + i)).total) for i in range(3)) / 3

    before, optimizer = now(), torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        loss = o(net, batch, rng(step))
        loss.total.backward()
        assert math.isfinite(loss.metrics["loss"])
        optimizer.step()
    return before, now()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_kind_of_run_learns(mode: str, prediction: str) -> None:
    """20 steps of every mode, prediction and schedule: the loss falls."""
    for schedule in SCHEDULES:
        o = EmbeddingDiffusion(mode=mode, schedule=schedule, hybrid=0.2).bound(MASK, EOS)
        low, high = o.range(VOCAB, DIM)
        before, after = learns(new_model(0.02, prediction=prediction, levels=(low, high)), o)
        assert after < 0.8 * before, (mode, prediction, schedule)


def test_the_published_conditioning_learns_too() -> None:
    for prediction in PREDICTIONS:
        model = new_model(0.0, conditioning="origin", embed_dim=16, prediction=prediction, logit_scale=0.25)
        before, after = learns(model, EmbeddingDiffusion().bound(MASK, EOS))
        assert before < 12 and after < 0.97 * before


# ---- bounds ----------------------------------------------------------------------------------------------------------


UNIFORM = rows(*[(25, 1)] * 96, seed=5)


def test_the_mask_bound_of_a_silent_model_is_the_vocabulary() -> None:
    model = new_model(0.0)
    with torch.no_grad():
        total, count = objective(mode="token").held_out(Net(model), UNIFORM, rng())
    error = math.log(VOCAB) * math.sqrt((math.log(1000) - 1) / count)
    assert count == 96 * 24 and abs(total / count - math.log(VOCAB)) < 4 * error


def test_the_diffusion_bound_of_the_exact_posterior_is_the_truth() -> None:
    """With evidence alone the denoiser is exact for tokens that are uniform whatever comes before: the bound is ln V.
    A net that spoils it, or has no evidence, pays more."""

    def bound(model: BiRWKV) -> float:
        o = objective(mode="diffusion", schedule="logsnr_linear(high=7.0, low=-9.0)", centre=False)
        with torch.no_grad():
            found = [o.held_out(Net(model), UNIFORM, rng(seed)) for seed in range(6)]
        assert {count for _, count in found} == {96 * 24}
        return sum(total for total, _ in found) / (6 * 96 * 24)

    levels = (-9.0, 7.0)
    assert bound(new_model(0.0, levels=levels)) == pytest.approx(math.log(VOCAB), abs=0.3)
    assert bound(new_model(0.2, levels=levels)) > math.log(VOCAB) + 0.5
    assert bound(new_model(0.0, levels=levels, evidence=False)) > 10


def test_held_out_draws_no_dropout_and_no_hint() -> None:
    model = new_model()
    plain = objective(mode="mixed")
    noisy = EmbeddingDiffusion(prompt_dropout=1.0, hybrid=1.0, self_conditioning=1.0).bound(MASK, EOS)
    with torch.no_grad():
        assert plain.held_out(Net(model), BATCH, rng()) == noisy.held_out(Net(model), BATCH, rng())
        assert plain.held_out(Net(model), BATCH, rng())[1] == int(BATCH.scored.sum())


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_wrong_pairs_are_refused(tmp_path: Path, tiny_model: Transformer, tokenizer_dir: Path) -> None:
    for old, new in (("embedding-diffusion", "llada-sft"), ("d_model: 16, n_layers: 1, embedding_dim: 8", TRANSFORMER)):
        path = tmp_path / "wrong.yaml"
        path.write_text(RECIPE.replace("TOKENIZER", str(tokenizer_dir)).replace(old, new), encoding="utf-8")
        with pytest.raises(ConfigError, match="does not fit the model"):
            load_recipe(path)
    with pytest.raises(ConfigError, match="embedding-diffusion"):
        objective()(Net(tiny_model), BATCH, rng())
    with pytest.raises(ConfigError, match="transformer"):
        LladaPretrain().bound(MASK, EOS)(Net(new_model()), BATCH, rng())
    assert recurrent(Net(new_model())).cfg.dim == 16


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"token_share": 1.5}, "token_share"),
        ({"hybrid": -0.1}, "hybrid"),
        ({"rounding_weight": -1.0}, "rounding_weight"),
        ({"token_loss_weight": 0.0, "vector_loss_weight": 0.0}, "no loss"),
        ({"schedule": "quadratic"}, "quadratic"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(Exception, match=word) as caught:
        EmbeddingDiffusion(**options)
    assert getattr(caught.value, "exit_code", None) == 2


def test_fine_tuning_keeps_the_levels_of_the_checkpoint(tiny_model: Transformer) -> None:
    o = EmbeddingDiffusion()
    own = new_model(levels=o.range(VOCAB, DIM)).cfg
    assert published_config(own, o, (MASK, EOS), {"n_layers": 1}) == {"n_layers": 1, "diffusion_mode": "mixed"}
    other = new_model(levels=(-7.0, 5.0)).cfg
    with pytest.raises(ConfigError, match="those of the checkpoint") as caught:
        published_config(other, o, (MASK, EOS), {})
    assert "logsnr_linear(high=5.0000, low=-7.0000)" in caught.value.remedy
    said = EmbeddingDiffusion(schedule="logsnr_linear(high=5.0000, low=-7.0000)", centre=False)
    assert published_config(other, said, (MASK, EOS), {}) == {"diffusion_mode": "mixed"}
    with pytest.raises(ConfigError, match="birwkv"):
        published_config(tiny_model.cfg, o, (MASK, EOS), {})


# ---- the loop --------------------------------------------------------------------------------------------------------


TRANSFORMER = "dim: 16, layers: 1, heads: 2, mlp_dim: 16"
RECIPE = """\
# Claim: none, a test; `unmask train tiny.yaml`; one second.
name: tiny
tokenizer: {path: TOKENIZER}
model: {d_model: 16, n_layers: 1, embedding_dim: 8}
data:
  kind: generator
  source: unmask.evals.tasks.synthetic:stream
  batch_tokens: 100
  stages: [{start: 0, mix: {copy: 1, one_step: 1}}]
objective: {kind: embedding-diffusion}
optim: {kind: adamw, lr: 0.01, warmup: 2}
run: {steps: 6, precision: fp32, log_every: 1, save_every: 4, device: cpu, threads: 1}
"""


@pytest.fixture
def birwkv_recipe(tmp_path: Path, tokenizer_dir: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.replace("TOKENIZER", str(tokenizer_dir)), encoding="utf-8")
    return path


def numbers(events: Any) -> list[tuple[int, dict[str, float]]]:
    return [(e.step, e.metrics) for e in events if isinstance(e, Progress)]


@pytest.mark.parametrize(
    "overrides",
    [[], ["run.accumulate=2", "run.ema=0.9", "run.precision=bf16", "optim.kind=muon"]],
    ids=["plain", "accumulated, averaged, bf16, muon"],
)
def test_a_resumed_run_has_the_very_same_losses(birwkv_recipe: Path, tmp_path: Path, overrides: list[str]) -> None:
    recipe = load_recipe(birwkv_recipe, ["run.steps=24", *overrides])
    whole = list(Trainer(recipe, tmp_path / "whole").fit())
    run = Trainer(recipe, tmp_path / "cut").fit()
    next(e for e in run if isinstance(e, Progress) and e.step == 6)  # after the checkpoint of step 4
    run.close()
    resumed = Trainer(recipe, tmp_path / "cut")
    again = list(resumed.fit())
    assert len(numbers(again)) == 20 and numbers(again) == numbers(whole)[4:]
    a, b = (load_file(tmp_path / n / "model/model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    if resumed.ema:
        name = "transformer.embed_in.weight"
        assert torch.equal(b[name].float(), resumed.ema[name].bfloat16().float())
        assert not torch.equal(resumed.ema[name], dict(resumed.model.named_parameters())[name])


class Damaged:
    """An objective whose gradient is NaN at some calls."""

    def __init__(self, inner: Any, calls: set[int]) -> None:
        self.inner, self.calls, self.count = inner, calls, itertools.count()

    def __call__(self, *args: Any) -> Any:
        loss = self.inner(*args)
        return dataclasses.replace(loss, total=loss.total * math.nan) if next(self.count) in self.calls else loss


def test_steps_without_a_gradient_are_counted_and_then_end_the_run(birwkv_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(birwkv_recipe, ["run.skip_bad=2", "run.steps=9"])
    trainer = Trainer(recipe, tmp_path / "run")
    trainer.objective = Damaged(trainer.objective, {1, 4})
    events = list(trainer.fit())
    found = dict(numbers(events))
    assert isinstance(events[-1], Done) and sorted(found) == list(range(1, 10))
    assert [found[2], found[5]] == [{"skipped": 1.0}, {"skipped": 2.0}]
    assert all(math.isfinite(found[s]["loss"]) for s in found if s not in (2, 5))
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())

    trainer = Trainer(recipe, tmp_path / "other")
    trainer.objective = Damaged(trainer.objective, {0, 2, 5})
    with pytest.raises(RunError, match="after 2 that were left out"):
        list(trainer.fit())
    again = Trainer(recipe, tmp_path / "other")
    run = again.fit()
    next(run)
    assert (again.step, again.skipped) == (4, 2), "the count goes on after a restart"
    strict = Trainer(load_recipe(birwkv_recipe), tmp_path / "third")
    strict.objective = Damaged(strict.objective, {0})
    with pytest.raises(RunError, match="step 0 is not finite"):
        list(strict.fit())


def test_a_skipped_step_changes_no_weight(birwkv_recipe: Path, tmp_path: Path) -> None:
    trainer = Trainer(load_recipe(birwkv_recipe, ["run.skip_bad=1"]), tmp_path / "run")
    trainer.objective = Damaged(trainer.objective, {1})
    trainer._one_step()
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    assert trainer._one_step() == {"skipped": 1.0}
    assert all(torch.equal(before[n], p) for n, p in trainer.model.named_parameters())
    trainer._one_step()
    assert not all(torch.equal(before[n], p) for n, p in trainer.model.named_parameters())


def test_a_logged_number_is_the_mean_of_those_that_have_it() -> None:
    found = means([{"loss": 1.0, "ce_masked": 4.0}, {"loss": 3.0}, {"skipped": 1.0}])
    assert found == {"loss": 2.0, "ce_masked": 4.0, "skipped": 1.0}


def test_config_of_a_trained_model(birwkv_recipe: Path, tmp_path: Path) -> None:
    trainer = Trainer(load_recipe(birwkv_recipe, ["objective.mode=diffusion"]), tmp_path / "run")
    low, high = trainer.objective.range(trainer.config["vocab_size"], 8)
    assert trainer.config["logsnr_range"] == pytest.approx([low, high], abs=1e-6)
    assert trainer.config["diffusion_mode"] == "diffusion" and trainer.config["scale_logits"] is False
    assert trainer.model.cfg.levels == tuple(trainer.config["logsnr_range"])
