"""`unmask adapt`: one command from an autoregressive checkpoint to a measured block-diffusion one."""

import json

import pytest
import tiny_checkpoints
import torch
from safetensors import safe_open

from unmask.core.types import BlockCausal
from unmask.models.load import load_model
from unmask.pipeline import load

KEYS = {
    "architectures", "attention_dropout", "bd_size", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size",
    "initializer_range", "intermediate_size", "mask_token_id", "max_position_embeddings", "max_window_layers",
    "model_type", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id", "rms_norm_eps",
    "rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings", "torch_dtype", "use_cache",
    "use_sliding_window", "vocab_size",
}  # fmt: skip
"""What the published config.json of Fast-dLLM v2 says."""


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return tiny_checkpoints.qwen2_checkpoint(tmp_path_factory.mktemp("parent"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "chat.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"Count to {i % 5 + 1}."}, {"role": "assistant", "content": "1 2 3"}]}
        for i in range(60)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def adapt(cli, parent, chat, out, *more):
    base = (
        "--data",
        chat,
        "--length",
        96,
        "--rows",
        4,
        "--block",
        8,
        "run.device=cpu",
        "run.threads=1",
        "run.log_every=1",
    )
    return cli("adapt", parent, "--out", out, *base, *more)


def test_one_command_writes_a_published_checkpoint_that_decodes(cli, parent, chat, tmp_path):
    out = tmp_path / "child"
    ran = adapt(cli, parent, chat, out, "--steps", 3, "--lr", 0.001, "--count", 3, "--max-tokens", 16, "--json")
    assert ran.code == 0, ran.err
    report = ran.json
    assert report == json.loads((out / "report.json").read_text())
    assert [s["label"] for s in report["sides"]] == ["parent", "child, threshold 0.9", "child, 1 per forward"]
    assert report["held_out"]["parent_nll"] > 0 < report["held_out"]["child_nelbo"]
    assert (report["steps"], report["block"]) == (3, 8)

    config = json.loads((out / "config.json").read_text())
    assert not KEYS - set(config)
    assert (config["model_type"], config["bd_size"], config["torch_dtype"]) == ("Fast_dLLM_Qwen", 8, "float32")
    with safe_open(out / "model.safetensors", "pt") as child, safe_open(parent / "model.safetensors", "pt") as before:
        names = list(child.keys())
        assert sorted(names) == sorted(before.keys())
        assert {child.get_slice(n).get_dtype() for n in names} == {"F32"}

    found = load_model(out, dtype="fp32")
    assert found.traits.attention == BlockCausal(8)
    model = load(out, dtype="fp32")
    assert model.codec.named("mask_token") == found.traits.mask_id
    first = model.generate("Count to 3.", max_tokens=16)
    assert first.ids == load(out, dtype="fp32").generate("Count to 3.", max_tokens=16).ids


def test_training_changes_the_weights_and_a_resume_ends_with_the_same_ones(cli, parent, chat, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fixed = ("--lr", 0.001, "--count", 0, "optim.schedule=constant")
    assert adapt(cli, parent, chat, whole, "--steps", 4, *fixed).code == 0
    assert adapt(cli, parent, chat, parts, "--steps", 2, *fixed).code == 0
    again = adapt(cli, parent, chat, parts, "--steps", 4, *fixed)
    assert again.code == 2
    assert "--resume" in again.err
    assert adapt(cli, parent, chat, parts, "--steps", 4, *fixed, "--resume").code == 0
    a, b, start = (load_model(p, dtype="fp32").model for p in (whole, parts, whole / "run" / "start"))
    pairs = list(zip(a.parameters(), b.parameters(), start.parameters(), strict=True))
    assert all(torch.equal(x, y) for x, y, _ in pairs)
    assert not all(torch.equal(x, z) for x, _, z in pairs)


def test_adapters_train_few_parameters(cli, parent, chat, tmp_path):
    ran = adapt(cli, parent, chat, tmp_path / "child", "--steps", 2, "--lora", 2, "--checkpointing", "--count", 0)
    assert ran.code == 0, ran.err
    norms = [load_model(p, dtype="fp32").model.final_norm for p in (tmp_path / "child", parent)]
    assert torch.equal(*norms)


def test_tokens_decide_the_steps(cli, parent, chat, tmp_path):
    ran = adapt(cli, parent, chat, tmp_path / "child", "--tokens", 600, "--count", 0, "--json")
    assert ran.code == 0, ran.err
    assert 500 < ran.json["tokens"] < 900


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--steps", 2, "--tokens", 100], "one of them"),
        ([], "the length of the training"),
        (["--steps", 2, "objective.kind=llada-sft"], "block-diffusion"),
        (["--steps", 2, "objective.block=0"], "objective.block"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(cli, parent, chat, tmp_path, more, word):
    ran = adapt(cli, parent, chat, tmp_path / "child", *more)
    assert ran.code == 2
    assert word in ran.err
    assert not (tmp_path / "child").exists()


def test_a_diffusion_model_is_no_parent(cli, chat, tmp_path):
    dream = tiny_checkpoints.dream_checkpoint(tmp_path / "dream")
    ran = adapt(cli, dream, chat, tmp_path / "child", "--steps", 1)
    assert ran.code == 2
    assert "an autoregressive checkpoint" in ran.err


@pytest.mark.parametrize("lines", ['{"text": "a"}\n{"text": "b"}\n', "not json\nat all\n", '{"messages": []}\n'])
def test_other_records_are_refused(cli, parent, tmp_path, lines):
    data = tmp_path / "bad.jsonl"
    data.write_text(lines)
    ran = adapt(cli, parent, data, tmp_path / "child", "--steps", 1)
    assert ran.code == 2
    assert "bad.jsonl" in ran.err or "records" in ran.err
