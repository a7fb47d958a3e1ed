"""Who decides: the user, then the checkpoint, then the default."""

import json
import shutil
from dataclasses import fields

import pytest
import tiny_checkpoints

import unmask
from unmask.core import catalog


def axes(generation):
    return {k: generation.settings[k] for k in ("schedule", "policy", "cache")}


def test_a_silent_user_gets_the_checkpoints_settings(tiny, tiny_models):
    found = tiny.generate("x", max_tokens=8)
    assert axes(found) == {
        "schedule": "whole (checkpoint)",
        "policy": "random(steps=8) (checkpoint)",
        "cache": "none (checkpoint)",
    }
    base = tiny.generate("x", chat=False, max_tokens=8).settings
    assert base["policy"].startswith("low_confidence(steps=8")
    assert base["schedule"] == "blocks(length=8) (checkpoint)"
    assert tiny_models["dream"].generate("x", max_tokens=8).settings["policy"].startswith("entropy(steps=8")
    auto = tiny_models["qwen2"].generate("x", max_tokens=4)
    assert axes(auto) == {
        "schedule": "growing(length=1) (checkpoint)",
        "policy": "left_to_right (checkpoint)",
        "cache": "block (checkpoint)",
    }


@pytest.mark.parametrize(
    ("given", "policy", "schedule"),
    [
        ({"steps": 4}, "random(steps=4", "whole"),
        ({"threshold": 0.5}, "threshold(threshold=0.5", "blocks(length=32)"),
        ({"policy": "factor(1.0)"}, "factor(", "blocks(length=32)"),
        ({"remasking": "low_confidence"}, "low_confidence(steps=8", "blocks(length=32)"),
        ({"schedule": "growing", "block_length": 4}, "threshold(", "growing(length=4)"),
        ({"block_length": 4, "steps": 8}, "low_confidence(steps=8", "blocks(length=4)"),
        ({"profile": "llada", "steps": 4}, "low_confidence(steps=4, all_passes=True", "blocks(length=8)"),
    ],
)
def test_the_user_wins(tiny, given, policy, schedule):
    found = axes(tiny.generate("x", max_tokens=8, **given))
    assert found["policy"].startswith(policy)
    assert found["schedule"].startswith(schedule)
    assert any(v.endswith("(given)") for v in found.values())


def test_a_number_the_recommended_pair_has_is_put_into_it(tiny):
    """Raw (Base): blocks + low_confidence; a block length and steps keep both."""
    found = axes(tiny.generate("x", chat=False, max_tokens=8, block_length=4, steps=2))
    assert found["schedule"] == "blocks(length=4) (given)"
    assert found["policy"].startswith("low_confidence(steps=2")


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    path = tiny_checkpoints.v2_checkpoint(tmp_path_factory.mktemp("v2"))
    return unmask.load(path, dtype="fp32", device="cpu")


@pytest.mark.parametrize("length", [32, 16, 5])
def test_a_given_block_length_is_honoured_or_refused_also_where_it_equals_a_default(v2, length):
    with pytest.raises(unmask.InputError, match=f"8, the model's block size; got {length}"):
        v2.generate("x", max_tokens=12, block_length=length)
    assert axes(v2.generate("x", max_tokens=12, block_length=4))["schedule"] == "blocks(length=4) (given)"


def test_given_numbers_that_equal_a_default_stay_given(tiny_dirs, tmp_path):
    own = {"schedule": "blocks(8)", "policy": "low_confidence(steps=4)", "gen_length": 8, "steps": 4, "block_length": 8}
    model = own_settings(tiny_dirs["llada"], tmp_path / "own", **own)
    default = {f.name: f.default for f in fields(catalog.load("policy", "low_confidence"))}["steps"]
    found = axes(model.generate("x", steps=default, block_length=32))
    assert found["schedule"] == "blocks(length=32) (given)"
    assert found["policy"] == f"low_confidence(steps={default}) (given)"


def test_published_parts_alone_are_refused_before_decoding(v2):
    with pytest.raises(unmask.InputError, match="together"):
        v2.generate("Hi", max_tokens=12, cache="v2_cache(8, length=2)")


def test_cache_and_sampling(tiny):
    found = tiny.generate("x", max_tokens=8, cache="prefix", temperature=0.5, top_p=0.9).settings
    assert found["cache"] == "prefix (given)"
    assert found["temperature"] == "0.5 (given)"
    assert found["top_p"] == "0.9 (given)"
    assert found["policy"].endswith("(checkpoint)")


def own_settings(source, target, **recommended):
    shutil.copytree(source, target)
    (target / "unmask.json").write_text(json.dumps({"recommended": recommended}))
    return unmask.load(target, dtype="fp32", device="cpu")


def test_a_checkpoints_own_file_speaks(tiny_dirs, tmp_path):
    model = own_settings(
        tiny_dirs["llada"],
        tmp_path / "own",
        schedule="blocks",
        policy="threshold(0.8)",
        cache="dual",
        gen_length=16,
        block_length=8,
        sampling={"temperature": 0.7, "top_p": 0.9},
    )
    found = model.generate("x").settings
    assert found["gen_length"] == "16 (checkpoint)"
    assert found["schedule"] == "blocks(length=8) (checkpoint)"
    assert found["policy"].startswith("threshold(threshold=0.8")
    assert found["cache"] == "dual (checkpoint)"
    assert found["temperature"] == "0.7 (checkpoint)"
    changed = model.generate("x", threshold=0.4, temperature=0.0).settings
    assert changed["policy"].startswith("threshold(threshold=0.4")
    assert changed["schedule"] == "blocks(length=8) (checkpoint)"
    assert changed["temperature"] == "0 (given)"
    assert "top_p" not in changed


def test_unknown_sampling_names_are_the_checkpoints_fault(tiny_dirs, tmp_path):
    model = own_settings(tiny_dirs["llada"], tmp_path / "own", sampling={"warmth": 1})
    with pytest.raises(unmask.InputError, match="warmth"):
        model.generate("x", max_tokens=4)
