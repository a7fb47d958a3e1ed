"""The autoregressive objective, the shift of the masked ones, and the published format of each objective."""

import json

import pytest
import torch
from torch.nn import functional as F

from unmask.core.errors import ConfigError
from unmask.core.types import BlockCausal, Full
from unmask.models.load import load_model
from unmask.noise.masked import MaskedNoise
from unmask.train.batch import Row, collate
from unmask.train.forward import Net
from unmask.train.objectives.autoregressive import Autoregressive
from unmask.train.objectives.llada import LladaPretrain, LladaSft
from unmask.train.recipe import load_recipe
from unmask.train.trainer import Trainer

MASK, EOS = 49, 48
QWEN = ["model.qkv_bias=true", "model.rope_float32=false", "model.qk_norm=null", "model.norm_eps=1.0e-6"]


def batch(tail=0):
    rng = torch.Generator().manual_seed(1)
    rows = []
    for length, prompt in ((9, 4), (14, 1), (6, 5)):
        ids = torch.randint(0, 48, (length,), generator=rng).tolist()
        rows.append(Row((*ids, *([EOS] * tail)), prompt, tail))
    return collate(rows, EOS)


@pytest.mark.parametrize("prompt_loss", [True, False])
@pytest.mark.parametrize("tail", [0, 3])
def test_next_token_loss_equals_the_plain_one(tiny_model, prompt_loss, tail):
    b = batch(tail)
    loss = Autoregressive(prompt_loss).bound(MASK, EOS)(Net(tiny_model), b, torch.Generator())
    values = []
    for i in range(b.ids.shape[0]):
        n = int((b.real & ~b.tail)[i].sum())
        logits = tiny_model.logits(tiny_model(b.ids[i : i + 1, :n], causal=True))[0]
        for p in range(n - 1):
            if prompt_loss or bool(b.scored[i, p + 1]):
                values.append(F.cross_entropy(logits[p], b.ids[i, p + 1]))
    assert loss.total.item() == pytest.approx(torch.stack(values).mean().item(), abs=1e-5)
    assert loss.metrics["positions"] == b.tokens


def test_causal_rows_do_not_see_what_follows(tiny_model):
    b = batch()
    at = torch.zeros_like(b.real)
    at[:, 3] = True
    changed = b.ids.clone()
    changed[:, 4:] = 7
    net = Net(tiny_model)
    same = net.hidden(b.ids, b.real, at, causal=True), net.hidden(changed, b.real, at, causal=True)
    assert torch.allclose(*same, atol=1e-6)
    free = net.hidden(b.ids, b.real, at), net.hidden(changed, b.real, at)
    assert not torch.allclose(*free, atol=1e-3)


def test_causal_attention_is_the_same_for_long_rows(tiny_model, monkeypatch):
    from unmask.train import forward

    b = batch()
    plain = Net(tiny_model).hidden(b.ids, b.real, b.real, causal=True)
    monkeypatch.setattr(forward, "_SHORT", 4)
    assert torch.allclose(Net(tiny_model).hidden(b.ids, b.real, b.real, causal=True), plain, atol=1e-5)


def test_held_out_is_the_sum_of_the_losses(tiny_model):
    b, objective = batch(), Autoregressive()
    nats, tokens = objective.held_out(Net(tiny_model), b, torch.Generator())
    assert tokens == int(b.real[:, 1:].sum())
    assert nats / tokens == pytest.approx(objective(Net(tiny_model), b, torch.Generator()).metrics["loss"], abs=1e-5)


@pytest.mark.parametrize("objective", [LladaPretrain(random_length=0.0, shift=1), LladaSft(shift=1)])
def test_with_a_shift_the_row_before_speaks(tiny_model, objective):
    b = batch()
    bound = objective.bound(MASK, EOS)
    loss = bound(Net(tiny_model), b, torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    if isinstance(objective, LladaPretrain):
        torch.rand(1, generator=rng)
    keep = ~b.scored
    keep[:, 0] = True
    (view,) = MaskedNoise(mask_id=MASK).corrupt(b.ids, keep, rng)
    logits = tiny_model.logits(tiny_model(view.ids, b.real))
    rows, columns = view.masked.nonzero(as_tuple=True)
    ce = F.cross_entropy(logits[rows, columns - 1], b.ids[rows, columns], reduction="none")
    assert loss.metrics["ce"] == pytest.approx(ce.mean().item(), abs=1e-5)


FORMATS = {
    "qwen2": (["objective={kind: ar}", *QWEN], BlockCausal(1), 1),
    "llama": (["objective={kind: ar}", *QWEN, "model.qkv_bias=false"], BlockCausal(1), 1),
    "Dream": (["objective={kind: llada-sft, shift: 1}", *QWEN], Full(), 1),
    "llada": ([], Full(), 0),
    "Fast_dLLM_Qwen": (["objective={kind: block-diffusion, block: 4}", *QWEN], BlockCausal(4), 1),
    "unmask_context_causal": (
        ["objective={kind: block-diffusion, block: 4, context: causal, ar_weight: 1.0}", *QWEN],
        BlockCausal(4, "causal"),
        1,
    ),
    "sdar": (
        ["objective={kind: block-diffusion, block: 8, shift: 0}", *QWEN, "model.qk_norm=head", "model.qkv_bias=false"],
        BlockCausal(8),
        0,
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_each_objective_exports_the_format_of_its_kind(recipe_file, tmp_path, kind):
    overrides, attention, shift = FORMATS[kind]
    trainer = Trainer(load_recipe(recipe_file, ["run.steps=2", *overrides]), tmp_path / "run")
    done = list(trainer.fit())[-1]
    config = json.loads((done.path / "config.json").read_text())
    found = load_model(done.path, dtype="fp32")
    assert config["model_type"] == kind
    assert (found.traits.attention, found.traits.shift) == (attention, shift)
    assert found.traits.mask_id == (None if attention == BlockCausal(1) else trainer.mask_id)
    assert found.traits.eos_ids == (trainer.eos_id,)
    assert done.positions >= done.tokens > 0 or kind in ("Fast_dLLM_Qwen", "unmask_context_causal", "sdar")


def test_a_shape_the_format_cannot_hold_is_refused_before_training(recipe_file, tmp_path):
    with pytest.raises(ConfigError, match="qk_norm"):
        Trainer(load_recipe(recipe_file, ["objective={kind: ar}", "model.rope_float32=false"]), tmp_path / "run")


def test_a_child_starts_from_its_parent_and_keeps_its_shape(recipe_file, tmp_path):
    parent = list(Trainer(load_recipe(recipe_file, ["objective={kind: ar}", *QWEN]), tmp_path / "a").fit())[-1].path
    child = load_recipe(
        recipe_file,
        [f"model={{path: {parent}}}", "objective={kind: block-diffusion, block: 4}", "run.steps=1", "optim.lr=1.0e-12",
         "optim.muon_lr=1.0e-12", "run.export=fp32"],
    )  # fmt: skip
    made = list(Trainer(child, tmp_path / "b").fit())[-1].path
    before, after = load_model(parent, dtype="fp32"), load_model(made, dtype="fp32")
    assert before.model.cfg == after.model.cfg
    for (name, a), (_, b) in zip(before.model.named_parameters(), after.model.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def test_adapters_learn_and_are_folded_into_plain_weights(recipe_file, tmp_path):
    parent = list(Trainer(load_recipe(recipe_file, ["objective={kind: ar}", *QWEN]), tmp_path / "a").fit())[-1].path
    overrides = [
        f"model={{path: {parent}, lora: {{rank: 4}}}}", "objective={kind: block-diffusion, block: 4}",
        "optim={kind: adamw, lr: 0.01, warmup: 1}", "run.steps=6", "run.ema=0.5",
    ]  # fmt: skip
    trainer = Trainer(load_recipe(recipe_file, overrides), tmp_path / "b")
    events = list(trainer.fit())
    assert {n.rpartition(".")[2] for n, _ in trainer._trained()} == {"lora_a", "lora_b", "lora_rows"}
    before, after = load_model(parent, dtype="fp32"), load_model(events[-1].path, dtype="fp32")
    changed = [
        name
        for (name, a), (_, b) in zip(before.model.named_parameters(), after.model.named_parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert "layers.0.qkv.weight" in changed
    assert "layers.0.attn_norm" not in changed
    again = Trainer(load_recipe(recipe_file, [*overrides[:-2], "run.steps=9", "run.ema=0.5"]), tmp_path / "b")
    resumed = list(again.fit())
    assert resumed[0].step == 6
