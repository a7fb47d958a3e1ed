"""Each mutation of the house must break at least one of its laws; without a mutation all of them hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from laws import LAWS, broken

from unmask import testing as t
from unmask.cache import block, dual, plans, prefix
from unmask.core.types import BlockCausal, Full
from unmask.decode import dream, dream_carry, factor, guidance, left_to_right, schedules, select, threshold, top_k
from unmask.engine import engine, noise
from unmask.ops import score

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("name", LAWS)
def test_law(name: str) -> None:
    LAWS[name]()


def visible_plus_one(m: Patch) -> None:
    for kind in (Full, BlockCausal):
        inner = kind.visible
        m.setattr(
            kind,
            "visible",
            lambda self, query, horizon, final=0, inner=inner: tuple(
                (n, tuple((a, b + 1) for a, b in spans)) for n, spans in inner(self, query, horizon, final)
            ),
        )


def visible_minus_one(m: Patch) -> None:
    inner = Full.visible
    m.setattr(Full, "visible", lambda self, query, horizon, final=0: inner(self, query, max(1, horizon - 1)))


def finished_rows_look_ahead(m: Patch) -> None:
    inner = BlockCausal.visible
    m.setattr(BlockCausal, "visible", lambda self, query, horizon, final=0: inner(self, query, horizon))


def nothing_is_finished(m: Patch) -> None:
    m.setattr(plans, "finished", lambda seq, horizon: 0)


def shift_dropped(m: Patch) -> None:
    m.setattr(t.FakeDenoiser, "support", lambda self, want: want)


def _keep(m: Patch, rule: Callable[..., object]) -> None:
    def forward(seq, query, need, keep, horizon, kind):  # type: ignore[no-untyped-def]
        plan = plans.forward(seq, query, need, keep, horizon, kind)
        return replace(plan, keep=rule(plan))

    for module in (prefix, dual, block):
        m.setattr(module, "forward", forward)


def keep_nothing(m: Patch) -> None:
    _keep(m, lambda plan: ())


def keep_everything(m: Patch) -> None:
    _keep(m, lambda plan: plan.query)


def keep_all_but_the_first_row(m: Patch) -> None:
    _keep(m, lambda plan: tuple((a + 1, b) if i == 0 else (a, b) for i, (a, b) in enumerate(plan.keep) if b > a + 1))


def support_dropped(m: Patch) -> None:
    for module in (prefix, dual, block):
        m.setattr(module, "lowest", lambda need, start: start)


def attention_blocks_cut(m: Patch) -> None:
    for module in (prefix, dual):
        m.setattr(module, "whole_blocks", lambda traits, start, stop, horizon: (start, stop))


def shared_noise(m: Patch) -> None:
    one = noise.StreamNoise(torch.Generator().manual_seed(0))
    m.setattr(engine.Engine, "_noise", lambda self, request: one)


def seed_ignored(m: Patch) -> None:
    m.setattr(engine, "PositionNoise", lambda seed: noise.PositionNoise(0))


def position_ignored(m: Patch) -> None:
    inner = noise.PositionNoise.uniform
    m.setattr(noise.PositionNoise, "uniform", lambda self, s, step, p, n: inner(self, s, step, torch.zeros_like(p), n))


def horizon_ignored(m: Patch) -> None:
    m.setattr(schedules.Growing, "horizon", lambda self, seq: seq.length)


def fixed_ignored_in_guidance(m: Patch) -> None:
    m.setattr(guidance.ClassifierFree, "ids", lambda self, lane, canvas, fixed, mask_id: canvas)


def constraints_kept_in_guidance(m: Patch) -> None:
    def ids(self, lane, canvas, fixed, mask_id):  # type: ignore[no-untyped-def]
        prompt = fixed.long().cumprod(0).bool()
        return canvas if lane == 0 else torch.where(prompt, mask_id, canvas)

    m.setattr(guidance.ClassifierFree, "ids", ids)


def everything_masked_in_guidance(m: Patch) -> None:
    def ids(self, lane, canvas, fixed, mask_id):  # type: ignore[no-untyped-def]
        return canvas if lane == 0 else torch.full_like(canvas, mask_id)

    m.setattr(guidance.ClassifierFree, "ids", ids)


def _ranked_backwards(values: torch.Tensor) -> torch.Tensor:
    return len(values) - 1 - torch.sort(values.flip(0), descending=True, stable=True).indices


def position_ties_other_way(m: Patch) -> None:
    for module in (select, top_k, factor, dream, dream_carry):
        m.setattr(module, "ranked", _ranked_backwards)


def token_ties_other_way(m: Patch) -> None:
    inner = score.draw

    def draw(logits, shaped, sampling, uniform):  # type: ignore[no-untyped-def]
        if sampling.temperature > 0:
            return inner(logits, shaped, sampling, uniform)
        return shaped.shape[-1] - 1 - shaped.flip(-1).argmax(-1)

    m.setattr(score, "draw", draw)


def greedy_ties_other_way(m: Patch) -> None:
    inner = score.best

    def best(logits):  # type: ignore[no-untyped-def]
        _, largest, mass = inner(logits)
        return logits.shape[-1] - 1 - logits.flip(-1).max(-1).indices, largest, mass

    m.setattr(score, "best", best)


def eos_floor_ignored(m: Patch) -> None:
    inner = engine._end

    def end(run, settled):  # type: ignore[no-untyped-def]
        return inner(replace(run, floor=0), settled)

    m.setattr(engine, "_end", end)


def never_stops_early(m: Patch) -> None:
    inner = engine.Engine._over
    m.setattr(
        engine.Engine,
        "_over",
        lambda self, run, commit: inner(self, replace(run, strategy=replace(run.strategy, early_stop=False)), commit),
    )


def stale_cache_not_refreshed(m: Patch) -> None:
    for module in (prefix, dual):
        m.setattr(module, "entering", lambda state, start, refresh: state.block != start)


def block_entry_without_full_forward(m: Patch) -> None:
    for module in (prefix, dual):
        m.setattr(module, "entering", lambda state, start, refresh: state.block < 0 or refresh == 1)


def mask_id_allowed(m: Patch) -> None:
    m.setattr(score, "_closed", lambda sampling, mask_id: list(sampling.suppress))


def best_one_not_always(m: Patch) -> None:
    m.setattr(threshold, "at_least", lambda values, least: (values >= least).nonzero().flatten())


def one_request_at_a_time(m: Patch) -> None:
    inner = engine.Engine._jobs
    m.setattr(engine.Engine, "_jobs", lambda self, events: inner(self, events)[:1])


def last_hole_first(m: Patch) -> None:
    m.setattr(left_to_right, "holes_of", lambda seq, open: select.holes_of(seq, open).flip(0))


MUTATIONS = {
    visible_plus_one: {"contract", "golden"},
    visible_minus_one: {"golden"},
    finished_rows_look_ahead: {"golden"},
    nothing_is_finished: {"contract", "golden"},
    shift_dropped: {"oracle", "golden"},
    keep_nothing: {"contract"},
    keep_everything: {"prefix_keeps_the_rows_before_the_block", "golden"},
    keep_all_but_the_first_row: {"contract"},
    support_dropped: {"contract"},
    attention_blocks_cut: {"exactness"},
    shared_noise: {"crowd_invariance"},
    seed_ignored: {"seeds_matter"},
    position_ignored: {"seeds_matter"},
    horizon_ignored: {"growing_oracle", "golden"},
    fixed_ignored_in_guidance: {"oracle", "guidance_masks_exactly_what_is_given"},
    constraints_kept_in_guidance: {"guidance_masks_exactly_what_is_given"},
    everything_masked_in_guidance: {"oracle", "guidance_masks_exactly_what_is_given"},
    position_ties_other_way: {"ties"},
    token_ties_other_way: {"ties"},
    greedy_ties_other_way: {"ties"},
    eos_floor_ignored: {"end_of_text_before_a_constraint_ends_nothing"},
    never_stops_early: {"end_of_text_stops_early"},
    stale_cache_not_refreshed: {"exactness", "golden"},
    block_entry_without_full_forward: {"golden"},
    mask_id_allowed: {"mask_id_is_never_written"},
    best_one_not_always: {"golden"},
    one_request_at_a_time: {"forwards_are_shared"},
    last_hole_first: {"guidance_masks_exactly_what_is_given"},
}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda f: f.__name__)
def test_mutation_breaks_a_law(mutation: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutation(monkeypatch)
    names = MUTATIONS[mutation]
    assert broken(names) == names
