"""Small recipes, tokenizers and models for the training tests."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
import torch

from unmask.evals.tasks.synthetic import stream
from unmask.models.config import TransformerConfig
from unmask.models.transformer import Transformer
from unmask.text.codec import Codec
from unmask.train.tokenizer import train_tokenizer

RECIPE = """\
# Claim: none, a test; `unmask train tiny.yaml`; one second.
name: tiny
tokenizer: {path: TOKENIZER}
model: {dim: 32, layers: 2, heads: 2, mlp_dim: 64, qk_norm: full}
data:
  kind: generator
  source: unmask.evals.tasks.synthetic:stream
  batch_tokens: 300
  stages: [{start: 0, mix: {copy: 1, one_step: 1}}]
objective: {kind: llada-sft}
optim: {kind: muon, lr: 0.01, warmup: 2}
run: {steps: 6, precision: fp32, log_every: 1, save_every: 2, device: cpu, threads: 1}
"""


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    items = islice(stream(random.Random(0), {"copy": 1, "one_step": 1, "sudoku": 1}), 2000)
    train_tokenizer([t for i in items for t in (i.prompt, i.answer)], 600, out)
    return out


@pytest.fixture(scope="session")
def codec(tokenizer_dir: Path) -> Codec:
    return Codec.from_dir(tokenizer_dir)


@pytest.fixture
def recipe_file(tmp_path: Path, tokenizer_dir: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.replace("TOKENIZER", str(tokenizer_dir)), encoding="utf-8")
    return path


@pytest.fixture
def tiny_model() -> Transformer:
    torch.set_num_threads(1)
    cfg = TransformerConfig(
        vocab_size=50, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=48, qk_norm="full", tied=True
    )
    model = Transformer(cfg)
    model.init_weights(0, std=0.2)
    return model
