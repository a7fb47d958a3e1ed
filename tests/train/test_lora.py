"""Adapters change nothing at first, train alone, and fold back into plain tensors."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from unmask.core.errors import ConfigError
from unmask.models.config import TransformerConfig
from unmask.models.family import find_family
from unmask.models.load import load_model
from unmask.models.save import published_tensors, save_checkpoint
from unmask.models.transformer import Transformer
from unmask.train.forward import Net
from unmask.train.lora import LoraConfig, LoraLinear, folded, inject, load_lora_state, lora_state, merge
from unmask.train.optim import OptimConfig, build_optimizers

IDS = torch.arange(40).view(2, 20) % 50
MASK = 47


@pytest.fixture(params=["tied", "untied-bias"])
def model(request):
    torch.set_num_threads(1)
    plain = request.param == "untied-bias"
    found = Transformer(
        TransformerConfig(
            vocab_size=50, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=48, tied=not plain, qkv_bias=plain
        )
    )
    found.init_weights(0, std=0.2)
    return found


def trained(model, cfg, rows=()):
    """Adapters with values that matter."""
    inject(model, cfg, seed=1, rows=rows)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in lora_state(model).values():
            p.add_(torch.randn(p.shape, generator=rng) * 0.1)


def test_fresh_adapters_change_nothing_and_keep_every_name(model):
    names, want = [n for n, _ in model.named_parameters()], model.logits(model(IDS))
    inject(model, LoraConfig(4), seed=0, rows=(MASK,))
    assert torch.equal(model.logits(model(IDS)), want)
    assert [n for n, _ in model.named_parameters() if "lora_" not in n] == names


def test_only_adapters_are_trained(model):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    inject(model, LoraConfig(4), seed=0, rows=(MASK,))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(lora_state(model))
    first = {n: t.clone() for n, t in lora_state(model).items()}
    ids, real = IDS.where(IDS % 3 != 0, MASK), torch.ones_like(IDS, dtype=torch.bool)
    optimizers = build_optimizers(model, OptimConfig("muon", lr=1e-2))
    net = Net(model, checkpointing=True)
    losses = []
    for _ in range(5):
        loss = net.losses(net.hidden(ids, real, ids == MASK), IDS[ids == MASK]).mean()
        losses.append(loss.item())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    assert all(not torch.equal(t, first[n]) for n, t in lora_state(model).items())


@pytest.mark.parametrize(
    ("kind", "rows", "counts"), [("adamw", (MASK,), [17]), ("muon", (MASK,), [1, 16]), ("muon", (), [16])]
)
def test_the_optimizers_hold_the_adapters_and_nothing_else(model, kind, rows, counts):
    inject(model, LoraConfig(4), seed=0, rows=rows)
    optimizers = build_optimizers(model, OptimConfig(kind))
    held = [{id(p) for g in o.param_groups for p in g["params"]} for o in optimizers]
    assert [len(h) for h in held] == counts
    assert set.union(*held) == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("targets", [("qkv",), ("out", "down"), ("qkv", "out", "gate_up", "down")])
def test_merging_keeps_the_outputs(model, targets):
    trained(model, LoraConfig(4, alpha=6.0, targets=targets), rows=(MASK, 3))
    want = model(IDS)
    changed = copy.deepcopy(model)
    merge(changed)
    assert torch.allclose(changed(IDS), want, atol=1e-5)
    assert not lora_state(changed)
    assert all(p.requires_grad for p in changed.parameters())
    assert not any(isinstance(m, LoraLinear) for m in changed.modules())
    plain = folded(model)
    assert all(torch.equal(plain[n], p) for n, p in changed.named_parameters())
    assert torch.equal(model(IDS), want)  # folding left the model alone


def test_a_tied_head_differs_only_at_the_trained_row(model):
    trained(model, LoraConfig(4), rows=(MASK,))
    want = model.logits(model(IDS))
    merge(model)
    off = (model.logits(model(IDS)) - want).abs().amax((0, 1)) > 1e-4
    assert off.nonzero().flatten().tolist() == ([MASK] if model.cfg.tied else [])


def test_a_merged_model_is_saved_under_the_published_names(tmp_path):
    config = {
        "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": True,
        "max_position_embeddings": 128,
    }  # fmt: skip
    model = Transformer(find_family(config).shape(config))
    model.init_weights(0)
    names = set(published_tensors(model, config))
    trained(model, LoraConfig(4))
    want = model(IDS)
    save_checkpoint(model, config, tmp_path / "m", parameters=folded(model))
    loaded = load_model(tmp_path / "m", dtype="fp32", device="cpu").model
    assert torch.allclose(loaded(IDS), want, atol=1e-5)
    assert set(published_tensors(loaded, config)) == names


def test_a_moving_average_is_folded_instead_of_the_own_values(model):
    trained(model, LoraConfig(4))
    zero = {n: torch.zeros_like(p) if "lora_b" in n else p.detach() for n, p in model.named_parameters()}
    plain = folded(model, zero)
    assert torch.equal(plain["layers.0.qkv.weight"], model.layers[0].qkv.weight)


def test_state_goes_through_names(model):
    other = copy.deepcopy(model)
    trained(model, LoraConfig(4), rows=(MASK,))
    inject(other, LoraConfig(4), seed=9, rows=(MASK,))
    load_lora_state(other, {n: t.clone() for n, t in lora_state(model).items()})
    assert torch.equal(other(IDS), model(IDS))
    with pytest.raises(ConfigError, match="adapters to load"):
        load_lora_state(other, dict(itertools.islice(lora_state(model).items(), 3)))


def test_one_seed_gives_one_start_and_dropout_only_acts_in_training(model):
    twins = [copy.deepcopy(model) for _ in range(3)]
    for m, seed in zip(twins, (5, 5, 6), strict=True):
        inject(m, LoraConfig(4, dropout=0.5), seed)
    a, b, c = (lora_state(m)["layers.1.down.lora_a"] for m in twins)
    assert torch.equal(a, b) and not torch.equal(a, c)
    with torch.no_grad():
        for p in lora_state(twins[0]).values():
            p.add_(0.1)
    twins[0].eval()
    assert torch.equal(twins[0](IDS), twins[0](IDS))
    twins[0].train()
    assert not torch.equal(twins[0](IDS), twins[0](IDS))


def test_low_precision_bases_take_float32_adapters(model):
    model.to(torch.bfloat16)
    trained(model, LoraConfig(4), rows=(MASK,))
    out = model(IDS)
    assert out.dtype == torch.bfloat16
    assert lora_state(model)["layers.0.qkv.lora_a"].dtype == torch.float32
    merge(model)
    assert (model(IDS) - out).abs().float().mean() < 0.05


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 0}, r"lora\.rank"),
        ({"alpha": 0.0}, r"lora\.alpha"),
        ({"targets": ()}, r"lora\.targets"),
        ({"targets": ("q_proj",)}, "gate_up"),
        ({"dropout": 1.0}, r"lora\.dropout"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        LoraConfig(**change)


def test_adapters_do_not_stack(model):
    inject(model, LoraConfig(2), seed=0)
    with pytest.raises(ConfigError, match="already"):
        inject(model, LoraConfig(2), seed=0)
    merge(model)
    with pytest.raises(ConfigError, match="lora rows"):
        inject(model, LoraConfig(2), seed=0, rows=(50,))
