"""Recommended settings are data of the checkpoint."""

from __future__ import annotations

import json

import pytest
from models.tiny import DREAM, LLADA, QWEN2

from unmask.core import catalog
from unmask.core.errors import CheckpointError
from unmask.models.family import find_family
from unmask.models.recommend import recommended


def ask(config, **options):
    return recommended(find_family(config), config, **{"chat": True} | options)


def test_llada_base_and_instruct():
    base = ask(LLADA, chat=False, max_tokens=128)
    assert (base.schedule, base.policy, base.steps) == ("blocks(32)", "low_confidence(steps=128)", 128)
    short = ask(LLADA, max_tokens=512)
    assert (short.schedule, short.policy, short.block_length) == ("whole", "random(steps=512)", 512)
    assert short.alternatives["eos-flags"].sampling == {"confidence_eos_eot_inf": True}
    long = ask(LLADA, max_tokens=513)
    assert (long.schedule, long.policy) == ("blocks(32)", "low_confidence(steps=513)")
    assert long.known_issues and long.note


def test_other_families():
    dream = ask(DREAM, max_tokens=64)
    assert (dream.schedule, dream.policy, dream.steps) == ("whole", "entropy(steps=64)", 64)
    ar = ask(QWEN2)
    assert (ar.schedule, ar.policy, ar.cache, ar.gen_length) == ("growing(1)", "left_to_right", "block", 128)


def test_a_length_alone_in_the_checkpoint_does_not_change_its_pace(tmp_path):
    (tmp_path / "unmask.json").write_text(json.dumps({"recommended": {"gen_length": 64}}))
    assert ask(DREAM, directory=tmp_path).policy == "entropy(steps=64)"
    for tokens in (16, 64, 200):
        assert ask(DREAM, directory=tmp_path, max_tokens=tokens) == ask(DREAM, max_tokens=tokens)


@pytest.mark.parametrize("config", [LLADA, DREAM, QWEN2])
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("tokens", [1, 20, 600])
def test_every_spec_parses(config, chat, tokens):
    first = ask(config, chat=chat, max_tokens=tokens)
    for settings in (first, *first.alternatives.values()):
        for kind in ("schedule", "policy", "cache"):
            catalog.parse(kind, getattr(settings, kind))
        assert settings.gen_length == tokens and settings.block_length <= tokens


def test_a_checkpoint_may_bring_its_own(tmp_path):
    own = {"schedule": "blocks(8)", "policy": "low_confidence(steps=32)", "gen_length": 32, "steps": 32,
           "block_length": 8, "sampling": {"temperature": 0.0}, "known_issues": ["small"], "note": "ours"}  # fmt: skip
    (tmp_path / "unmask.json").write_text(json.dumps({"recommended": own}))
    found = ask(LLADA, directory=tmp_path)
    assert (found.schedule, found.gen_length, found.known_issues, found.note) == ("blocks(8)", 32, ("small",), "ours")
    longer = ask(LLADA, directory=tmp_path, max_tokens=64)
    assert (longer.gen_length, longer.steps, longer.policy) == (64, 64, "low_confidence(steps=64)")
    assert ask(LLADA, directory=tmp_path / "none").gen_length == 128


@pytest.mark.parametrize(
    "table",
    [[], {"schedules": "x"}, {"policy": "nonsense(1)"}, {"policy": 3}, {"steps": 0}, {"steps": "8"}, {"sampling": []},
     {"sampling": {"t": "x"}}, {"known_issues": "x"}, {"cache": "none("}],
)  # fmt: skip
def test_bad_own_settings_are_refused(tmp_path, table):
    (tmp_path / "unmask.json").write_text(json.dumps({"recommended": table}))
    with pytest.raises(CheckpointError, match=r"unmask\.json"):
        ask(LLADA, directory=tmp_path)
