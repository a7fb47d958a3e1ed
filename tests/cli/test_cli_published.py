"""Command lines of the published scripts, word for word, and what they must mean here.

Fast-dLLM chat.py: --gen_length --steps --block_size --use_cache --if_cache_position --threshold. Its lm-eval commands:
use_cache, dual_cache, threshold, factor, show_speed. LLaDA: generate() and eval_reverse. Dream: demo and eval.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_ran import Run
from tiny_checkpoints import v2_checkpoint

from unmask.cli.decoding import add_decoding, add_model, resolve
from unmask.cli.parsing import Parser
from unmask.core.errors import InputError

TABLE: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    # Fast-dLLM llada/chat.py
    ("--gen_length 128 --steps 128 --block_size 32", {"gen_length": 128, "steps": 128, "block_length": 32}, ()),
    ("--block_size 32 --use_cache", {"block_length": 32, "use_cache": True}, ()),
    (
        "--gen_length 256 --steps 256 --block_size 32 --use_cache --if_cache_position --threshold 0.9",
        {"gen_length": 256, "steps": 256, "block_length": 32, "use_cache": True, "dual_cache": True, "threshold": 0.9},
        (),
    ),
    ("--if_cache_position", {"dual_cache": True}, ()),
    # Fast-dLLM eval, as switches
    (
        "--gen_length 256 --steps 8 --block_length 32 --use_cache --threshold 0.9 --show_speed",
        {"gen_length": 256, "steps": 8, "block_length": 32, "use_cache": True, "threshold": 0.9},
        ("--show_speed has no effect: speed is always printed",),
    ),
    (
        "--gen_length 256 --block_length 32 --use_cache --dual_cache --factor 1.0",
        {"gen_length": 256, "block_length": 32, "use_cache": True, "dual_cache": True, "factor": 1.0},
        (),
    ),
    ("--dual_cache", {"dual_cache": True}, ()),
    # Fast-dLLM v2 run_chatbot and eval
    (
        "--max_new_tokens 512 --block_size 32 --small_block_size 8 --threshold 0.9 --use_block_cache",
        {"gen_length": 512, "block_length": 32, "small_block_size": 8, "threshold": 0.9, "dual_cache": True},
        (),
    ),
    # LLaDA generate.py, eval_llada, eval_reverse, OpenCompass
    (
        "--steps 128 --gen_length 128 --block_length 128 --temperature 0 --cfg_scale 0 --remasking low_confidence",
        {"steps": 128, "gen_length": 128, "block_length": 128, "cfg_scale": 0.0, "remasking": "low_confidence"},
        (),
    ),
    (
        "--mask_id 126336 --remasking random",
        {"remasking": "random"},
        ("--mask_id has no effect: the mask id comes from the checkpoint",),
    ),
    ("--cfg 2.0 --eos_inf", {"cfg_scale": 2.0, "logits_eos_inf": True}, ()),
    ("--logits_eos_inf --confidence_eos_eot_inf", {"logits_eos_inf": True, "confidence_eos_eot_inf": True}, ()),
    (
        "--gen_steps 512 --gen_length 512 --gen_blocksize 512 --diff_confidence_eos_eot_inf",
        {"steps": 512, "gen_length": 512, "block_length": 512, "confidence_eos_eot_inf": True},
        (),
    ),
    # Dream demos and eval
    (
        "--max_new_tokens 256 --steps 256 --temperature 0.4 --top_p 0.95 --alg entropy --alg_temp 0.1",
        {"gen_length": 256, "steps": 256, "temperature": 0.4, "top_p": 0.95, "alg": "entropy", "alg_temp": 0.1},
        (),
    ),
    (
        "--max_new_tokens 512 --diffusion_steps 512 --alg maskgit_plus --eps 0.001 --top_k 50 --temperature 0.2",
        {"gen_length": 512, "steps": 512, "alg": "maskgit_plus", "eps": 0.001, "top_k": 50, "temperature": 0.2},
        (),
    ),
    (
        "--max_new_tokens 256 --diffusion_steps 8 --alg confidence_threshold --threshold 0.9 --use_cache --dual_cache",
        {"gen_length": 256, "steps": 8, "alg": "confidence_threshold", "threshold": 0.9, "use_cache": True,
         "dual_cache": True},
        (),
    ),
]  # fmt: skip


def parse(line: str) -> tuple[Any, int | None, list[str], Any]:
    parser = Parser("test", "")
    add_model(parser)
    add_decoding(parser)
    args = parser.parse(line.split())
    return *resolve(args), args


@pytest.mark.parametrize(("line", "meaning", "warnings"), TABLE, ids=[row[0] for row in TABLE])
def test_published_command_line(line: str, meaning: dict[str, Any], warnings: tuple[str, ...]) -> None:
    options, tokens, warned, _ = parse(line)
    assert {name: getattr(options, name) for name in meaning} == meaning
    said = {**options.said()}
    said.pop("temperature", None)
    assert set(said) <= {*meaning, "temperature"}
    assert tokens == meaning.get("gen_length")
    assert tuple(warned) == warnings


@pytest.mark.parametrize(
    "name",
    ["gen-length", "max-tokens", "block-length", "alg-temp", "cfg-scale", "guidance-scale", "top-p", "top-k"],
)
def test_underscores_mean_the_same_and_are_noticed(name: str) -> None:
    value = "1" if name != "top-p" else "0.5"
    ours, theirs = parse(f"--{name} {value}"), parse(f"--{name.replace('-', '_')} {value}")
    assert ours[0] == theirs[0]
    assert ours[3].published == []
    assert theirs[3].published == [f"--{name.replace('-', '_')}"]


def test_aliases_stay_out_of_the_help(cli: Run) -> None:
    text = cli("generate", "--help").out
    for name in ("--gen-length", "--block-length", "--cache", "--cfg-scale", "--seed"):
        assert name in text
    for name in (
        "--gen_length",
        "--block_size",
        "--use_cache",
        "--if_cache_position",
        "--diffusion_steps",
        "--mask_id",
    ):
        assert name not in text
    for default in ("(default: 128)", "(default:\n", "32)", "0.9)", "(default: 0)"):
        assert default in text


@pytest.mark.parametrize("line", ["--use_cache --cache dual", "--max_new_tokens 8 --gen_length 9"])
def test_contradictions_are_refused(line: str) -> None:
    with pytest.raises(InputError):
        parse(line)


def test_effectless_options_warn_in_published_spelling_and_are_errors_in_ours(cli: Run, llada: Path) -> None:
    theirs = cli(
        "generate", "-m", llada, "hi", *"--gen_length 16 --steps 16 --block_size 8 --use_cache --threshold 0.9".split()
    )
    assert theirs.code == 0
    assert "warning: --steps has no effect" in theirs.err
    assert "prefix" in theirs.err
    ours = cli("generate", "-m", llada, "hi", *"--gen-length 16 --steps 16 --block-length 8 --threshold 0.9".split())
    assert ours.code == 2
    assert "without effect: --steps" in ours.err


def test_dual_cache_alone_is_warned_about_where_it_does_nothing(cli: Run, llada: Path) -> None:
    ran = cli("generate", "-m", llada, "hi", *"--gen_length 8 --block_size 8 --dual_cache".split())
    assert ran.code == 0
    assert "warning: --dual_cache has no effect" in ran.err


@pytest.mark.parametrize(("theirs", "ours"), [("--use_cache", "block"), ("--use_block_cache", "sub_block"),
                                              ("--use_cache --dual_cache", "sub_block")])  # fmt: skip
def test_on_block_diffusion_models_the_switches_mean_its_own_caches(
    cli: Run, tmp_path: Path, theirs: str, ours: str
) -> None:
    model = v2_checkpoint(tmp_path / "v2")
    line = "--max_new_tokens 40 --block_size 8 --small_block_size 4 --threshold 0.5"
    ran = cli("generate", "-m", model, "hi", *line.split(), *theirs.split())
    assert ran.code == 0, ran.err
    assert f"cache {ours} (given)" in ran.err and "schedule blocks(length=4) (given)" in ran.err
    own = cli("generate", "-m", model, "hi", *f"-n 40 --small-block-size 4 --threshold 0.5 --cache {ours}".split())
    assert own.out == ran.out


def test_on_block_diffusion_models_block_size_is_the_models_own(cli: Run, tmp_path: Path) -> None:
    model = v2_checkpoint(tmp_path / "v2")
    sizes = "--max_new_tokens 16 --block_size 4 --small_block_size 2".split()
    ran = cli("generate", "-m", model, "hi", *sizes)
    assert ran.code == 2
    assert "expected 8, the model's block size" in ran.err and "no effect" not in ran.err
    as_published = cli("generate", "-m", model, "hi", *sizes, "--profile", "fast-dllm-v2")
    assert as_published.code == 0, as_published.err
    assert "v2_blocks(length=2, block=4) (given)" in as_published.err
    steps = cli("generate", "-m", model, "hi", *"--max_new_tokens 8 --diffusion_steps 8 --threshold 0.9".split())
    assert steps.code == 0, steps.err
    assert "--diffusion_steps has no effect with the other options\n" in steps.err


def test_the_profile_of_fast_dllm_v2_runs_from_the_command_line(cli: Run, tmp_path: Path) -> None:
    model = v2_checkpoint(tmp_path / "v2")
    line = "--max_new_tokens 20 --block_size 8 --small_block_size 4 --threshold 0.5 --use_block_cache"
    ran = cli("generate", "-m", model, "hi", "--json", "--profile", "fast-dllm-v2", *line.split())
    assert ran.code == 0, ran.err
    assert "v2_cache(block=8, length=4, sub_blocks=True) (given)" in ran.err
    short = cli("generate", "-m", model, "hi", "--profile", "fast-dllm-v2", "-n", "20")
    assert short.code == 2 and "at least one block (32)" in short.err
    assert cli("generate", "-m", "nano-llada", "hi", "--profile", "fast-dllm-v2").code == 2


def test_ls_says_what_the_switches_mean_per_family(cli: Run) -> None:
    told = {row["name"]: row["published as"] for row in json.loads(cli("ls", "caches", "--json").out)}
    assert told["prefix"] == {"--use_cache": "llada, Dream"}
    assert told["block"]["--use_cache"].startswith("Fast_dLLM_Qwen, unmask_context_causal, sdar")
    assert list(told["sub_block"].values()) == ["Fast_dLLM_Qwen, unmask_context_causal, sdar"]
    assert "--use_block_cache" in cli("ls", "caches").out


def test_a_published_line_and_ours_give_the_same_text(cli: Run, llada: Path) -> None:
    theirs = cli(
        "generate",
        "-m",
        llada,
        "hi",
        "-q",
        *"--gen_length 16 --steps 8 --block_size 8 --use_cache --if_cache_position".split(),
    )
    ours = cli("generate", "-m", llada, "hi", "-q", *"-n 16 --steps 8 --block-length 8 --cache dual".split())
    assert theirs.code == ours.code == 0
    assert theirs.out == ours.out
