import shutil

import pytest
import torch
from torch.nn import functional as F

from unmask.train import forward
from unmask.train.forward import Net

LENGTHS = [5, 6, 17, 17, 40, 9]


def batch():
    rng = torch.Generator().manual_seed(0)
    real = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(0, 50, real.shape, generator=rng)
    at = (torch.rand(real.shape, generator=rng) < 0.4) & real
    return ids, real, at


def test_packed_forward_equals_the_dense_one(tiny_model):
    ids, real, at = batch()
    assert torch.allclose(Net(tiny_model).hidden(ids, real, at), tiny_model(ids, real)[at], atol=1e-5)


def test_a_batch_without_padding(tiny_model):
    ids, _, at = batch()
    real = torch.ones_like(ids, dtype=torch.bool)
    assert torch.allclose(Net(tiny_model).hidden(ids, real, at), tiny_model(ids)[at], atol=1e-5)


def test_padding_content_has_no_influence(tiny_model):
    ids, real, at = batch()
    noise = torch.randint(0, 50, ids.shape, generator=torch.Generator().manual_seed(9))
    other = torch.where(real, ids, noise)
    assert torch.equal(Net(tiny_model).hidden(ids, real, at), Net(tiny_model).hidden(other, real, at))


def test_long_rows_take_the_fused_attention(tiny_model, monkeypatch):
    ids, real, at = batch()
    plain = Net(tiny_model).hidden(ids, real, at)
    monkeypatch.setattr(forward, "_SHORT", 8)
    assert torch.allclose(Net(tiny_model).hidden(ids, real, at), plain, atol=1e-5)


def gradients(net, ids, real, at):
    net.model.zero_grad()
    net.losses(net.hidden(ids, real, at), ids[at]).mean().backward()
    return [p.grad.clone() for p in net.model.parameters()]


def test_checkpointing_changes_no_gradient(tiny_model):
    plain = gradients(Net(tiny_model), *batch())
    again = gradients(Net(tiny_model, checkpointing=True), *batch())
    assert all(torch.equal(a, b) for a, b in zip(plain, again))


def test_chunked_head_gives_the_same_losses_and_gradients(tiny_model, monkeypatch):
    plain = gradients(Net(tiny_model), *batch())
    monkeypatch.setattr(forward, "_LOGITS_AT_ONCE", 50 * 7)
    again = gradients(Net(tiny_model), *batch())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again))


def test_losses_are_cross_entropy(tiny_model):
    ids, real, at = batch()
    net = Net(tiny_model)
    logits = tiny_model.logits(tiny_model(ids, real))
    want = F.cross_entropy(logits[at], ids[at], reduction="none")
    assert torch.allclose(net.losses(net.hidden(ids, real, at), ids[at]), want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_agree(tiny_model):
    ids, real, at = batch()
    assert torch.allclose(
        Net(tiny_model, compiled=True).hidden(ids, real, at), Net(tiny_model).hidden(ids, real, at), atol=1e-5
    )
