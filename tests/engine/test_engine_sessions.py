"""Sessions: a request begins with the final rows that its session left, and gives the tokens it gives from scratch.

On the fake model a row that was not kept is NaN, also after its slot was claimed again, so nothing can read one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from models_for_tests import EOS, MASK, backbone, prompt

from unmask import testing as t
from unmask.core.errors import RequestError
from unmask.core.events import Event, Finished, Probed, Stepped, fold
from unmask.core.types import (
    EDIT,
    BlockCausal,
    Candidates,
    Commit,
    Context,
    Probe,
    Request,
    Sampling,
    Strategy,
    Traits,
)
from unmask.decode.guidance import ClassifierFree
from unmask.engine.engine import Engine
from unmask.engine.slots import Slots
from unmask.models.denoiser import TransformerDenoiser

AR = ("growing(1)", "left_to_right")
BLOCK = ("blocks(4)", "threshold(0.6)")


def model(size: int, shift: int = 1, eos: tuple[int, ...] = (), context: Context = "block") -> TransformerDenoiser:
    """A random transformer in float32; size 1 is autoregressive."""
    mask = None if size == 1 else MASK
    rule = Traits(mask, shift=shift, attention=BlockCausal(size, context), eos_ids=eos, grid_origin="zero")
    return TransformerDenoiser(backbone(2), rule)


def fake(name: str = "block-causal", **changes: Any) -> t.FakeDenoiser:
    return t.FakeDenoiser(replace(t.TRAITS[name], **changes))


def drain(engine: Engine) -> list[Event]:
    return list(engine.run())


def finish(events: list[Event], id: str) -> Finished:
    return next(e for e in events if isinstance(e, Finished) and e.id == id)


def ask(
    ids: list[int], length: int, strategy: Strategy, session: str | None = "s", id: str = "a", **more: Any
) -> Request:
    return replace(t.request(ids, length, strategy, id, **more), session=session)


def run(engine: Engine, request: Request) -> tuple[list[int], int]:
    """The canvas, and the rows that its forwards computed."""
    engine.submit(request)
    before, events = engine.stats.rows, drain(engine)
    return fold(events)[request.id].ids, engine.stats.rows - before


# ---- rows, by number -------------------------------------------------------------------------------------------------


def test_an_autoregressive_turn_computes_what_is_new() -> None:
    found, strategy = model(1), t.strategy(*AR, "block")
    engine = Engine(found, 1)
    first, rows = run(engine, ask(prompt(0, 10), 5, strategy))
    assert (rows, engine.kept("s")) == (10 + 4, 14)  # the last token's row is never asked for
    second = ask([*first, 7, 8, 9], 5, strategy)
    ids, rows = run(engine, second)
    assert (rows, engine.stats.reused) == (4 + 4, 14)
    assert (ids, 18 + 4) == run(Engine(found, 1), second)
    ids, rows = run(engine, second)  # asked again: only the row that speaks first
    assert rows == 1 + 4
    assert ids == fold(drain_of(found, second))["a"].ids


def drain_of(found: Any, request: Request) -> list[Event]:
    engine = Engine(found, 8)
    engine.submit(replace(request, session=None))
    return drain(engine)


@pytest.mark.parametrize("cache", ["block", "sub_block"])
def test_a_block_turn_computes_what_is_new(cache: str) -> None:
    found, strategy = model(8), t.strategy("blocks(8)", "threshold(0.0)", cache)
    engine = Engine(found, 1)
    first, rows = run(engine, ask(prompt(0, 20), 12, strategy))
    assert (rows, engine.kept("s")) == (24 + 16, 24)  # the second block's final rows were never computed
    second = ask([*first, 1, 2, 3, 4, 5], 8, strategy)
    ids, rows = run(engine, second)
    assert (rows, engine.stats.reused) == (16 + 13, 24)
    assert (ids, 40 + 13) == run(Engine(found, 1), second)
    assert engine.kept("s") == 40


def test_the_row_that_speaks_first_is_there() -> None:
    """All of the prompt is kept; with the shift its last row is computed again, without the shift nothing is."""
    for shift in (0, 1):
        found, strategy = fake(shift=shift), t.strategy("blocks(4)", "threshold(0.0)", "block")
        engine, one = Engine(found, 1), ask([1, 2, 3, 4, 5, 6, 7, 8], 4, strategy)
        first, rows = run(engine, one)
        assert (rows, engine.kept("s")) == (12, 8)
        assert run(engine, one) == (first, 4 + shift)
        assert engine.stats.reused == 8 - shift


def test_whole_blocks_of_equal_given_ids_are_reused() -> None:
    slots, canvas = Slots(1), torch.arange(40)
    rule = Traits(MASK, attention=BlockCausal(8))
    slots.park("s", *slots.claim("s", 1, 0), canvas[:32])

    def common(ids: torch.Tensor, given: int, attention: Any = rule.attention, session: str | None = "s") -> int:
        one = Request("a", ids, torch.arange(len(ids)) < given, given, t.strategy(), session=session)
        return slots.common(one, replace(rule, attention=attention))

    changed = canvas.clone()
    changed[17] = 0
    assert [common(canvas, n) for n in (40, 32, 31, 24, 7)] == [32, 32, 24, 24, 0]
    assert [common(canvas[:n], n) for n in (33, 31, 16)] == [32, 24, 16]
    assert common(changed, 40) == 16
    assert common(changed, 40, BlockCausal(1)) == 17
    assert common(canvas, 40, t.TRAITS["full"].attention) == 0
    assert common(canvas, 40, session="other") == common(canvas, 40, session=None) == 0


# ---- any conversation gives what it gives from scratch ---------------------------------------------------------------


@dataclass
class Talk:
    """A conversation with random accidents. canvas: what its last turn left; end: where its answer ended."""

    name: str
    draw: random.Random
    caches: tuple[str, ...]
    axes: list[tuple[str, str]]
    canvas: list[int]
    end: int
    vocab: int
    turns: int = 0

    def next(self) -> Request:
        """The next turn: new text after the history, which may be cut, changed, taken back or forgotten."""
        draw, history = self.draw, self.canvas[: self.end]
        accident = draw.choice(["", "", "", "retokenised", "system", "undo", "clear", "again"])
        if history and accident == "retokenised":
            at = draw.randrange(len(history) // 2, len(history))
            history[at : at + 1] = self._new(draw.randrange(3))
        if history and accident == "system":
            history[: draw.randrange(3)] = self._new(draw.randrange(3))
        if accident == "undo":
            history = history[: draw.randrange(len(history) + 1)]
        ids = [] if accident == "clear" else history
        ids = ids + self._new(draw.randrange(1, 14)) if accident != "again" or not ids else ids
        strategy = t.strategy(
            *draw.choice(self.axes),
            draw.choice(self.caches),
            sampling=Sampling(temperature=draw.choice([0.0, 0.0, 0.9])),
        )
        self.turns += 1
        stop = self._stop(draw.randrange(self.vocab)) if draw.random() < 0.5 else None
        return ask(
            ids,
            draw.randrange(1, 20),
            strategy,
            self.name,
            f"{self.name}{self.turns}",
            seed=draw.randrange(9),
            stop=stop,
        )

    def _new(self, n: int) -> list[int]:
        return [self.draw.randrange(self.vocab) for _ in range(n)]

    def _stop(self, low: int) -> Callable[[list[int]], int | None]:
        return lambda ids: next((i + 1 for i, token in enumerate(ids) if low <= token < low + 3), None)


def converse(found: Any, talk: Talk, engine: Engine, log: list[Event], turns: int) -> Iterator[None]:
    """Turns of a talk on a shared engine, each checked against the same request from scratch; may be cancelled."""
    for _ in range(turns):
        request = talk.next()
        right = drain_of(found, request)
        engine.submit(request)
        steps = talk.draw.randrange(4) if talk.draw.random() < 0.25 else 10_000
        while not any(isinstance(e, Finished) and e.id == request.id for e in log):
            if steps == 0:
                engine.cancel(request.id)
            steps -= 1
            log += engine.step()
            yield
        events = [e for e in log if e.id == request.id]
        end = finish(events, request.id)
        ours = fold(events)[request.id] if len(events) > 1 else None
        theirs = fold(right)[request.id]
        if end.reason != "cancelled":
            assert ours is not None
            assert (ours.ids, end) == (theirs.ids, finish(right, request.id)), (talk.name, request.strategy)
            written = [[e.writes[i][:2] for i in range(len(e.writes))] for e in events if isinstance(e, Stepped)]
            assert written == [[w[:2] for w in e.writes] for e in right if isinstance(e, Stepped)]
        elif ours is not None:
            assert all(a in (b, -1) for a, b in zip(ours.ids, theirs.ids, strict=True))
        if end.reason != "cancelled" and ours is not None:
            talk.canvas, talk.end = [max(i, 0) for i in ours.ids], end.end


def check(found: Any, seed: int, caches: tuple[str, ...], axes: list[tuple[str, str]], vocab: int, turns: int) -> int:
    """Three talks at a time on one to four slots; returns the rows reused."""
    draw = random.Random(seed)
    engine = Engine(found, draw.choice([1, 2, 3, 4]))
    talks = [Talk(n, random.Random(10 * seed + i), caches, axes, [], 0, vocab) for i, n in enumerate("xyz")]
    log: list[Event] = []
    alive = [converse(found, talk, engine, log, turns) for talk in talks]
    while alive:
        for one in list(alive):
            if draw.random() < 0.7 and next(one, ...) is ...:
                alive.remove(one)
        if draw.random() < 0.05:
            engine.release(draw.choice("xyz"))
    assert engine.idle
    assert all(engine.kept(n) % found.traits.attention.size == 0 for n in "xyz")
    return engine.stats.reused


CACHES = (*["block"] * 5, *["sub_block"] * 3, "sub_block(refresh=2)", "none", "dual")


@pytest.mark.parametrize("name", ["block-causal", "block-causal-off-grid", "causal", "context-causal"])
def test_random_talks_on_the_fake_model_never_read_an_unkept_row(name: str) -> None:
    found = fake(name, eos_ids=(3, 5))
    axes = (
        [AR]
        if name == "causal"
        else [BLOCK, ("blocks(3)", "low_confidence(steps=9)"), ("growing(5)", "threshold(0.5)")]
    )
    reused = [check(found, seed, CACHES, axes, t.EOS, 6) for seed in range(6)]
    assert sum(r > 0 for r in reused) >= 4


@pytest.mark.parametrize(
    ("size", "context"), [(1, "block"), (4, "block"), (8, "block"), (32, "block"), (4, "causal"), (8, "causal")]
)
def test_random_talks_on_a_transformer(size: int, context: Context) -> None:
    found = model(size, eos=(3, 5), context=context)
    axes = [AR] if size == 1 else [(f"blocks({size})", "threshold(0.3)"), ("blocks(4)", "threshold(0.3)")]
    reused = [check(found, seed, CACHES, axes, EOS, 6) for seed in range(4)]
    assert any(reused)


def test_a_block_too_much_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Slots.common
    for extra in (4, 1):  # one block, and not whole blocks
        more = lambda self, r, rule, extra=extra: (n := inner(self, r, rule)) + extra * (n > 0)  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(Slots, "common", more)
            with pytest.raises((AssertionError, IndexError)):
                _ = [check(fake(), seed, ("block",), [BLOCK], t.EOS, 5) for seed in range(8)]


# ---- what leaves nothing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "dual(refresh=1)"])
@pytest.mark.parametrize("name", ["full", "full-shift"])
def test_under_full_attention_nothing_is_reused(name: str, cache: str) -> None:
    found, strategy = fake(name), t.strategy(*BLOCK, cache)
    engine = Engine(found, 2)
    ids = [1, 2, 3]
    for _ in range(3):
        one = ask(ids, 6, strategy)
        got = run(engine, one)
        assert got == run(Engine(found, 2), replace(one, session=None))
        assert engine.kept("s") == engine.stats.reused == 0
        ids = got[0]


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_cache_that_looks_at_no_kept_rows_leaves_none(cache: str) -> None:
    """It wrote its own rows over them, kept or not."""
    engine, ids = Engine(fake(), 1), list(range(1, 12))
    run(engine, ask(ids, 6, t.strategy(*BLOCK, "block")))
    assert engine.kept("s") == 16
    one = ask(ids, 6, t.strategy(*BLOCK, cache))
    assert run(engine, one) == run(Engine(fake(), 1), one)
    assert engine.kept("s") == engine.stats.reused == 0


def test_guidance_leaves_nothing() -> None:
    found = fake()
    guided = t.strategy(*BLOCK, "block", ClassifierFree(1.5))
    plain = t.strategy(*BLOCK, "block")
    engine, ids = Engine(found, 2), list(range(1, 12))
    for strategy, kept in ((plain, 16), (guided, 0), (plain, 16)):
        one = ask(ids, 8, strategy)
        engine.submit(one)
        assert fold(drain(engine))["a"].ids == fold(drain_of(found, one))["a"].ids
        assert engine.kept("s") == kept
    assert engine.stats.reused == 0


@dataclass(frozen=True)
class SecondThoughts:
    """Fills a block, then changes every token of it."""

    scores = ()

    def init(self, seq: Any) -> int:
        return 0

    def wants(self, seq: Any, open: Any, state: int) -> torch.Tensor:
        return torch.arange(max(open[0].start, seq.request.prompt_len), open[-1].stop)

    def decide(self, seq: Any, want: torch.Tensor, found: Candidates, state: int, noise: Any) -> tuple[Commit, int]:
        again = state % 2 == 1
        tokens = (seq.canvas[want] + 1) % t.EOS if again else found.token
        return Commit(torch.arange(len(want)), tokens, found.prob, EDIT if again else 1, busy=not again), state + 1


def test_rows_of_tokens_that_were_edited_are_not_left() -> None:
    engine = Engine(fake(), 1)
    run(engine, ask([1, 2, 3, 4, 5], 8, replace(t.strategy(*BLOCK, "block"), policy=SecondThoughts())))
    assert engine.kept("s") == 0


def test_a_failure_leaves_nothing() -> None:
    found = fake()
    strategy = t.strategy(*BLOCK, "block")
    engine = Engine(found, 1)
    run(engine, ask([1, 2, 3, 4, 5], 8, strategy))
    assert engine.kept("s")
    found.head.weight[:] = torch.nan
    engine.submit(ask([1, 2, 3, 4, 5], 8, strategy))
    assert "not numbers" in drain(engine)[-1].error  # type: ignore[union-attr]
    assert engine.kept("s") == 0


# ---- slots -----------------------------------------------------------------------------------------------------------


def test_the_session_parked_longest_ago_gives_its_slot_away() -> None:
    engine, strategy = Engine(fake(), 2), t.strategy(*BLOCK, "block")
    for name in ("x", "y", "x"):
        run(engine, ask([1, 2, 3, 4, 5], 6, strategy, name))
    assert engine.kept("x") == engine.kept("y") == 8
    run(engine, ask([7], 4, strategy, None))
    assert (engine.kept("x"), engine.kept("y")) == (8, 0)
    engine.release("x")
    engine.release("never seen")
    assert engine.kept("x") == 0
    engine.submit(ask([7], 4, t.strategy(*BLOCK, "block", ClassifierFree(1.5)), None))  # both slots at once
    assert finish(drain(engine), "a")


def test_two_requests_of_a_session_at_once_do_not_share_a_slot() -> None:
    found, strategy = fake(), t.strategy(*BLOCK, "block")
    engine = Engine(found, 3)
    run(engine, ask([1, 2, 3, 4, 5], 6, strategy))
    both = [ask([1, 2, 3, 4, 5, 6 + i], 6 + i, strategy, "s", str(i)) for i in range(2)]
    for one in both:
        engine.submit(one)
    answers = fold(drain(engine))
    for one in both:
        assert answers[one.id].ids == fold(drain_of(found, one))[one.id].ids
    assert engine.kept("s") == 12  # of the one that ended last
    for i in range(3):  # no slot was lost
        engine.submit(ask([7], 4, strategy, None, str(i)))
    assert engine.step() and engine.stats.model_calls and len(engine._running) == 3


def test_a_refused_request_leaves_what_was_there() -> None:
    engine, strategy = Engine(fake(), 1), t.strategy(*BLOCK, "block")
    run(engine, ask([1, 2, 3, 4, 5], 6, strategy))
    with pytest.raises(RequestError, match="cohort"):
        engine.submit(replace(ask([1], 2, strategy), cohort="c"))
    engine.submit(ask([1, 2, 3, 4, 5, 6], 6, strategy))
    engine.cancel("a")  # before its first forward
    assert finish(drain(engine), "a").reason == "cancelled"
    assert engine.kept("s") == 8


def test_probes_do_not_compare_with_rows_of_an_earlier_turn() -> None:
    engine, strategy = Engine(model(4), 1), t.strategy(*BLOCK, "block")
    first, _ = run(engine, ask(prompt(0, 9), 20, strategy))
    assert engine.kept("s") >= 20
    engine.submit(ask([*first[:10], 1, 2], 12, strategy, probes=(Probe("kv_cosine", 0),)))
    seen = next(e for e in drain(engine) if isinstance(e, Probed))
    assert engine.stats.reused == 8
    assert seen.positions == ()
