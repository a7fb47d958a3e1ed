"""The loop: learning, killing and resuming, averaging, accumulating, validating, exporting."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_checkpoints
import torch

from unmask.core.errors import CheckpointError, ConfigError, RunError
from unmask.models.load import load_model
from unmask.train import checkpoint
from unmask.train.events import Done, Progress, Saved, Started, Validated
from unmask.train.export import published_config
from unmask.train.inspect import inspect_data
from unmask.train.objectives.block_diffusion import BlockDiffusion
from unmask.train.optim import Muon, orthogonalise
from unmask.train.recipe import load_recipe
from unmask.train.trainer import Trainer

SOURCE = str(Path(__file__).parents[2] / "src")


def train(recipe_file, out, *overrides):
    return list(Trainer(load_recipe(recipe_file, overrides), out).fit())


def losses(events):
    return [(e.step, e.metrics["loss"]) for e in events if isinstance(e, Progress)]


def test_events_come_in_order(recipe_file, tmp_path):
    events = train(recipe_file, tmp_path / "run")
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Done)
    assert [e.step for e in events if isinstance(e, Progress)] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in events if isinstance(e, Saved)] == [2, 4, 6]
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "ce", "lr", "tokens", "speed"} <= set(lines[0])


@pytest.mark.parametrize("objective", ["llada-sft", "llada-pretrain"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_loss_falls(recipe_file, tmp_path, objective, kind):
    found = losses(
        train(recipe_file, tmp_path / "run", "run.steps=40", f"objective.kind={objective}", f"optim.kind={kind}",
              "objective.noise.t_min=0.3", "optim.schedule=constant", "run.save_every=40")
    )  # fmt: skip
    assert sum(x for _, x in found[-5:]) < 0.8 * sum(x for _, x in found[:5])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["run.precision=bf16"],
        ["run.accumulate=2", "run.ema=0.9", "optim.kind=adamw"],
        ["data.kind=text"],
    ],
    ids=["plain", "bf16", "accumulated", "text"],
)
def test_a_resumed_run_has_the_very_same_losses(recipe_file, tmp_path, overrides):
    if overrides == ["data.kind=text"]:
        (tmp_path / "a.txt").write_text("\n\n".join(f"Tom has {i} apples and {i} pears." for i in range(50)))
        source = f"{{kind: files, paths: ['{tmp_path}/a.txt']}}"
        overrides = [
            f"data={{kind: text, source: {source}, length: 32, rows: 4, window: 8}}",
            "objective.kind=llada-pretrain",
        ]
    whole = train(recipe_file, tmp_path / "whole", *overrides)
    run = Trainer(load_recipe(recipe_file, overrides), tmp_path / "cut").fit()
    for event in run:
        if isinstance(event, Progress) and event.step == 5:
            break  # after the checkpoint of step 4
    run.close()
    rest = train(recipe_file, tmp_path / "cut", *overrides)
    assert rest[0].step == 4
    assert losses(rest) == losses(whole)[4:]
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "cut/model" / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()
    logged = [json.loads(x)["step"] for x in (tmp_path / "cut/metrics.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_process_resumes_bit_equal(recipe_file, tmp_path):
    whole = train(recipe_file, tmp_path / "whole", "run.steps=30")
    code = (
        "import sys; from unmask.train.recipe import load_recipe; from unmask.train.trainer import Trainer\n"
        "for e in Trainer(load_recipe(sys.argv[1], ['run.steps=30']), sys.argv[2]).fit(): pass"
    )
    env = {**os.environ, "PYTHONPATH": SOURCE}
    process = subprocess.Popen([sys.executable, "-c", code, str(recipe_file), str(tmp_path / "cut")], env=env)
    log = tmp_path / "cut/metrics.jsonl"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 9):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    rest = train(recipe_file, tmp_path / "cut", "run.steps=30")
    assert 0 < rest[0].step < 30
    assert losses(rest) == losses(whole)[rest[0].step :]


def test_accumulation_adds_up_the_same_batches(recipe_file, tmp_path):
    """Two micro-batches of one step give the gradient of their mean."""
    trainer = Trainer(load_recipe(recipe_file, ["run.accumulate=2"]), tmp_path / "a")
    seen = {}
    trainer._clip = lambda: seen.update(grad=[p.grad.clone() for p in trainer.model.parameters()]) or 0.0
    trainer._one_step()
    other = Trainer(load_recipe(recipe_file), tmp_path / "b")
    for _ in range(2):
        (other.objective(other.net, other.stream.next(), other.rng).total / 2).backward()
    assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in zip(seen["grad"], other.model.parameters()))


def test_the_moving_average_is_what_is_exported(recipe_file, tmp_path):
    events = train(recipe_file, tmp_path / "run", "run.ema=0.5")
    tensors, _ = checkpoint.load(checkpoint.latest(tmp_path / "run/checkpoints"))
    exported = load_model(events[-1].path, dtype="fp32", device="cpu").model
    for name, p in exported.named_parameters():
        assert torch.equal(p, tensors[f"ema.{name}"].bfloat16().float())
        assert not torch.equal(p, tensors[f"model.{name}"].bfloat16().float())


def test_validation_and_the_best_checkpoint(recipe_file, tmp_path):
    held_out = "data: {kind: generator, source: unmask.evals.tasks.synthetic:held_out_stream, batch_tokens: 200, stages: [{start: 0, mix: {copy: 1}}]}"  # noqa: E501
    metric = "metric: unmask.evals.synthetic_eval:metric, metric_args: {count: 2, tasks: copy}"
    events = train(
        recipe_file, tmp_path / "run", f"validate={{every: 2, batches: 2, {held_out}, {metric}}}", "run.ema=0.5"
    )
    found = [e for e in events if isinstance(e, Validated)]
    assert [e.step for e in found] == [2, 4, 6]
    assert {"nelbo", "nelbo_se", "exact", "exact/copy"} <= set(found[0].metrics)
    assert found[0].best
    assert all(e.metrics["nelbo_se"] > 0 for e in found)
    best = min(found, key=lambda e: e.metrics["nelbo"]).step
    names = [p.name for p in checkpoint.all_steps(tmp_path / "run/checkpoints")]
    assert f"step-{best:08d}" in names


def test_validation_changes_nothing_in_the_run(recipe_file, tmp_path):
    held_out = "{kind: generator, source: unmask.evals.tasks.synthetic:held_out_stream, batch_tokens: 200, stages: [{start: 0, mix: {copy: 1}}]}"  # noqa: E501
    plain = train(recipe_file, tmp_path / "a")
    watched = train(recipe_file, tmp_path / "b", f"validate={{every: 1, batches: 1, data: {held_out}}}")
    assert losses(plain) == losses(watched)


def test_a_run_may_be_made_shorter_or_longer(recipe_file, tmp_path):
    train(recipe_file, tmp_path / "run", "run.steps=4")
    events = train(recipe_file, tmp_path / "run", "run.steps=8")
    assert (events[0].step, events[-1].step) == (4, 8)
    with pytest.raises(ConfigError, match=r"past run\.steps"):
        train(recipe_file, tmp_path / "run", "run.steps=5")


def test_a_foreign_run_directory_is_refused(recipe_file, tmp_path):
    train(recipe_file, tmp_path / "run", "run.steps=2")
    with pytest.raises(ConfigError, match="another shape"):
        train(recipe_file, tmp_path / "run", "model.layers=1")
    with pytest.raises(ConfigError, match="another optimizer"):
        train(recipe_file, tmp_path / "run", "run.ema=0.9")


def test_a_damaged_checkpoint_is_refused(recipe_file, tmp_path):
    train(recipe_file, tmp_path / "run", "run.steps=2")
    file = checkpoint.latest(tmp_path / "run/checkpoints") / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        train(recipe_file, tmp_path / "run")


def test_a_run_directory_that_is_a_file_is_refused(recipe_file, tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(ConfigError, match="cannot use the run directory"):
        Trainer(load_recipe(recipe_file), tmp_path / "run")
    assert (tmp_path / "run").read_text() == "x"


def test_a_gradient_that_is_not_finite_stops_the_run(recipe_file, tmp_path):
    trainer = Trainer(load_recipe(recipe_file), tmp_path / "run")
    with torch.no_grad():
        trainer.model.final_norm.fill_(float("nan"))
    with pytest.raises(RunError, match="not finite"):
        list(trainer.fit())


def test_the_tokenizer_is_trained_once_and_kept(recipe_file, tmp_path):
    more = ["tokenizer={vocab_size: 400, samples: 200}", "run.steps=2"]
    train(recipe_file, tmp_path / "run", *more)
    first = (tmp_path / "run/tokenizer/tokenizer.json").read_bytes()
    train(recipe_file, tmp_path / "run", *more)
    assert (tmp_path / "run/tokenizer/tokenizer.json").read_bytes() == first


def test_fine_tuning_starts_from_a_checkpoint(recipe_file, tmp_path):
    first = train(recipe_file, tmp_path / "first", "run.steps=2")[-1].path
    trainer = Trainer(load_recipe(recipe_file, [f"model={{path: '{first}'}}", "tokenizer={}"]), tmp_path / "second")
    want = load_model(first, dtype="fp32", device="cpu").model
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), want.parameters()))
    assert isinstance(list(trainer.fit())[-1], Done)


@pytest.mark.parametrize("objective", ["llada-sft", "block-diffusion, block: 4", "ar"])
def test_fine_tuning_keeps_every_eos_id_of_the_checkpoint(recipe_file, tmp_path, objective):
    """Instruct models name further ones in generation_config.json, which the export does not write."""
    own = [f"objective={{kind: {objective}}}", "run.steps=1"]
    if objective != "llada-sft":
        own.append("model={dim: 32, layers: 2, heads: 2, mlp_dim: 64, qkv_bias: true, rope_float32: false}")
    first = train(recipe_file, tmp_path / "first", *own)[-1].path
    (first / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    ends = load_model(first, device="cpu").traits.eos_ids
    assert len(ends) == 3
    again = [own[0], "run.steps=1", f"model={{path: '{first}'}}", "tokenizer={}"]
    second = train(recipe_file, tmp_path / "second", *again)[-1].path
    assert not (second / "generation_config.json").exists()
    assert load_model(second, device="cpu").traits.eos_ids == ends


def test_the_last_validation_can_be_left_to_the_caller(recipe_file, tmp_path):
    section = "{kind: generator, source: 'unmask.evals.tasks.synthetic:stream', stages: [{start: 0, mix: {copy: 1}}]}"
    recipe = load_recipe(recipe_file, [f"validate={{every: 2, batches: 1, rounds: 2, data: {section}}}", "run.steps=4"])

    def validated(**options):
        events = list(Trainer(recipe, tmp_path / str(len(options)), **options).fit())
        assert [e.step for e in events if isinstance(e, Saved)][-1] == 4
        return [e.step for e in events if isinstance(e, Validated)]

    assert validated() == [2, 4]
    assert validated(validate_last=False) == [2]


def test_the_export_decodes(recipe_file, tmp_path):
    from unmask.pipeline import load

    path = train(recipe_file, tmp_path / "run", "recommended={gen_length: 16, schedule: blocks(8)}")[-1].path
    model = load(path, device="cpu")
    assert model.recommended().schedule == "blocks(8)"
    assert model.generate("Copy: cat dog").nfe > 0


def test_inspection_shows_every_place(recipe_file, tmp_path):
    samples = inspect_data(Trainer(load_recipe(recipe_file), tmp_path / "run"))
    rows = [next(samples) for _ in range(8)]
    kinds = {kind for row in rows for _, kind in row}
    assert {"kept", "masked", "open", "padding"} <= kinds
    assert all(row[0] == ("<|user|>", "kept") for row in rows)


def test_tensorboard_is_optional(recipe_file, tmp_path):
    try:
        import tensorboard  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ConfigError, match="tensorboard is missing"):
            train(recipe_file, tmp_path / "run", "run.tensorboard=true")
    else:
        train(recipe_file, tmp_path / "run", "run.tensorboard=true")
        assert list((tmp_path / "run/tensorboard").iterdir())


def test_newton_schulz_gives_nearly_orthogonal_updates():
    for shape in [(3, 8, 8), (2, 16, 4), (2, 4, 16)]:
        x = orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))).float()
        values = torch.linalg.svdvals(x)
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_muon_treats_fused_projections_part_by_part():
    p = torch.nn.Parameter(torch.zeros(12, 4))
    p.grad = torch.cat([torch.eye(4) * s for s in (1.0, 100.0, 1e-4)])
    Muon([{"params": [p], "parts": (4, 4, 4)}], lr=1.0, momentum=0.0, weight_decay=0.0).step()
    norms = [part.norm().item() for part in p.detach().split(4)]
    assert max(norms) / min(norms) < 1.2


def test_a_block_size_that_was_trained_is_written(tmp_path):
    found = load_model(tiny_checkpoints.v2_checkpoint(tmp_path / "v2"))
    ids = (found.traits.mask_id, found.traits.eos_ids[0])
    config = published_config(found.model.cfg, BlockDiffusion(16), ids, {**found.config, "note": "kept"})
    assert (found.config["bd_size"], config["bd_size"], config["note"]) == (8, 16, "kept")
    with pytest.raises(ConfigError) as refused:
        published_config(found.model.cfg, BlockDiffusion(8, shift=0), ids, found.config)
    assert "objective" in refused.value.remedy


@pytest.mark.parametrize(("before", "now"), [("block", "causal"), ("causal", "block")])
def test_training_does_not_change_the_context_in_silence(tmp_path, before, now):
    found = load_model(tiny_checkpoints.v2_checkpoint(tmp_path / "v2"))
    ids = (found.traits.mask_id, found.traits.eos_ids[0])
    config = published_config(found.model.cfg, BlockDiffusion(8, context=before), ids)
    with pytest.raises(ConfigError, match=rf"objective.context; expected {before}, .*; got {now}"):
        published_config(found.model.cfg, BlockDiffusion(8, context=now), ids, config)
