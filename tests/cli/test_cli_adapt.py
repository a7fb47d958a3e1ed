"""`unmask adapt`: one command from an autoregressive checkpoint to a measured block-diffusion one."""

import json
import shutil
import weakref

import pytest
import tiny_checkpoints
import torch
from safetensors import safe_open

from unmask.core.types import BlockCausal
from unmask.models.load import load_model
from unmask.pipeline import load
from unmask.text.codec import Codec
from unmask.train.data import ChatData
from unmask.train.forward import Net
from unmask.train.objectives.block_diffusion import BlockDiffusion
from unmask.train.records import Files
from unmask.train.trainer import Trainer
from unmask.train.validate import nelbo

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
        {"messages": [{"role": "user", "content": f"Count to {i + 1}."}, {"role": "assistant", "content": "1 2 3"}]}
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


def test_a_causal_context_is_written_read_back_and_resumed(cli, parent, chat, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    causal = ("--context", "causal", "--lr", 0.001, "optim.schedule=constant", "--count")
    ran = adapt(cli, parent, chat, whole, "--steps", 4, *causal, 2, "--max-tokens", 16, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["block"], ran.json["context"], len(ran.json["sides"])) == (8, "causal", 3)
    config = json.loads((whole / "config.json").read_text())
    assert not KEYS - set(config)
    assert (config["model_type"], config["architectures"]) == ("unmask_context_causal", ["ContextCausalForCausalLM"])
    found = load_model(whole, dtype="fp32")
    assert found.traits.attention == BlockCausal(8, "causal")
    with safe_open(whole / "model.safetensors", "pt") as child, safe_open(parent / "model.safetensors", "pt") as before:
        assert sorted(child.keys()) == sorted(before.keys())
    steps = [json.loads(line) for line in lines(whole / "run" / "metrics.jsonl")]
    assert all(s["ar_ce"] > 0 and s["loss"] == pytest.approx(s["ce"] + s["ar_ce"], 1e-4) for s in steps if "ce" in s)

    texts = [
        load(whole, dtype="fp32").generate("Count to 3.", max_tokens=20, cache=cache, policy="threshold(0.5)").ids
        for cache in ("none", "block", "sub_block(refresh=1)", "block")
    ]
    assert texts == [texts[0]] * 4
    refused = cli("generate", "Count to 3.", "--model", whole, "--profile", "fast-dllm-v2", "--max-tokens", 32)
    assert refused.code == 2
    assert "context is causal" in refused.err

    assert adapt(cli, parent, chat, parts, "--steps", 2, *causal, 0).code == 0
    other = adapt(cli, parent, chat, parts, "--steps", 4, "--count", 0, "--resume")
    assert other.code == 2
    assert "--context" in other.err
    assert adapt(cli, parent, chat, parts, "--steps", 4, *causal, 0, "--resume").code == 0
    a, b = (load_model(p, dtype="fp32").model for p in (whole, parts))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_weight_of_the_parents_loss_is_the_one_asked_for(cli, parent, chat, tmp_path):
    for name, more, weight in (("some", ["--ar-weight", 0.25], 0.25), ("none", ["objective.ar_weight=0"], 0.0)):
        out = tmp_path / name
        ran = adapt(cli, parent, chat, out, "--steps", 1, "--count", 0, "--context", "causal", *more)
        assert ran.code == 0, ran.err
        step = next(s for s in map(json.loads, lines(out / "run" / "metrics.jsonl")) if "ce" in s)
        assert step["loss"] == pytest.approx(step["ce"] + weight * step.get("ar_ce", 0), 1e-4)
        assert ("ar_ce" in step) == bool(weight)


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
        (["--steps", 2, "--ar-weight", 1], "context: causal"),
        (["--steps", 2, "--context", "causal", "--ar-weight", -1], "--ar-weight"),
        (["--steps", 2, "--context", "causal", "objective.shift=0"], "shift"),
        (["--steps", 2, "--context", "prefix"], "--context"),
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


def lines(path):
    return path.read_text("utf-8").splitlines()


def talk(question, answer="ok"):
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})


def test_no_held_out_record_is_trained_on(cli, parent, tmp_path):
    data = tmp_path / "chat.jsonl"
    data.write_text("\n".join(talk(f"say {i % 40}") for i in range(120)) + "\n", encoding="utf-8")
    ran = adapt(cli, parent, data, tmp_path / "child", "--steps", 1, "--count", 0)
    assert ran.code == 0, ran.err
    assert "6 records equal to held-out ones" in ran.err
    held, train = (lines(tmp_path / "child" / "run" / n) for n in ("held_out.jsonl", "train.jsonl"))
    assert held == [talk("say 0"), talk("say 10"), talk("say 20")]
    assert len(train) == 111
    assert not set(held) & set(train)
    asked = tmp_path / "asked.jsonl"
    asked.write_text(talk("say 7") + "\n")
    ran = adapt(cli, parent, data, tmp_path / "other", "--steps", 1, "--count", 0, "--held-out", asked)
    assert ran.code == 0, ran.err
    assert talk("say 7") not in lines(tmp_path / "other" / "run" / "train.jsonl")


def test_records_of_every_editor_are_read(cli, parent, tmp_path):
    data = tmp_path / "chat.jsonl"
    strange = json.dumps(json.loads(talk("line \u2028 and \x85 inside")), ensure_ascii=False)
    data.write_bytes(("\ufeff" + "\r\n".join([strange, *(talk(f"say {i}") for i in range(5))]) + "\r\n").encode())
    ran = adapt(cli, parent, data, tmp_path / "child", "--steps", 1, "--count", 1)
    assert ran.code == 0, ran.err
    assert len(lines(tmp_path / "child" / "run" / "train.jsonl")) == 5


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b'{"messages": [{"role": "us', "bad.jsonl line 37 is not JSON"),
        (b'{"text": "a"}', "bad.jsonl record 37"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "bad.jsonl record 37"),
        (b'{"prompt": "a", "answer": "b"}', "bad.jsonl record 37"),
        (b'"B\xe4r"', "not UTF-8"),
    ],
)
def test_a_bad_record_is_named_before_anything_is_written(cli, parent, tmp_path, bad, words):
    data = tmp_path / "bad.jsonl"
    rows = [talk(f"say {i}").encode() for i in range(60)]
    rows[36] = bad
    data.write_bytes(b"\n".join(rows) + b"\n")
    ran = adapt(cli, parent, data, tmp_path / "child", "--steps", 1)
    assert ran.code == 2
    assert words in ran.err
    assert not (tmp_path / "child").exists()


def test_a_held_out_prompt_beyond_the_context_is_left_out_and_too_much_room_refused(cli, parent, tmp_path):
    data = tmp_path / "chat.jsonl"
    data.write_text("\n".join(talk("word " * 300 if i == 0 else f"say {i}") for i in range(60)) + "\n")
    out = tmp_path / "child"
    ran = adapt(cli, parent, data, out, "--steps", 1, "--count", 9, "--max-tokens", 8, "--json")
    assert ran.code == 0, ran.err
    assert "1 held-out prompts are too long" in ran.err
    assert {s["n"] for s in ran.json["sides"]} == {1}
    ran = adapt(cli, parent, data, tmp_path / "next", "--steps", 1, "--max-tokens", 128)
    assert ran.code == 2
    assert "--max-tokens" in ran.err
    assert not (tmp_path / "next").exists()


def test_a_folder_with_files_is_left_alone(cli, parent, chat, tmp_path):
    own = tiny_checkpoints.qwen2_checkpoint(tmp_path / "own")
    before = (own / "config.json").read_bytes()
    ran = adapt(cli, own, chat, own, "--steps", 1)
    assert ran.code == 2
    assert "a checkpoint" in ran.err
    assert (own / "config.json").read_bytes() == before
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("mine")
    assert adapt(cli, parent, chat, notes, "--steps", 1).code == 2
    assert [p.name for p in notes.iterdir()] == ["mine.txt"]


def test_what_an_attempt_left_before_its_first_checkpoint_is_made_anew(cli, parent, chat, tmp_path):
    out = tmp_path / "child"
    assert adapt(cli, parent, chat, out, "--steps", 1, "--count", 0).code == 0
    for path in (*out.iterdir(), *(out / "run").glob("checkpoints")):  # as if killed before the first checkpoint
        if path.name != "run":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (out / "run" / "checkpoints" / ".writing-00000001").mkdir(parents=True)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"say {i}", "answer": "ok"}) + "\n" for i in range(60)))
    ran = adapt(cli, parent, pairs, out, "--steps", 1, "--count", 0, "--block", 16)
    assert ran.code == 0, ran.err
    assert json.loads((out / "config.json").read_text())["bd_size"] == 16
    assert json.loads(lines(out / "run" / "train.jsonl")[0]) == {"prompt": "say 1", "answer": "ok"}


def test_a_run_goes_on_only_as_it_began(cli, parent, chat, tmp_path):
    out = tmp_path / "child"
    assert adapt(cli, parent, chat, out, "--steps", 1, "--count", 0, "--lora", 2).code == 0
    go_on = ("--steps", 2, "--count", 0, "--resume")
    other, twin = tiny_checkpoints.qwen2_checkpoint(tmp_path / "other", 1), tmp_path / "twin.jsonl"
    twin.write_bytes(chat.read_bytes())
    for ran, word in (
        (adapt(cli, other, chat, out, *go_on, "--lora", 2), "parent with --resume"),
        (adapt(cli, parent, twin, out, *go_on, "--lora", 2), "--data with --resume"),
        (adapt(cli, parent, chat, out, *go_on, "--lora", 2, "--block", 16), "--block"),
        (adapt(cli, parent, chat, out, *go_on, "--lora", 4), "other adapters"),
        (adapt(cli, parent, chat, out, *go_on, "--lora", 2, "lora.alpha=4"), "other adapters"),
        (adapt(cli, parent, chat, out, *go_on), "other adapters"),
    ):
        assert ran.code == 2
        assert word in ran.err
    assert adapt(cli, parent, chat, out, *go_on, "--lora", 2).code == 0


def test_the_child_stops_where_its_parent_stops(cli, chat, tmp_path):
    parent = tiny_checkpoints.qwen2_checkpoint(tmp_path / "parent")
    ends = [json.loads((parent / "config.json").read_text())["eos_token_id"], 397]
    (parent / "generation_config.json").write_text(json.dumps({"eos_token_id": ends[::-1]}))
    ran = adapt(cli, parent, chat, tmp_path / "child", "--steps", 1, "--count", 0)
    assert ran.code == 0, ran.err
    assert load_model(tmp_path / "child").traits.eos_ids == tuple(ends)
    assert json.loads((tmp_path / "child" / "config.json").read_text())["pad_token_id"] == ends[0]


def test_the_report_is_about_the_written_child(cli, parent, chat, tmp_path):
    out = tmp_path / "child"
    ran = adapt(cli, parent, chat, out, "--steps", 8, "--lr", 0.05, "--lora", 2, "--count", 0, "--json")
    assert ran.code == 0, ran.err
    held_out = ChatData(Files((str(out / "run" / "held_out.jsonl"),)), length=96, rows=4).open(0)
    codec = Codec.from_dir(out)
    held_out.bind(codec)
    batches = [held_out.next() for _ in range(8)]
    child, before = (load_model(p, dtype="fp32") for p in (out, parent))
    bound = BlockDiffusion(8).bound(child.traits.mask_id, codec.named("eos_token"))
    found = nelbo(bound, Net(child.model), batches, 4, 0)
    assert ran.json["held_out"]["child_nelbo"] == pytest.approx(found["nelbo"], abs=1e-6)
    nats = tokens = 0.0
    with torch.no_grad():
        for batch in batches:
            for ids, real, scored in zip(batch.ids, batch.real, batch.scored, strict=True):
                row = ids[: int(real.sum())]
                scores = before.model.logits(before.model(row[None], causal=True)[0]).log_softmax(-1)
                places = scored.nonzero().flatten()
                nats -= float(scores[places - 1, row[places]].sum())
                tokens += len(places)
    assert ran.json["held_out"]["parent_nll"] == pytest.approx(nats / tokens, abs=1e-5)


def test_the_held_out_loss_is_computed_once_with_the_trainers_memory_given_back(
    cli, parent, chat, tmp_path, monkeypatch
):
    held, alive = [], []
    build = Trainer.__init__

    def remembered(self, *args, **kwargs):
        build(self, *args, **kwargs)
        held.extend(weakref.ref(x) for x in (self, self.model, self.parent.model, *self.optimizers))

    def counted(*args):
        alive.append([r for r in held if r() is not None])
        return nelbo(*args)

    monkeypatch.setattr(Trainer, "__init__", remembered)
    monkeypatch.setattr("unmask.train.validate.nelbo", counted)
    monkeypatch.setattr("unmask.train.trainer.nelbo", counted)
    ran = adapt(cli, parent, chat, tmp_path / "child", "--steps", 2, "--count", 2, "--max-tokens", 8)
    assert ran.code == 0, ran.err
    assert len(held) > 3
    assert alive == [[], []]
    said = ran.out.splitlines()
    assert said[0].startswith("held out, nats per answer token: parent ")
    assert "2 steps" in said[1]
    assert "of free text it says little" in said[2]
    assert json.loads((tmp_path / "child" / "report.json").read_text())["exact_match"] is True
