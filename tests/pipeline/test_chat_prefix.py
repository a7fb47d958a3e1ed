"""A chat on a block-causal model begins a turn with the rows of the turn before, and says what it says from scratch."""

from __future__ import annotations

import io
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints

import unmask
from unmask.core.events import Stepped
from unmask.models.denoiser import TransformerDenoiser

WORDS = ("quick brown", "the fox", " two  spaces", "naïve café", "f(x)\n", "it's", "你好", "lazy dog, 2024")


def loaded(directory: Path, *eos: int) -> unmask.Model:
    """A tiny model with room for several turns. eos: ids that end an answer besides its own."""
    model = unmask.load(directory, dtype="fp32", device="cpu")
    traits = replace(model.traits, max_len=1024, eos_ids=(*model.traits.eos_ids, *eos))
    return replace(model, denoiser=TransformerDenoiser(model.denoiser.model, traits))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    base = tmp_path_factory.mktemp("blocks")
    found = {n: tiny_checkpoints.v2_checkpoint(base / str(n), seed=n, bd_size=n) for n in (4, 8, 32)}
    return {1: tiny_checkpoints.qwen2_checkpoint(base / "ar", 3), **found}


@pytest.fixture(scope="module")
def models(directories: dict[int, Path]) -> dict[int, unmask.Model]:
    return {n: loaded(d, *range(n, 400, 37)) for n, d in directories.items()}


def rows(model: unmask.Model, events: list[Any]) -> int:
    return sum(e.work.row_layers for e in events if isinstance(e, Stepped)) // model.denoiser.layers


def scratch(session: unmask.ChatSession, text: str, given: dict[str, Any]) -> unmask.Generation:
    """The same turn on a fresh engine."""
    system = given.get("system", session.system)
    messages = [*session.messages, {"role": "user", "content": text}]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    return session.model.generate(messages, **{**given, "system": None})  # type: ignore[return-value]


def options(draw: random.Random, size: int) -> dict[str, Any]:
    """Settings of one turn."""
    given: dict[str, Any] = {"max_tokens": draw.randrange(1, 30), "seed": draw.randrange(5)}
    if draw.random() < 0.3:
        given["stop"] = [draw.choice("aeiou")]
    if draw.random() < 0.3:
        given["temperature"] = 0.8
    if draw.random() < 0.15:
        given["system"] = draw.choice(["Be brief.", "Be kind."])
    if size > 1:
        given |= draw.choice([{}, {"threshold": 0.2}, {"cache": "sub_block"}, {"cache": "none"}])
        given |= {"schedule": f"blocks({min(8, size)})"} if "cache" in given else {}
    return given


def accident(draw: random.Random, session: unmask.ChatSession, text: str, given: dict[str, Any]) -> None:
    """What may happen to a history between two turns."""
    kind = draw.choice(["", "", "cancel", "undo", "edit", "reset", "interrupt"])
    if kind == "cancel":
        events = session.stream(text + "!", **given)
        for _ in zip(range(draw.randrange(6)), events, strict=False):
            pass
        events.close()  # type: ignore[attr-defined]
    elif kind == "undo":
        session.messages = session.messages[:-2]
    elif kind == "edit" and session.messages:
        session.messages[draw.randrange(len(session.messages))]["content"] += "s"
    elif kind == "reset":
        session.reset()
    elif kind == "interrupt":
        interrupted(session, text, draw.randrange(4), given)


def interrupted(session: unmask.ChatSession, text: str, layer: int, given: dict[str, Any]) -> None:
    """Ctrl-C within the second forward, when some layers have written their rows."""
    denoiser, calls = session.model.denoiser, []
    whole = TransformerDenoiser.__call__

    def torn(self: Any, batch: Any, store: Any) -> Any:
        calls.append(1)
        if len(calls) < 2:
            return whole(self, batch, store)
        for lane in batch.lanes:
            for a, b in lane.plan.query:
                store.keys[: layer + 1, lane.slot, :, a:b] = 9.0
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformerDenoiser, "__call__", torn)
        try:
            for _ in session.stream(text + "?", **{**given, "stop": ()}):
                pass
        except KeyboardInterrupt:
            assert session._engine is None  # nothing of a torn forward is used again
            return
    assert len(calls) == 1 and denoiser is session.model.denoiser


@pytest.mark.parametrize("size", [1, 4, 8, 32])
def test_every_turn_is_the_one_from_scratch(models: dict[int, unmask.Model], size: int) -> None:
    reused = 0
    for seed in range(4):
        draw = random.Random(100 * size + seed)
        session = unmask.ChatSession(models[size], draw.choice([None, "Be brief."]))
        for _ in range(6):
            text, given = " ".join(draw.choices(WORDS, k=draw.randrange(1, 7))), options(draw, size)
            right = scratch(session, text, given)
            answer = session.ask(text, **given)
            assert answer.canvas.ids == right.canvas.ids, (seed, given)
            assert (answer.text, answer.finish_reason, answer.nfe) == (right.text, right.finish_reason, right.nfe)
            reused += session.reused
            accident(draw, session, text, given)
    assert reused > 100


def test_the_settings_of_the_talks_above_meet_every_end(models: dict[int, unmask.Model]) -> None:
    draw = random.Random(0)
    found = [models[8].generate("the quick brown fox", **options(draw, 8)) for _ in range(20)]
    assert {g.finish_reason for g in found} == {"stop", "length"}
    assert any(len(g.canvas.ids) % 8 for g in found)


@pytest.mark.parametrize(("size", "least"), [(1, 0.9), (8, 0.6)])
def test_a_second_turn_computes_fewer_rows(models: dict[int, unmask.Model], size: int, least: float) -> None:
    session, text = unmask.ChatSession(models[size], "Be brief."), "the quick brown fox " * 4
    given = {"max_tokens": 8}
    first = session.ask(text, **given)
    assert session.reused == 0
    fresh = unmask.ChatSession(models[size], "Be brief.")
    fresh.messages = [dict(m) for m in session.messages]
    warm, cold = (rows(models[size], list(s.stream("and?", **given))) for s in (session, fresh))
    assert (session.last.text, session.last.nfe) == (fresh.last.text, fresh.last.nfe)  # type: ignore[union-attr]
    assert fresh.reused == 0
    assert session.reused >= least * first.prompt_tokens
    shift = models[size].traits.shift
    assert cold - warm in (session.reused, session.reused - shift)


def test_the_published_history_rule_reuses_too(models: dict[int, unmask.Model]) -> None:
    session = unmask.ChatSession(models[4], history_rule="llada")
    for text in ("hello there", "and you?", "why?"):
        ids = session._running_ids(text, None)
        answer = session.ask(text, max_tokens=9)
        assert answer.canvas.ids == models[4].generate(ids, max_tokens=9).canvas.ids
    assert session.reused > 0


@pytest.mark.parametrize("given", [{}, {"cache": "dual", "threshold": 0.2}, {"cfg_scale": 0.5}])
def test_full_attention_reuses_nothing(tiny: unmask.Model, given: dict[str, Any]) -> None:
    session = unmask.ChatSession(tiny)
    for text in ("hi", "more", "why?"):
        right = scratch(session, text, {"max_tokens": 6, **given})
        assert session.ask(text, max_tokens=6, **given).canvas.ids == right.canvas.ids
        assert session.reused == 0
        assert session._engine is None  # its store is not held either


def test_a_changed_number_of_lanes_or_model_begins_anew(models: dict[int, unmask.Model]) -> None:
    session = unmask.ChatSession(models[4])
    for given, more in (({}, False), ({}, True), ({"cfg_scale": 0.5}, False), ({}, False)):
        right = scratch(session, "and now?", {"max_tokens": 9, **given})
        assert session.ask("and now?", max_tokens=9, **given).canvas.ids == right.canvas.ids
        assert (session.reused > 0) is more
    session.model = replace(models[4], denoiser=models[8].denoiser)
    right = scratch(session, "and now?", {"max_tokens": 9})
    assert session.ask("and now?", max_tokens=9).canvas.ids == right.canvas.ids
    assert session.reused == 0


def test_a_cancelled_turn_leaves_its_rows_and_no_event(models: dict[int, unmask.Model]) -> None:
    session = unmask.ChatSession(models[4])
    session.ask("hello there", max_tokens=9)
    events = session.stream("and you?", max_tokens=40)
    while not isinstance(next(events), Stepped):
        pass
    events.close()  # type: ignore[attr-defined]
    seen = list(session.stream("and you?", max_tokens=9))
    assert [type(e).__name__ for e in seen].count("Finished") == 1
    assert session.last is not None
    assert session.reused >= session.last.prompt_tokens // 4 * 4 - 1


def test_the_terminal_says_how_much_was_reused(
    directories: dict[int, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unmask.cli.chat import main

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\nand you?\n/clear\nhello")))
    assert main(["-m", str(directories[4]), "-n", "6"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "forwards" in line]
    assert ["prompt tokens reused" in line for line in lines] == [False, True, False]
