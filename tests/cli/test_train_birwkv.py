"""`unmask train birwkv`: every flag means something, runs go on where they stood, and what comes out decodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_ran import Ran, Run
from safetensors.torch import load_file

from unmask.cli.decoding import add_decoding, resolve
from unmask.cli.parsing import Parser
from unmask.cli.train_birwkv import build_parser, recipe_of
from unmask.core.errors import InputError

FLAGS: dict[str, tuple[object, ...]] = {
    "--d-model": (64,), "--n-layers": (2,), "--mlp-ratio": (2.0,), "--embedding-dim": (32,), "--mixer": ("attention",),
    "--attention-every": (4,), "--conditioning": ("origin",), "--untied": (), "--diffusion-mode": ("token",),
    "--diffusion-steps": (500,), "--beta-schedule": ("cosine",), "--prediction-type": ("epsilon",),
    "--token-loss-weight": (0.5,), "--token-share": (0.5,), "--self-conditioning": (0.25,), "--prompt-dropout": (0.2,),
    "--prefix": (0.5,),
    "--hybrid": (0.5,), "--data": ("a.txt",), "--tokenizer": ("there",), "--vocab-size": (512,), "--seq-len": (256,),
    "--batch-size": (8,), "--gradient-accumulation-steps": (2,), "--optimizer": ("muon",), "--learning-rate": (0.001,),
    "--weight-decay": (0.0,), "--warmup-steps": (10,), "--max-steps": (50,), "--save-interval": (7,),
    "--precision": ("bf16",), "--ema": (0.99,), "--device": ("cpu",), "--threads": (1,), "--seed": (3,),
    "--output-dir": ("elsewhere",),
}  # fmt: skip
PUBLISHED = (
    "--d_model", "--n_layers", "--mlp_ratio", "--diffusion_steps", "--beta_schedule", "--prediction_type", "--seq_len",
    "--batch_size", "--learning_rate", "--weight_decay", "--max_steps", "--warmup_steps", "--diffusion_mode",
    "--token_loss_weight", "--save_interval", "--output_dir",
)  # fmt: skip


def recipe(*argv: object) -> Any:
    return recipe_of(build_parser().parse([str(a) for a in argv]))


# ---- flags -----------------------------------------------------------------------------------------------------------


def test_every_flag_is_in_the_table() -> None:
    names = [name for a in build_parser()._actions for name in a.option_strings]
    shown = {name for name in names if name.startswith("--") and "_" not in name}
    own = {"--json", "--quiet", "--resume-from-checkpoint"}
    assert shown - {"--help"} - own == set(FLAGS)


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_changes_the_recipe_in_both_spellings(flag: str) -> None:
    changed = recipe(flag, *FLAGS[flag])
    assert changed != recipe()
    assert recipe("--" + flag[2:].replace("-", "_"), *FLAGS[flag]) == changed


def test_the_published_spellings_are_all_there() -> None:
    assert {f.replace("_", "-").replace("--", "", 1) for f in PUBLISHED} <= {f[2:] for f in FLAGS}


def test_defaults_are_the_published_ones() -> None:
    r = recipe()
    assert (r.model.d_model, r.model.n_layers, r.model.mlp_ratio, r.model.weight_tying) == (1024, 24, 2.5, True)
    assert (r.optim.lr, r.optim.weight_decay, r.optim.warmup, r.optim.betas, r.optim.clip) == (
        3e-4, 0.1, 1000, (0.9, 0.95), 1.0
    )  # fmt: skip
    assert (r.run.steps, r.run.save_every, r.run.skip_bad, r.objective.mode) == (100_000, 5000, 10, "mixed")
    assert r.objective.token_share == 0.3 and r.model.num_diffusion_steps == 1000
    assert r.optim.schedule == "wsd" and r.optim.decay == 1.0, "linear warmup and decay"


def test_a_published_schedule_has_the_steps_that_were_asked_for() -> None:
    assert recipe("--beta-schedule", "cosine", "--diffusion-steps", 200).objective.schedule == "cosine(steps=200)"
    spec = "logit_normal(mean=-1.0)"
    assert recipe("--beta-schedule", spec).objective.schedule == spec


def test_text_files_become_rows_of_the_length() -> None:
    r = recipe("--data", "a.txt", "b.jsonl", "--seq-len", 48, "--batch-size", 3)
    assert (r.data.length, r.data.rows, r.model.max_sequence_length) == (48, 3, 48)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--mixer", "mamba"), ("--mixer",)),
        (("--beta-schedule", "quadratic"), ("quadratic",)),
        (("--d-model", 0), ("--d-model",)),
        (("--hybrid", 2), ("--hybrid",)),
        (("--data", "nowhere.txt"), ("nowhere.txt",)),
        (("--prefix", 0.5), ("--prefix", "no effect")),
        (("--tokenizer", "there", "--vocab-size", 300), ("--vocab-size", "--tokenizer")),
        (("--diffusion-mode", "token", "--self-conditioning", 0.5), ("--self-conditioning", "no effect")),
        (("--diffusion-mode", "token", "--token-loss-weight", 0.5), ("--token-loss-weight", "no effect")),
        (("--diffusion-mode", "diffusion", "--token-share", 0.5), ("--token-share", "no effect")),
        (("--d-modle", 8), ("--d-model",)),
        (("--warmup_steps", -1), ("--warmup_steps: expected",)),
    ],
)
def test_bad_flags_are_refused_in_one_line(
    cli: Run, tmp_path: Path, argv: tuple[object, ...], words: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    ran = cli("train", "birwkv", *argv, "--output-dir", out)
    assert ran.code == 2 and "Traceback" not in ran.err and not out.exists()
    for word in words:
        assert word in ran.err, ran.err


def test_the_folder_of_a_run_has_a_name(cli: Run) -> None:
    ran = cli("train", "birwkv", "--output-dir", "")
    assert ran.code == 2 and "--output-dir" in ran.err


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from unmask.cli.main import main\n"
        "try:\n    main(['train', 'birwkv', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'yaml' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    for flag in FLAGS:
        assert flag in ran.stdout


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "notes.txt"
    path.write_text("\n\n".join(f"Tom has {i} apples and {i + 1} pears." for i in range(40)), encoding="utf-8")
    return path


def train(cli: Run, text: Path, out: Path, *more: object) -> Ran:
    return cli(
        "train", "birwkv", "--data", text, "--vocab-size", 280, "--d-model", 16, "--n-layers", 1, "--embedding-dim", 8,
        "--seq-len", 24, "--batch-size", 2, "--warmup-steps", 1, "--max-steps", 5, "--save-interval", 2, "--device",
        "cpu", "--threads", 1, "--output-dir", out, *more,
    )  # fmt: skip


def resume(cli: Run, named: Path, *more: object) -> Ran:
    return cli("train", "birwkv", "--resume-from-checkpoint", named, *more)


def newest(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "checkpoints").glob("step-*"))


def test_train_resume_and_generate(cli: Run, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ran = train(cli, text, out)
    assert ran.code == 0, ran.err
    assert Path(ran.out.strip()) == out / "model" and newest(out)[-1] == "step-00000005"
    config = json.loads((out / "model/config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["d_model"], config["embedding_dim"]) == ("birwkv", 16, 8)
    kept = json.loads((out / "birwkv.json").read_text(encoding="utf-8"))
    assert (kept["max_steps"], kept["d_model"]) == (5, 16) and "resume_from_checkpoint" not in kept

    base = ("generate", "--model", out / "model", "--num-steps", 4, "--gen-length", 8, "--device", "cpu", "Tom has")
    options = ("--sampler", "ddpm", "--guidance-scale", 2, "--temperature", 0.8)
    found = cli(*base, *options, "--json")
    assert found.code == 0, found.err
    assert found.json["nfe"] == 4
    assert cli(*base, *options, "--json").json["text"] == found.json["text"]
    for sampler in ("ddim", "dpmpp", "masked"):
        ran = cli(*base, "--sampler", sampler, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["nfe"] <= 4
    given = cli(*base, "--sampler", "ddpm", "--constraint", "2:a")
    assert given.code == 0 and "not seen" not in given.err, "every row reads every row"
    both = cli(*base, "--sampler", "ddpm", "--policy", "threshold")
    assert both.code == 2 and "--sampler and --policy" in both.err

    ran = resume(cli, out, "--max-steps", 8)
    assert ran.code == 0, ran.err
    assert newest(out)[-1] == "step-00000008"
    kept = json.loads((out / "birwkv.json").read_text(encoding="utf-8"))
    assert (kept["max_steps"], kept["d_model"], kept["data"]) == (8, 16, [str(text)])
    ran = resume(cli, out / "checkpoints/step-00000008", "--max-steps", 9)
    assert ran.code == 0 and newest(out)[-1] == "step-00000009"
    older = resume(cli, out / "checkpoints/step-00000008", "--max-steps", 10)
    assert older.code == 2 and "newest" in older.err and newest(out)[-1] == "step-00000009"
    elsewhere = resume(cli, out, "--max-steps", 10, "--output-dir", tmp_path / "other")
    assert elsewhere.code == 2 and "--output-dir" in elsewhere.err
    shape = resume(cli, out, "--max-steps", 10, "--d-model", 32)
    assert shape.code == 2 and "shape" in shape.err
    assert resume(cli, out, "--max-steps", 9, "--output-dir", out).code == 0
    done = resume(cli, out)
    assert done.code == 0 and "done before" in done.err
    fewer = resume(cli, out, "--max-steps", 3)
    assert fewer.code == 2 and "9 steps that are done; got 3" in fewer.err
    idle = resume(cli, out, "--max-steps", 10, "--vocab-size", 300)
    assert idle.code == 2 and "--vocab-size" in idle.err
    again = train(cli, text, out)
    assert "--output-dir" in again.err and "--resume-from-checkpoint" in again.err
    (out / "birwkv.json").write_text('{"d_model": 1', encoding="utf-8")
    broken = resume(cli, out)
    assert broken.code == 2 and "birwkv.json" in broken.err and "Traceback" not in broken.err
    assert again.code == 2 and newest(out)[-1] == "step-00000009", "a finished run is not overwritten"


def test_a_resumed_run_ends_with_the_very_same_weights(cli: Run, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(cli, text, out, "--max-steps", 6, "--learning-rate", 0.01).code == 0
    whole = (out / "model").rename(tmp_path / "whole")
    (out / "checkpoints/step-00000006").rename(tmp_path / "away")
    ran = resume(cli, out, "--json")
    assert ran.code == 0, ran.err
    assert (out / "model/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    away = load_file(tmp_path / "away/tensors.safetensors")
    again = load_file(out / "checkpoints/step-00000006/tensors.safetensors")
    assert away.keys() == again.keys() and all(torch.equal(away[k], again[k]) for k in away)


@pytest.mark.parametrize(
    "options",
    [
        ("--conditioning", "origin", "--diffusion-mode", "diffusion"),
        ("--mixer", "attention", "--untied", "--prediction-type", "epsilon"),
    ],
)
def test_other_models_train_and_decode(cli: Run, text: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    base = [o for o in ("--embedding-dim", 16) if "origin" in options]
    ran = train(cli, text, tmp_path / "run", *options, *base, "--max-steps", 2)
    assert ran.code == 0, ran.err
    ran = cli(
        "generate", "--model", tmp_path / "run/model", "--sampler", "ddim", "--num-steps", 3, "--gen-length", 6,
        "--device", "cpu", "--json", "Tom",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["nfe"] == 3
    usual = cli("generate", "--model", tmp_path / "run/model", "--gen-length", 6, "--device", "cpu", "--json", "Tom")
    assert usual.code == 0, usual.err
    expected = "ddpm(steps=64" if "diffusion" in options else "dream(alg='origin', steps=6"
    assert usual.json["settings"]["policy"].startswith(expected)


def test_a_sampler_wins_over_the_policy_of_a_settings_file(tmp_path: Path) -> None:
    parser = Parser("unmask generate", "")
    add_decoding(parser)
    (tmp_path / "tuned.toml").write_text('[decoding]\npolicy = "threshold(0.7)"\n', encoding="utf-8")
    given = ["--settings", str(tmp_path / "tuned.toml")]
    assert resolve(parser.parse(given))[0].policy == "threshold(0.7)"
    assert resolve(parser.parse([*given, "--sampler", "masked"]))[0].policy == "dream(alg='origin')"
    with pytest.raises(InputError, match="--sampler and --policy"):
        resolve(parser.parse(["--sampler", "ddpm", "--policy", "margin"]))


def test_a_folder_without_a_run_is_refused(cli: Run, tmp_path: Path) -> None:
    for named in (tmp_path, tmp_path / "checkpoints/step-00000004"):
        ran = resume(cli, named)
        assert ran.code == 2 and "birwkv.json" in ran.err


def test_no_sampler_of_vectors_on_a_model_of_masks(cli: Run, llada: Path) -> None:
    ran = cli("generate", "--model", llada, "--sampler", "ddpm", "--gen-length", 8, "hello")
    assert ran.code == 2 and "ddpm" in ran.err and "unmask ls policies" in ran.err


def test_a_sampler_needs_a_model_trained_for_it(cli: Run, text: Path, tmp_path: Path) -> None:
    """Masks on a model of vectors alone, vectors on one of masks alone, and a likelihood by masks."""
    for mode in ("diffusion", "token"):
        assert train(cli, text, tmp_path / mode, "--diffusion-mode", mode, "--max-steps", 1).code == 0
    write = ("generate", "--gen-length", 6, "--device", "cpu", "Tom", "--model")
    vectors, masks = tmp_path / "diffusion/model", tmp_path / "token/model"
    for asked in (
        ("--sampler", "masked"),
        ("--policy", "threshold(0.9)"),
        ("--threshold", 0.5),
        ("--profile", "llada"),
    ):
        ran = cli(*write, vectors, *asked)
        assert ran.code == 2 and ran.out == "", asked
        for word in ("expected a model trained to fill masks", "got one that only denoises vectors", "--sampler"):
            assert word in ran.err, ran.err
    for sampler in ("ddpm", "ddim", "dpmpp"):
        ran = cli(*write, masks, "--sampler", sampler)
        assert ran.code == 2 and ran.out == ""
        for word in (
            "expected a model trained to denoise vectors",
            "got one that only fills masks",
            "unmask ls policies",
        ):
            assert word in ran.err, ran.err
    for model, sampler in ((vectors, "ddpm"), (masks, "masked")):
        assert cli(*write, model, "--sampler", sampler).code == 0 and cli(*write, model).code == 0
    pair = ("score", "--device", "cpu", "-p", "Tom", "-a", " has", "--model")
    scored = cli(*pair, vectors)
    assert scored.code == 2 and "fill masks" in scored.err and cli(*pair, masks).code == 0


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(InputError, match="--ema"):
        build_parser().parse(["--ema", "1.5"])
