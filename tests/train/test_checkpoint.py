import errno
import json
import os

import pytest
import torch

from unmask.core.errors import CheckpointError, RunError
from unmask.train import checkpoint

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "rng": torch.arange(4, dtype=torch.uint8)}


def test_round_trip(tmp_path):
    path = checkpoint.save(tmp_path, 7, TENSORS, {"tokens": 12})
    tensors, state = checkpoint.load(path)
    assert all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
    assert (state["step"], state["tokens"]) == (7, 12)
    assert checkpoint.latest(tmp_path) == path


def test_newest_and_best_are_kept(tmp_path):
    for step in range(1, 7):
        checkpoint.save(tmp_path, step, TENSORS, {})
    checkpoint.prune(tmp_path, keep=2, best=3)
    assert [int(p.name[5:]) for p in checkpoint.all_steps(tmp_path)] == [3, 5, 6]


@pytest.mark.parametrize("where", ["save_file", "replace", "write_json"])
def test_a_full_disk_leaves_the_last_good_one(tmp_path, monkeypatch, where):
    checkpoint.save(tmp_path, 1, TENSORS, {})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if where == "replace" else checkpoint, where, full)
    with pytest.raises(RunError, match="No space left"):
        checkpoint.save(tmp_path, 2, TENSORS, {})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    checkpoint.load(tmp_path / "step-00000001")


def test_half_written_ones_are_not_seen(tmp_path):
    checkpoint.save(tmp_path, 1, TENSORS, {})
    (tmp_path / ".writing-00000002").mkdir()
    assert checkpoint.latest(tmp_path).name == "step-00000001"
    checkpoint.save(tmp_path, 2, TENSORS, {})
    assert checkpoint.latest(tmp_path).name == "step-00000002"


def damage(path, how):
    if how == "truncated":
        file = path / "tensors.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
    elif how == "not json":
        (path / "state.json").write_text("{")
    elif how == "missing":
        (path / "tensors.safetensors").unlink()
    else:
        (path / "state.json").write_text(json.dumps({"format": 99, "step": 1}))


@pytest.mark.parametrize("how", ["truncated", "not json", "missing", "format"])
def test_damaged_ones_are_refused_by_name(tmp_path, how):
    path = checkpoint.save(tmp_path, 1, TENSORS, {})
    damage(path, how)
    with pytest.raises(CheckpointError, match="step-00000001"):
        checkpoint.load(path)


def test_optimizer_state_survives():
    p = torch.nn.Parameter(torch.ones(3))
    one = torch.optim.AdamW([p], lr=0.1, betas=(0.8, 0.9))
    p.grad = torch.ones(3)
    one.step()
    tensors, groups = checkpoint.flatten_optimizer(one, "o")
    two = torch.optim.AdamW([torch.nn.Parameter(p.detach().clone())], lr=0.5)
    checkpoint.restore_optimizer(two, tensors, json.loads(json.dumps(groups)), "o")
    assert two.param_groups[0]["betas"] == (0.8, 0.9)
    assert torch.equal(two.state_dict()["state"][0]["exp_avg"], one.state_dict()["state"][0]["exp_avg"])
