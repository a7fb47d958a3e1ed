"""The recurrent backbone against its published formulas, written out in float64, and its own promises: pads, levels,
evidence, files."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from models.tiny import build
from torch import Tensor
from torch.nn import functional as F

from unmask.core.errors import CheckpointError
from unmask.models import birwkv
from unmask.models.birwkv_net import CLEAN, MASKED, NOISY, NULL, BiRWKV, Shift
from unmask.models.load import load_model
from unmask.models.save import save_checkpoint

PUBLISHED = {
    "model_type": "birwkv", "architectures": ["BiRWKVLLaDAModel"], "d_model": 16, "n_layers": 2, "mlp_ratio": 2.5,
    "vocab_size": 40, "max_sequence_length": 64, "mask_token_id": 39, "eos_token_id": 38, "pad_token_id": 38,
}  # fmt: skip
ADALN = PUBLISHED | {
    "conditioning": "adaln", "embedding_dim": 8, "key_cap": 12.0, "diffusion": {"prediction_type": "sample"}
}  # fmt: skip
ORIGIN = PUBLISHED | {"ff_gate": "hidden"}
KINDS_OF_MODEL = {
    "adaln": ADALN,
    "adaln-untied": ADALN | {"weight_tying": False},
    "adaln-scaled": ADALN | {"weight_tying": False, "scale_logits": True},
    "epsilon": ADALN | {"diffusion": {"prediction_type": "epsilon"}},
    "v_prediction": ADALN | {"diffusion": {"prediction_type": "v_prediction"}},
    "attention": ADALN | {"mixer": "attention", "n_heads": 2},
    "hybrid": ADALN | {"attention_every": 2, "n_heads": 4, "position_embedding": True},
    "origin": ORIGIN,
    "origin-untied-v": ORIGIN | {"weight_tying": False, "diffusion": {"prediction_type": "v_prediction"}},
}


def made(config: dict[str, object], dtype: torch.dtype = torch.float64, spread: float = 0.2) -> BiRWKV:
    """A model whose every parameter is random, so that nothing hides in a zero."""
    torch.set_num_threads(1)
    model = BiRWKV(birwkv.shape_of(config))
    model.init_weights(0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(spread * torch.randn(p.shape, generator=draw))
    return model.to(dtype).eval()


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 38, shape, generator=torch.Generator().manual_seed(seed))


# ---- the published forward -------------------------------------------------------------------------------------------


def published_shift(p: dict[str, Tensor], at: str, x: Tensor, tau: Tensor) -> Tensor:
    _, t, c = x.shape
    following, before = x[:, [*range(1, t), t - 1]], x[:, [0, *range(t - 1)]]
    sizes = [c // 3 + (1 if i < c % 3 else 0) for i in range(3)]
    moved, start = torch.empty_like(x), 0
    for i, source in enumerate((following, before, x)):
        own = slice(start, start + sizes[i])
        offset = (tau @ p[f"{at}.time_shift_proj.weight"].T)[:, None, own] * p[f"{at}.shift_patterns"][i, own]
        moved[..., own] = source[..., own] + offset
        start += sizes[i]
    rate = torch.sigmoid(p[f"{at}.mu"]) * torch.sigmoid(tau @ p[f"{at}.time_scale_proj.weight"].T)[:, None]
    return x + rate * (moved - x)


def published_mixer(p: dict[str, Tensor], at: str, r: Tensor, k: Tensor, v: Tensor, tau: Tensor) -> Tensor:
    """The eager recurrences, with the clamps and the self term counted once too often."""
    scale = p[f"{at}.layer_time_scale"]
    w = p[f"{at}.w"] + scale * (tau @ p[f"{at}.time_w_proj.weight"].T)[:, None]
    u = p[f"{at}.u"] + scale * (tau @ p[f"{at}.time_u_proj.weight"].T)[:, None]
    phi = torch.sigmoid(tau.sum(-1))[:, None, None]
    d = torch.exp(-torch.exp(w)) * (0.5 + 0.5 * phi)
    e, own = torch.exp(k.clamp(max=30)), torch.exp((u + k).clamp(max=30))
    sides = []
    for order in (range(k.shape[1]), reversed(range(k.shape[1]))):
        n, m = torch.zeros_like(k[:, :1]), torch.zeros_like(k[:, :1])
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for i in order:
            n = d * n + e[:, i : i + 1] * v[:, i : i + 1]
            m = d * m + e[:, i : i + 1]
            found[i] = n, m
        sides.append([torch.cat([found[i][j] for i in range(k.shape[1])], 1) for j in range(2)])
    (nf, mf), (nb, mb) = sides
    num, den = nf + nb - e * v + own * v, mf + mb - e + own
    return torch.sigmoid(r) * num / den.clamp(min=1e-8) * (0.8 + 0.2 * phi)


def published_forward(model: BiRWKV, ids: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states after ln_f and the condition, from the state dict alone."""
    p = {n: t.double() for n, t in model.state_dict().items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * p[f"{name}.weight"]

    angles = steps.float()[:, None] * torch.exp(-math.log(1e4) * torch.arange(64).float() / 64)  # float32, as published
    tau = torch.cat([angles.cos(), angles.sin()], -1).double() @ p["time_mlp.0.weight"].T + p["time_mlp.0.bias"]
    tau = F.silu(tau) @ p["time_mlp.2.weight"].T + p["time_mlp.2.bias"]
    x = p["transformer.wte.weight"][ids] + p["transformer.wpe.weight"][: ids.shape[1]]
    for i in range(model.cfg.layers):
        at = f"transformer.blocks.{i}"

        def linear(h: Tensor, name: str, at: str = at) -> Tensor:
            own = f"{at}.{name}"
            return h @ p[f"{own}.linear.weight"].T + (tau @ p[f"{own}.time_proj.weight"].T)[:, None]

        gate = torch.sigmoid(tau @ p[f"{at}.time_gate.weight"].T)[:, None]
        h = published_shift(p, f"{at}.shift1", norm(x, f"{at}.ln1"), tau)
        r, k, v = (linear(h, f"{n}_proj") for n in "rkv")
        x = x + gate * linear(published_mixer(p, f"{at}.attention", r, k, v, tau), "attn_out")
        h = published_shift(p, f"{at}.shift2", norm(x, f"{at}.ln2"), tau)
        rf, kf = torch.sigmoid(linear(h, "ff_r_proj")), F.relu(linear(h, "ff_k_proj")).square()
        wide = rf.shape[-1] == kf.shape[-1]
        x = x + gate * (linear(rf * kf, "ff_v_proj") if wide else rf * linear(kf, "ff_v_proj"))
    return norm(x, "transformer.ln_f"), tau


@pytest.mark.parametrize("gate", ["hidden", "after"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_origin_conditioning_is_the_published_forward(gate: str, dtype: torch.dtype) -> None:
    model = made(PUBLISHED | {"ff_gate": gate}, dtype, 0.1)
    ids, steps = random_ids(3, 11), torch.tensor([0, 3, 700])
    with torch.no_grad():
        right, tau = published_forward(model, ids, steps)
        own = model.steps(steps)
        hidden = model.run(model.enter(model.table[ids], None, torch.zeros_like(ids)), own)
        noise = model.vector(hidden.flatten(0, 1), own.repeat_interleave(11, 0))
        logits = model.speak(hidden.flatten(0, 1))
    head, shift = model.noise_head.weight.detach().double(), model.noise_conditioning.weight.detach().double()
    said = (right + (tau @ shift.T)[:, None]) @ head.T
    spoken = right @ model.transformer["wte"].weight.detach().double().T
    tight = 1e-5 if dtype == torch.float64 else 2e-4
    for found, want in ((own, tau), (hidden, right), (noise, said.flatten(0, 1)), (logits, spoken.flatten(0, 1))):
        assert float((found.double() - want).abs().max()) <= tight * max(1.0, float(want.abs().max()))


def test_origin_conditioning_has_the_published_names() -> None:
    block = ["ln1.weight", "ln2.weight", "noise_scale", "time_gate.weight"]
    block += [
        f"shift{i}.{n}"
        for i in (1, 2)
        for n in ("mu", "shift_patterns", "time_shift_proj.weight", "time_scale_proj.weight")
    ]
    layers = ("r_proj", "k_proj", "v_proj", "attn_out", "ff_r_proj", "ff_k_proj", "ff_v_proj")
    block += [f"{n}.{part}.weight" for n in layers for part in ("linear", "time_proj")]
    block += [f"attention.{n}" for n in ("w", "u", "time_w_proj.weight", "time_u_proj.weight", "layer_time_scale")]
    names = {f"time_mlp.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")}
    names |= {f"transformer.{n}.weight" for n in ("wte", "wpe", "ln_f")} | {
        "noise_head.weight",
        "noise_conditioning.weight",
    }
    names |= {f"transformer.blocks.{i}.{n}" for i in range(2) for n in block}
    assert set(BiRWKV(birwkv.shape_of(ORIGIN)).state_dict()) == names
    more = BiRWKV(birwkv.shape_of(KINDS_OF_MODEL["origin-untied-v"])).state_dict()
    assert set(more) == names | {"transformer.ff_out.weight", "v_head.weight"}
    shapes = {n: tuple(t.shape) for n, t in more.items()}
    at = "transformer.blocks.1"
    assert shapes[f"{at}.shift1.mu"] == (1, 1, 16) and shapes[f"{at}.shift2.shift_patterns"] == (3, 16)
    assert shapes[f"{at}.attention.w"] == (1, 1, 16) and shapes[f"{at}.attention.layer_time_scale"] == (1,)
    assert shapes[f"{at}.ff_r_proj.linear.weight"] == (40, 16) and shapes["time_mlp.0.weight"] == (512, 128)


def test_a_new_origin_model_begins_as_published() -> None:
    """Also where the parameters were allocated without values."""
    model = BiRWKV(birwkv.shape_of(ORIGIN))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(torch.nan)
    model.init_weights(3)
    found = model.state_dict()
    assert not any(bool(t.isnan().any()) for t in found.values())
    scales = [float(found[f"transformer.blocks.{i}.attention.layer_time_scale"]) for i in range(2)]
    assert scales == [1.0, 0.5]
    assert float(found["transformer.blocks.0.noise_scale"]) == pytest.approx(0.1)
    assert not found["transformer.blocks.0.attention.w"].any() and not found["transformer.blocks.0.shift1.mu"].any()


@pytest.mark.parametrize("config", [ORIGIN, ADALN | {"training_noise": True}], ids=["origin", "adaln"])
def test_training_noise_is_added_only_while_training(config: dict[str, object]) -> None:
    model = made(config)
    x, tau = torch.randn(1, 5, 16, dtype=torch.float64), model.steps(torch.tensor([3.0]))
    assert torch.equal(model.run(x, tau), model.run(x, tau))
    model.train()
    assert not torch.equal(model.run(x, tau), model.run(x, tau))


# ---- pads ------------------------------------------------------------------------------------------------------------


def walked(model: BiRWKV, ids: Tensor, mask: Tensor | None, level: float = -1.0, kinds: Tensor | None = None) -> Tensor:
    b, kinds = ids.shape[0], torch.zeros_like(ids) if kinds is None else kinds
    tau = model.levels(torch.full((b,), level))
    with torch.no_grad():
        return model.run(model.enter(model.table[ids], None, kinds), tau, mask)


@pytest.mark.parametrize("middle", [False, True], ids=["right", "in the middle"])
@pytest.mark.parametrize("name", ["adaln", "origin", "attention", "hybrid"])
def test_what_stands_in_pads_changes_nothing(name: str, middle: bool) -> None:
    ids, mask = random_ids(2, 13), torch.ones(2, 13, dtype=torch.bool)
    mask[0, 9:] = False
    if middle:
        mask[1, 4:7] = False
    other = torch.where(mask, ids, random_ids(2, 13, seed=9))
    model = made(KINDS_OF_MODEL[name])
    assert not torch.equal(ids, other)
    assert torch.equal(walked(model, ids, mask)[mask], walked(model, other, mask)[mask])
    kinds = torch.where(mask, CLEAN, NULL)
    assert torch.equal(walked(model, ids, mask)[mask], walked(model, ids, mask, kinds=kinds)[mask])
    small = model.float()
    assert float((walked(small, ids, mask) - walked(small, other, mask))[mask].abs().max()) <= 1e-5


@pytest.mark.parametrize("name", ["adaln", "origin", "attention", "hybrid"])
def test_rows_of_a_batch_are_single_rows(name: str) -> None:
    model = made(KINDS_OF_MODEL[name])
    ids, lengths = random_ids(3, 13), (13, 1, 6)
    mask = torch.arange(13) < torch.tensor(lengths)[:, None]
    together = walked(model, ids, mask)
    for i, n in enumerate(lengths):
        assert float((together[i, :n] - walked(model, ids[i : i + 1, :n], None)[0]).abs().max()) <= 1e-6


# ---- the shift -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "sizes"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (5, [2, 2, 1]), (16, [6, 5, 5])])
def test_groups_of_the_shift_and_its_ends(dim: int, sizes: list[int]) -> None:
    shift = Shift(dim).double()
    assert shift.sizes == sizes
    with torch.no_grad():
        shift.mu.fill_(50.0)  # the neighbours alone: half of them, since sigmoid(0) is the level's share
        for p in (shift.time_scale_proj.weight, shift.time_shift_proj.weight):
            p.zero_()
    x = torch.randn(2, 4, dim, dtype=torch.float64)
    moved = 2 * shift(x, torch.zeros(2, 128, dtype=torch.float64), None, None) - x
    a, b = sizes[0], sizes[0] + sizes[1]
    assert torch.allclose(moved[:, :-1, :a], x[:, 1:, :a]) and torch.allclose(moved[:, -1, :a], x[:, -1, :a])
    assert torch.allclose(moved[:, 1:, a:b], x[:, :-1, a:b]) and torch.allclose(moved[:, 0, a:b], x[:, 0, a:b])
    assert torch.allclose(moved[..., b:], x[..., b:])


# ---- levels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaln", "origin", "hybrid"])
def test_gradients_reach_the_level(name: str) -> None:
    """Against central differences; few steps, since the sinusoids are float32."""
    own = {"diffusion": {"num_diffusion_steps": 8}, "logsnr_range": [-7.0, 5.0]}
    model = made(KINDS_OF_MODEL[name] | own)
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def scalar(level: Tensor) -> Tensor:
        return model.run(x, model.levels(level)).sin().sum()

    level = torch.tensor([-2.0, 1.5], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(scalar(level), level)
    with torch.no_grad():
        for i in range(2):
            step = 0.02 * torch.eye(2, dtype=torch.float64)[i]
            rise = (scalar(level + step) - scalar(level - step)) / 0.04
            assert float(rise) == pytest.approx(float(grad[i]), rel=0.02, abs=1e-3)
            assert abs(float(rise)) > 1e-2


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_a_published_config_counts_the_steps_of_its_own_table(name: str) -> None:
    """The level that step n of the published betas noises to is told as step n, and samplers walk between its ends."""
    start, end, count = 2e-4, 0.03, 50
    table = {"beta_schedule": name, "beta_start": start, "beta_end": end, "num_diffusion_steps": count}
    model = made(ORIGIN | {"diffusion": table | {"clip_sample": True, "clip_sample_range": 1.0}})
    if name == "cosine":
        ends = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        betas = [min(1 - b / a, 0.999) for a, b in itertools.pairwise(ends)]
    else:
        rise = [i / (count - 1) for i in range(count)]
        betas = [start + (end - start) * (r if name == "linear" else 1 / (1 + math.exp(3 - 6 * r))) for r in rise]
    abar, levels = 1.0, []
    for beta in betas:
        abar *= 1 - beta
        levels.append(math.log(abar / (1 - abar)))
    space = birwkv.traits(ORIGIN | {"diffusion": table}).latent
    assert space is not None and (space.low, space.high) == pytest.approx((levels[-1], levels[0]), abs=1e-6)
    steps = torch.tensor([0, 1, 20, count - 1])
    found = model.levels(torch.tensor(levels, dtype=torch.float64)[steps])
    assert torch.allclose(found, model.steps(steps), atol=1e-5)
    between = torch.tensor([(levels[20] + levels[21]) / 2, 40.0, -40.0], dtype=torch.float64)
    assert torch.allclose(model.levels(between), model.steps(torch.tensor([20.5, 0.0, count - 1])), atol=1e-4)
    plain = made(ORIGIN).cfg
    assert plain.betas == ("linear", 1e-4, 0.02) and plain.levels == pytest.approx((-10.12, 9.21), abs=0.01)


def test_a_range_of_levels_wins_and_stands_alone() -> None:
    ours = made(ORIGIN | {"logsnr_range": [-7.0, 5.0]})
    assert ours.cfg.betas is None and ours.cfg.levels == (-7.0, 5.0)
    assert torch.equal(ours.levels(torch.tensor([-1.0])), ours.steps(torch.tensor([500.0])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_decay_without_bounds_forgets_and_never_overflows(dtype: torch.dtype) -> None:
    model = made(ORIGIN, dtype)
    with torch.no_grad():
        model.blocks[0].attention.w.fill_(200.0)
        tau = model.steps(torch.tensor([3.0]))
        lam, _, _ = model.blocks[0].attention(tau)
        hidden = walked(model, random_ids(1, 9), None)
    assert bool(lam.isfinite().all()) and float(torch.exp(-lam.double()).max()) == 0.0
    assert bool(hidden.isfinite().all())


def test_sequences_without_noise_have_a_condition_of_their_own() -> None:
    for config, own in ((ADALN, None), (ORIGIN, 0)):
        model = made(config)
        level, noised = torch.tensor([-1.0, -1.0]), torch.tensor([True, False])
        found = model.condition(level, noised)
        assert torch.allclose(found[0], model.levels(level)[0])
        expected = model.masked_level if own is None else model.steps(torch.zeros(1))[0]
        assert torch.allclose(found[1], expected) and not torch.allclose(found[0], found[1])


def test_kinds_say_what_is_read() -> None:
    """Vectors of masked and null positions, and hints beside noised ones, are not read; kinds differ."""
    model = made(ADALN)
    vectors, hint = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    kinds = torch.tensor([[CLEAN, NOISY, MASKED, NULL]])
    with torch.no_grad():
        plain, other = model.enter(vectors, hint, kinds), model.enter(vectors + 1, hint, kinds)
        moved = (plain != other).any(-1)[0].tolist()
        hinted = (model.enter(vectors, hint + 1, kinds) != plain).any(-1)[0].tolist()
        same = model.enter(vectors[:, :1].expand(1, 4, 8), None, kinds)[0]
    assert moved == [True, True, False, False]
    assert hinted == [False, True, False, False]
    assert len({tuple(row.tolist()) for row in same}) == 4


# ---- evidence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaln", "adaln-untied", "adaln-scaled", "epsilon"])
def test_a_silent_head_says_the_exact_posterior(name: str) -> None:
    """Under a uniform prior: log N(z; alpha e, sigma^2) over the rows of the table, normalised."""
    model = BiRWKV(birwkv.shape_of(KINDS_OF_MODEL[name]))
    model.init_weights(0)
    level, hidden = torch.tensor([-3.0, 0.0, 2.0]), torch.randn(3, 16)
    signal = level.sigmoid()[:, None]
    with torch.no_grad():
        table = model.table
        z = signal.sqrt() * table[[3, 7, 30]] + (1 - signal).sqrt() * torch.randn(3, 8)
        logits = model.speak(hidden, z, level)
        silent = model.speak(hidden, z, torch.full((3,), torch.inf))
    assert torch.allclose(table.square().sum(-1), torch.full((40,), 8.0))
    away = (z[:, None] - signal.sqrt()[..., None] * table[None]).double().square().sum(-1)
    right = torch.log_softmax(-away / (2 * (1 - signal.double())), -1)
    assert float((torch.log_softmax(logits.double(), -1) - right).abs().max()) < 1e-4
    assert torch.equal(silent, torch.zeros(3, 40))


def test_clean_vectors_are_what_the_prediction_means() -> None:
    hidden, z, level = torch.randn(3, 16), torch.randn(3, 8), torch.tensor([-2.0, 0.0, 2.0])
    signal = level.sigmoid()[:, None]
    tau = torch.randn(3, 128)
    for name in ("adaln", "epsilon", "v_prediction"):
        model = made(KINDS_OF_MODEL[name], torch.float32)
        with torch.no_grad():
            logits = model.speak(hidden, z, level)
            found = model.denoised(hidden, tau, logits, z, level)
            if name == "adaln":
                right = torch.softmax(logits, -1) @ model.table
            elif name == "epsilon":
                right = (z - (1 - signal).sqrt() * model.vector(hidden, tau)) / signal.sqrt()
            else:
                right = signal.sqrt() * z - (1 - signal).sqrt() * model.vector(hidden, tau)
        assert torch.allclose(found, right, atol=1e-5)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS_OF_MODEL)
def test_round_trip_is_bit_equal(tmp_path, name: str) -> None:
    config = KINDS_OF_MODEL[name]
    model = made(config, torch.float32)
    save_checkpoint(model, config, tmp_path / "a")
    loaded = load_model(tmp_path / "a", dtype="fp32", device="cpu")
    assert loaded.family.name == "BiRWKV" and loaded.model.cfg == model.cfg and not loaded.model.training
    own, found = model.state_dict(), loaded.model.state_dict()
    assert own.keys() == found.keys() and all(torch.equal(own[k], found[k]) for k in own)
    ids = random_ids(1, 9)
    assert torch.equal(walked(model, ids, None), walked(loaded.model, ids, None))
    assert json.loads((tmp_path / "a/config.json").read_text()) == config | {"torch_dtype": "float32"}


def test_random_weights_are_whole(tmp_path) -> None:
    for name in ("adaln", "origin"):
        build(tmp_path / name, KINDS_OF_MODEL[name])
        model = load_model(tmp_path / name, device="cpu").model
        assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("d_model", 0), ("n_layers", "2"), ("mlp_ratio", -1.0), ("mlp_hidden_size", 0), ("vocab_size", 1),
        ("embedding_size", 39), ("max_sequence_length", 0), ("layer_norm_type", "gemma_rms"), ("include_bias", True),
        ("layer_norm_with_affine", False), ("bias_for_layer_norm", True), ("rms_norm_eps", 0.0),
        ("embedding_dropout", 1.0), ("weight_tying", "yes"), ("scale_logits", 1), ("input_emb_norm", None),
        ("diffusion", "linear"), ("conditioning", "film"), ("mixer", "mamba"), ("attention_every", -1),
        ("ff_gate", "before"), ("embedding_dim", 0), ("key_cap", 0), ("bayes_evidence", "no"),
        ("logsnr_range", [5.0, -7.0]), ("logsnr_range", [-7.0]), ("diffusion_mode", "both"), ("training_noise", 1),
        ("mask_token_id", 40), ("eos_token_id", [99]), ("pad_token_id", -1), ("position_embedding", 0),
    ],
)  # fmt: skip
def test_a_bad_key_is_refused_by_its_name(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key) as caught:
        birwkv.traits(ADALN | {key: value})  # reads the shape first
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"diffusion": {"prediction_type": "x0"}}, "prediction_type"),
        ({"diffusion": {"num_diffusion_steps": 0}}, "num_diffusion_steps"),
        ({"diffusion": {"betas": 1}}, "betas"),
        ({"diffusion": {"beta_schedule": "cosine"}}, "beta_schedule"),
        ({"diffusion": {"beta_end": 0.1}, "logsnr_range": [-7.0, 5.0]}, "beta_end"),
        ({"conditioning": "origin", "embedding_dim": 16, "diffusion": {"beta_schedule": "quadratic"}}, "beta_schedule"),
        ({"conditioning": "origin", "embedding_dim": 16, "diffusion": {"beta_start": 0.5}}, "beta_start"),
        ({"conditioning": "origin", "embedding_dim": 16, "diffusion": {"beta_end": 1.0}}, "beta_end"),
        ({"n_heads": 3, "mixer": "attention"}, "n_heads"),
        ({"conditioning": "origin"}, "embedding_dim"),
    ],
)
def test_a_bad_combination_is_refused(changes: dict[str, object], word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        birwkv.shape_of(ADALN | changes)


def test_size_of_the_default_model() -> None:
    with torch.device("meta"):
        published = BiRWKV(birwkv.shape_of({"vocab_size": 50_259}))
        own = BiRWKV(birwkv.shape_of({"conditioning": "adaln", "embedding_dim": 16, "vocab_size": 50_259}))
    assert 352e6 < sum(p.numel() for p in published.parameters()) < 358e6
    assert 288e6 < sum(p.numel() for p in own.parameters()) < 294e6
