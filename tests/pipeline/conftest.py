"""Tiny models of three families."""

import pytest
import tiny_checkpoints

import unmask


@pytest.fixture(scope="session")
def tiny_dirs(tmp_path_factory):
    base = tmp_path_factory.mktemp("checkpoints")
    return {
        "llada": tiny_checkpoints.llada_checkpoint(base / "llada"),
        "dream": tiny_checkpoints.dream_checkpoint(base / "dream"),
        "qwen2": tiny_checkpoints.qwen2_checkpoint(base / "qwen2"),
    }


@pytest.fixture(scope="session")
def tiny_models(tiny_dirs):
    return {k: unmask.load(d, dtype="fp32", device="cpu") for k, d in tiny_dirs.items()}


@pytest.fixture(scope="session")
def tiny(tiny_models):
    return tiny_models["llada"]
