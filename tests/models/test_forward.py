"""The dense forward against a plain restatement of the published one, written out with separate matrices."""

from __future__ import annotations

import pytest
import torch
from models.tiny import CONFIGS, build
from safetensors.torch import load_file
from torch.nn import functional as F

from unmask.models.family import find_family
from unmask.models.load import load_model


def norm(x, weight, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x, theta):
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] / theta ** (torch.arange(half, dtype=x.dtype) / half)
    a, b, cos, sin = x[..., :half], x[..., half:], angle.cos(), angle.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def plain_forward(config, raw, ids):
    family = find_family(config)
    cfg, names = family.shape(config), family.names

    def linear(x, name):
        return F.linear(x, raw[name + ".weight"], raw.get(name + ".bias"))

    def heads(x):
        return x.view(*x.shape[:2], -1, cfg.head_dim).transpose(1, 2)

    x = raw[names.embed][ids] * cfg.embed_scale
    for i in range(cfg.layers):
        at = names.layer.format(i=i)
        h = norm(x, raw[f"{at}{names.attn_norm}.weight"], cfg.norm_eps)
        q, k, v = (linear(h, at + n) for n in (names.q, names.k, names.v))
        if cfg.qk_norm:
            width = (-1, cfg.head_dim if cfg.qk_norm == "head" else q.shape[-1])
            q = norm(q.unflatten(-1, width), raw[f"{at}{names.q_norm}.weight"], cfg.norm_eps).flatten(2)
            width = (-1, cfg.head_dim if cfg.qk_norm == "head" else k.shape[-1])
            k = norm(k.unflatten(-1, width), raw[f"{at}{names.k_norm}.weight"], cfg.norm_eps).flatten(2)
        q, k, v = rotate(heads(q), cfg.rope_theta), rotate(heads(k), cfg.rope_theta), heads(v)
        k, v = (t.repeat_interleave(cfg.heads // cfg.kv_heads, 1) for t in (k, v))
        weights = q @ k.transpose(-1, -2) * cfg.head_dim**-0.5
        if family.traits(config).mask_id is None:
            weights = weights.masked_fill(~torch.ones(weights.shape[-2:]).tril().bool(), -torch.inf)
        x = x + linear((weights.softmax(-1) @ v).transpose(1, 2).flatten(2), at + names.out)
        h = norm(x, raw[f"{at}{names.mlp_norm}.weight"], cfg.norm_eps)
        x = x + linear(F.silu(linear(h, at + names.gate)) * linear(h, at + names.up), at + names.down)
    x = norm(x, raw[names.final_norm], cfg.norm_eps)
    return x @ raw[names.embed if cfg.tied else names.head].T * cfg.logit_scale


@pytest.mark.parametrize("name", [*CONFIGS, "llada-scaled"])
def test_forward(tmp_path, name):
    config = CONFIGS.get(name) or CONFIGS["llada"] | {"scale_logits": True, "input_emb_norm": True}
    directory = build(tmp_path / "m", config)
    raw = {k: v.double() * 3 for k, v in load_file(directory / "model.safetensors").items()}
    loaded = load_model(directory, dtype="fp32", device="cpu")
    model = loaded.model.double()
    ids = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        logits = model.logits(model(ids, causal=loaded.traits.mask_id is None))
    torch.testing.assert_close(logits, plain_forward(config, raw, ids), rtol=1e-5, atol=1e-5)


def test_padded_keys_are_not_attended(tmp_path):
    model = load_model(build(tmp_path / "m"), device="cpu").model
    ids = torch.randint(0, 60, (1, 9))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    other = ids.clone()
    other[:, :2] = 59
    with torch.no_grad():
        a, b = model(ids, mask), model(other, mask)
        assert torch.equal(a[:, 2:], b[:, 2:]) and not torch.equal(model(ids)[:, 2:], a[:, 2:])
