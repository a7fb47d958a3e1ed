"""Layer reuse: stages of a forward, what really runs, what each scheme may and may not change, and what it refuses."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models.tiny import CONTEXT_CAUSAL, DREAM, FAST_DLLM, LLADA, SDAR, build
from torch import Tensor

from unmask import testing as t
from unmask.core import catalog
from unmask.core.errors import ConfigError, RequestError, SpecError
from unmask.core.events import Failed, Probed, Stepped
from unmask.core.types import (
    Batch,
    BlockCausal,
    Candidates,
    Commit,
    Full,
    Lane,
    Plan,
    Probe,
    Request,
    Sampling,
    Stage,
    Strategy,
    Traits,
    rows_in,
)
from unmask.core.types import Sequence as Seq
from unmask.decode.guidance import ClassifierFree
from unmask.engine.batch import executed, layers_run
from unmask.engine.engine import Engine
from unmask.evals.likelihood.canvas import Pair, Part
from unmask.evals.likelihood.strategy import check as check_likelihood
from unmask.evals.likelihood.strategy import forced
from unmask.models.backbone import denoiser_of
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.load import load_model
from unmask.models.stages import at, seen_by
from unmask.models.transformer import Transformer, TransformerConfig

pytestmark = pytest.mark.slow  # experimental caches on real models; the seam matrix has them in the fast tests

LAYERS, MASK = 7, 47
KINDS = {
    "llada": Traits(MASK),
    "dream": Traits(MASK, shift=1),
    "block-causal": Traits(MASK, shift=1, attention=BlockCausal(16), grid_origin="zero"),
    "unshifted": Traits(MASK, attention=BlockCausal(16), grid_origin="zero"),
    "context-causal": Traits(MASK, shift=1, attention=BlockCausal(16, "causal"), grid_origin="zero"),
}
BLOCKS = tuple(k for k in KINDS if isinstance(KINDS[k].attention, BlockCausal))
PUBLISHED = "sub_block(whole_first=True)"
STALE = (
    "fixed_reuse(2)",
    "fixed_reuse(3, 'first')",
    "early_exit(3, threshold=0.4)",
    "early_exit(3, agreement=False, threshold=0.2, every=3)",
    "early_exit(2, threshold=0.3, inside='dual')",
    "depth_split(3)",
    "depth_split(7, refresh=None)",
    "depth_split(2, refresh=2, inside='sub_block')",
    "delta_reuse",
    "delta_reuse('first', refresh=None)",
    "delta_reuse('last', refresh=3, inside='dual')",
)


@functools.cache
def backbone(seed: int = 0) -> Transformer:
    model = Transformer(TransformerConfig(48, 32, LAYERS, 4, 2, 8, 48, norm_eps=1e-6, qkv_bias=True))
    model.init_weights(seed, 0.35)
    return model.eval()


def denoiser(kind: str = "block-causal", seed: int = 0) -> TransformerDenoiser:
    return TransformerDenoiser(backbone(seed), KINDS[kind])


def serves(spec: str, traits: Traits) -> bool:
    return t.serves(catalog.parse("cache", spec), traits)


def crowd(cache: Any, axes: tuple[str, str] = ("blocks(4)", "threshold(0.3)"), length: int = 38) -> list[Request]:
    return t.crowd(t.strategy(*axes, cache), length)


def steps(events: Sequence[Any]) -> list[Stepped]:
    return [e for e in events if isinstance(e, Stepped)]


@dataclass
class Spy:
    """A cache whose plans are written down, those made in `observe` too."""

    inner: Any
    plans: list[Plan] = field(default_factory=list)
    scoring = "undefined"

    def exact_for(self, traits: Traits) -> bool:
        return self.inner.exact_for(traits)

    def init(self, seq: Seq) -> Any:
        return self.inner.init(seq)

    def plan(self, *args: Any) -> Any:
        plan, after = self.inner.plan(*args)
        self.plans.append(plan)
        return plan, after

    def observe(self, *args: Any) -> Any:
        after, more = self.inner.observe(*args)
        if more is not None:
            self.plans.append(more)
        return after, more

    def trusted(self, state: Any) -> Tensor | None:
        return self.inner.trusted(state) if hasattr(self.inner, "trusted") else None


def plans_of(model: Any, request: Request) -> tuple[list[Plan], dict[str, list[int]]]:
    spy = Spy(request.strategy.cache)
    found = t.decode(model, [replace(request, strategy=replace(request.strategy, cache=spy))])
    return spy.plans, found.answers


@contextmanager
def counted(model: TransformerDenoiser) -> Iterator[list[int]]:
    """How many rows go through each layer, by the layers' own word."""
    rows = [0] * LAYERS
    hooks = [
        layer.register_forward_hook(lambda _, x, out, i=i: rows.__setitem__(i, rows[i] + out.shape[0]))
        for i, layer in enumerate(model.model.layers)
    ]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


# ---- the seam --------------------------------------------------------------------------------------------------------


def batch_of(ids: Tensor, *plans: Plan) -> Batch:
    """Lanes of one sequence, each in a slot of its own."""
    at_, need, base = [], [], 0
    for plan in plans:
        rows = t.positions(plan.query)
        at_.append(rows)
        need.append(torch.searchsorted(rows, plan.need) + base)
        base += len(rows)
    positions = torch.cat(at_)
    lanes = tuple(Lane(i, p) for i, p in enumerate(plans))
    return Batch(ids[positions], positions, torch.cat(need), lanes)


def plan_of(n: int, **more: Any) -> Plan:
    return Plan(((0, n),), torch.arange(n), ((0, n),), Full().visible(((0, n),), n), **more)


def test_all_layers_in_stages_are_the_forward_itself_bit_for_bit() -> None:
    model, ids = denoiser("llada"), torch.arange(12) * 3 % 46
    whole = model(batch_of(ids, plan_of(12)), model.new_store(1, 12)).hidden
    query = ((0, 12),)
    cuts = (
        {"stages": (Stage((0, 3), query), Stage((3, LAYERS), query))},
        {"stages": (Stage((0, LAYERS), query), Stage((LAYERS, LAYERS), query))},
        {"hold": (0, 2, LAYERS)},
        {"hold_deltas": (1, 5)},
    )
    for cut in cuts:
        assert torch.equal(model(batch_of(ids, plan_of(12, **cut)), model.new_store(1, 12)).hidden, whole), cut


def test_a_forward_without_stages_does_not_enter_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("by layers")

    monkeypatch.setattr("unmask.models.stages.forward", never)
    for cache in ("none", "block", "sub_block", "fixed_reuse(1)", "early_exit(3, every=1)", "depth_split(0)",
                  "depth_split(2, refresh=1)", "delta_reuse(refresh=1)"):  # fmt: skip
        t.decode(denoiser(), crowd(cache, length=12))
    with pytest.raises(AssertionError, match="by layers"):
        t.decode(denoiser(), crowd("depth_split(2)", length=12))


@torch.no_grad()
def by_hand(model: TransformerDenoiser, ids: Tensor, old: Tensor, changed: list[int], rest: str) -> Tensor:
    """Layers 2 to 4 for the changed rows alone, one dense layer after the other, keys and values by the rows' own x.

    rest: "stored", the others come from the old run at layer 5; "delta", they get its additions.
    """
    net, positions, n = model.model, torch.arange(len(ids)), len(ids)
    fresh = torch.zeros(n, dtype=torch.bool)
    fresh[changed] = True

    def layer(i: int, x: Tensor, keys_of: Tensor) -> Tensor:
        rope = net.rope(positions, x.dtype)
        _, k, v = net.layers[i].project(keys_of, rope)

        def attend(q: Tensor, _k: Tensor, _v: Tensor) -> Tensor:
            out = torch.nn.functional.scaled_dot_product_attention(
                q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), enable_gqa=True
            )
            return out.transpose(0, 1)

        return net.layers[i](x, rope, attend)

    past = [net.embed_ids(old)]
    for i in range(LAYERS):
        past.append(layer(i, past[-1], past[-1]))
    x = net.embed_ids(ids)
    for i in range(LAYERS):
        if 2 <= i < 5:  # others' keys and values are the old run's
            ran = layer(i, x, torch.where(fresh[:, None], x, past[i]))
            beside = x + past[i + 1] - past[i] if rest == "delta" else past[i + 1]
            x = torch.where(fresh[:, None], ran, beside)
        else:
            x = layer(i, x, x)
    return net.norm(x)


@pytest.mark.parametrize("rest", ["stored", "delta"])
@pytest.mark.parametrize("changed", [[4], [0, 3, 4, 9], []])
def test_stages_against_layers_by_hand(rest: str, changed: list[int]) -> None:
    """One lane in stages beside a lane without, in one batch; the changed rows lie apart."""
    model, old = denoiser("llada", 1), torch.arange(10) * 5 % 46
    ids = old.clone()
    ids[changed] = (ids[changed] + 7) % 46
    query, some = ((0, 10),), tuple((p, p + 1) for p in changed)
    store = model.new_store(2, 10)
    model(batch_of(old, plan_of(10, hold=(5,), hold_deltas=(2, 3, 4))), store)
    part = Stage((2, 5), some, rest)  # type: ignore[arg-type]
    plan = plan_of(10, kind="shallow", stages=(Stage((0, 2), query), part, Stage((5, LAYERS), query)))
    both = model(batch_of(ids, plan, plan_of(10)), store).hidden
    assert torch.allclose(both[:10], by_hand(model, ids, old, changed, rest), atol=1e-4)
    assert torch.equal(both[10:], model(batch_of(ids, plan_of(10)), model.new_store(1, 10)).hidden)


def test_a_stage_that_comes_later_begins_where_rows_were_left() -> None:
    model, ids = denoiser("llada"), torch.arange(9)
    store, query = model.new_store(1, 20), ((0, 9),)
    whole = model(batch_of(ids, plan_of(9)), model.new_store(1, 9)).hidden
    model(batch_of(ids, plan_of(9, stages=(Stage((0, 4), query),), hold=(4,))), store)
    up = model(batch_of(ids, plan_of(9, stages=(Stage((4, LAYERS), query),))), store).hidden
    assert torch.equal(up, whole)
    store = model.grow_store(store, 3, 40)
    assert torch.equal(model(batch_of(ids, plan_of(9, stages=(Stage((4, LAYERS), query),))), store).hidden, whole)


def test_hidden_rows_have_a_place_when_asked_for_and_until_the_slot_is_free() -> None:
    model = denoiser()
    engine = Engine(model, 2)
    for one in crowd("depth_split(3)", length=20)[:2]:
        engine.submit(one)
    seen = set()
    while not engine.idle:
        engine.step()
        seen |= {key for own in engine._store.beside.values() for key in own}
    assert seen == {("hidden", 3)} and engine._store.beside == {}
    engine.submit(crowd("block", length=20)[0])
    engine.step()
    assert engine._store.beside == {}


def test_rows_and_what_they_see_are_found_by_position() -> None:
    query = ((2, 5), (9, 12), (20, 21))
    assert at(query, ((3, 4), (10, 12), (20, 21))).tolist() == [1, 4, 5, 6]
    assert at(query, ((2, 5), (9, 12))).tolist() == [0, 1, 2, 3, 4, 5] and at(query, ()).tolist() == []
    plan = Plan(query, torch.tensor([2]), (), ((3, ((0, 5),)), (1, ((0, 12),)), (3, ((0, 12), (13, 30)))))
    assert seen_by(plan, torch.tensor([1, 3, 4, 6])) == ((1, ((0, 5),)), (1, ((0, 12),)), (2, ((0, 12), (13, 30))))
    assert executed(plan, 4) == (28, 4 * (15 + 12 + 3 * 29), 4 * 29)
    parts = replace(plan, stages=(Stage((0, 1), ((3, 5),)), Stage((2, 4), ((9, 10), (20, 21)))))
    assert executed(parts, 4) == (2 + 4, 10 + 2 * (12 + 29), 5 + 2 * 29)
    assert layers_run([parts], 4) == 3 and layers_run([parts, plan], 4) == 4


# ---- what really runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [None, ClassifierFree(1.5)])
@pytest.mark.parametrize("kind", ["llada", "block-causal", "context-causal"])
def test_executed_work_is_what_went_through_the_layers(kind: str, guidance: Any) -> None:
    """Requests of different stages in one batch; the counters are the hooks'."""
    model = denoiser(kind)
    specs = [c for c in ("none", *STALE) if serves(c, KINDS[kind])]
    engine = Engine(model, 2 * len(specs))
    for i, spec in enumerate(specs):
        chosen = t.strategy("blocks(4)", "threshold(0.3)", spec, guidance=guidance)
        engine.submit(t.request(range(5 + i), 20, chosen, str(i)))
    with counted(model) as rows:
        events = list(engine.run())
    assert sum(rows) == engine.stats.row_layers == sum(s.work.row_layers for s in steps(events))
    assert engine.stats.row_layers < engine.stats.rows * LAYERS
    assert engine.stats.by_kind["shallow"] == sum(s.work.kind == "shallow" for s in steps(events)) > 0


@pytest.mark.parametrize("cache", STALE)
def test_fewer_layers_run_and_a_whole_forward_runs_all(cache: str) -> None:
    """For the same rows, fewer go through the layers; a block's first forward and the commit leave none out."""
    for kind in KINDS:
        if not serves(cache, KINDS[kind]):
            continue
        model, one = denoiser(kind, 2), crowd(cache)[1]
        with counted(model) as rows:
            plans, _ = plans_of(model, one)
        assert any(p.stages for p in plans) and sum(rows) < sum(rows_in(p.query) for p in plans) * LAYERS
        assert all((p.kind == "shallow") == bool(p.stages) for p in plans)
        final = seen = 0
        for p in plans:
            assert not p.stages or p.final == final, "a commit in part"
            new = [q for q in p.query if q[1] > seen]
            assert not p.stages or not new, "a row that was never computed, in part"
            final, seen = p.final, max(seen, p.query[-1][1])


def test_layers_that_nobody_runs_are_not_called() -> None:
    model = denoiser("block-causal")
    engine = Engine(model, 1)
    engine.submit(crowd("early_exit(2, agreement=False, threshold=0.0)")[0])
    calls = [0] * LAYERS
    hooks = [
        layer.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
        for i, layer in enumerate(model.model.layers)
    ]
    events = list(engine.run())
    for hook in hooks:
        hook.remove()
    shallow = sum(s.work.kind == "shallow" for s in steps(events))
    assert calls == [len(steps(events))] * 2 + [len(steps(events)) - shallow] * 5 and shallow > 0
    assert engine.stats.layer_calls == sum(calls)


# ---- exact settings --------------------------------------------------------------------------------------------------

OFF = (  # (setting, the cache that it is then)
    ("fixed_reuse(1)", PUBLISHED),
    ("fixed_reuse(1, 'last')", PUBLISHED),
    *((f"{spec}{inside}", base) for inside, base in ((")", None), (", inside='dual')", "dual"),
                                                     (", inside='block')", "block"),
                                                     (", inside='sub_block')", "sub_block"))
      for spec in (f"early_exit({LAYERS}", "early_exit(2, every=1", "depth_split(0", "depth_split(3, refresh=1",
                   "delta_reuse(refresh=1")),
)  # fmt: skip
AXES = (
    ("blocks(4)", "threshold(0.3)", None, Sampling()),
    ("blocks(8)", "low_confidence(steps=16)", ClassifierFree(1.5), Sampling()),
    ("growing(5)", "random(steps=9)", None, Sampling(temperature=0.8)),
    ("pipelined(4, window=2)", "pipelined_threshold(0.3)", None, Sampling()),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", AXES, ids=lambda a: a[0])
def test_exact_settings_are_off(kind: str, axes: tuple[Any, ...]) -> None:
    """Token for token, forward for forward; where it says exact, also token for token no cache."""
    schedule, policy, guidance, sampling = axes
    model, traits = denoiser(kind, 1), KINDS[kind]

    def run(cache: str) -> tuple[Any, Any]:
        found = t.decode(model, t.crowd(t.strategy(schedule, policy, cache, guidance, sampling), 20))
        return found.answers, found.nfe

    off = {c: run(c) for c in ("none", "dual", "block", "sub_block", PUBLISHED) if serves(c, traits)}
    usual = "dual" if isinstance(traits.attention, Full) else "block"
    tried = 0
    for spec, base in OFF if policy == "threshold(0.3)" else OFF[:1] + OFF[2::4]:
        if serves(spec, traits):
            tried += 1
            assert run(spec) == off[base or usual], spec
            if catalog.parse("cache", spec).exact_for(traits):
                assert run(spec)[0] == off["none"][0], spec
    assert tried >= 3


@pytest.mark.parametrize("config", [LLADA, DREAM, FAST_DLLM, SDAR, CONTEXT_CAUSAL], ids=lambda c: c["model_type"])
def test_exact_settings_are_off_on_every_family(config: dict[str, Any], tmp_path: Path) -> None:
    loaded = load_model(build(tmp_path / "tiny", config), dtype="fp32", device="cpu")
    model = denoiser_of(loaded.model, replace(loaded.traits, mask_id=63, eos_ids=()))
    traits = model.traits
    usual = "dual" if isinstance(traits.attention, Full) else "block"
    for axes in (("blocks(4)", "threshold(0.1)"), ("blocks(2)", "low_confidence(steps=9)")):
        off = t.decode(model, crowd(usual, axes, 18)).answers
        for spec in (f"early_exit({model.layers})", "early_exit(1, every=1)", "depth_split(0)", "depth_split(1, 1)",
                     "delta_reuse('first', 1)"):  # fmt: skip
            assert t.decode(model, crowd(spec, axes, 18)).answers == off, spec
        if usual == "block":
            off = t.decode(model, crowd(PUBLISHED, axes, 18)).answers
            assert t.decode(model, crowd("fixed_reuse(1)", axes, 18)).answers == off


def test_who_calls_itself_exact() -> None:
    blocks = ["block-causal", "block-causal-off-grid", "context-causal"]
    for spec in ("early_exit(1, every=1)", "depth_split(0)", "depth_split(5, refresh=1)", "delta_reuse(refresh=1)"):
        found = catalog.parse("cache", spec)
        assert [n for n, traits in t.TRAITS.items() if found.exact_for(traits)] == blocks, spec
    for spec in (*STALE, "fixed_reuse(1)", "depth_split(0, inside='sub_block')", "early_exit(7)"):
        found = catalog.parse("cache", spec)
        assert not any(found.exact_for(traits) for traits in t.TRAITS.values()), spec
        defined = found.spec_name in ("depth_split", "delta_reuse")
        assert found.scoring == ("approximate" if defined else "undefined")


def test_a_likelihood_is_refused_where_it_would_be_of_another_model() -> None:
    for spec in ("fixed_reuse(2)", "early_exit(3)"):
        with pytest.raises(ConfigError, match="a likelihood under cache"):
            check_likelihood(t.strategy("blocks(4)", "threshold(0.3)", spec))
    model, ids = denoiser("block-causal", 1), torch.arange(3, 31) % 46
    pair = Pair(ids, ids, 8, 28, (Part(0, 28, tuple(range(8, 28))),), MASK)
    caches = ("block", "depth_split(0)", "depth_split(4, refresh=None)", "delta_reuse(refresh=None)")
    found = {c: forced(model, pair, t.strategy("blocks(8)", "threshold(0.9)", c))[0] for c in caches}
    assert found["block"] == pytest.approx(found["depth_split(0)"], abs=1e-3)
    assert len({round(v, 2) for v in found.values()}) == 3


@pytest.mark.parametrize("cache", STALE)
def test_alone_and_in_a_crowd_of_other_lengths_and_stages(cache: str) -> None:
    for kind in ("dream", "block-causal", "context-causal"):
        if not serves(cache, KINDS[kind]):
            continue
        model = denoiser(kind, 3)
        mixed = [t.request(range(3 + 4 * i), 21 + 2 * i, t.strategy("blocks(4)", "threshold(0.3)", c), str(i))
                 for i, c in enumerate((cache, "dual", cache, "depth_split(2)", "delta_reuse"))]  # fmt: skip
        together = t.decode(model, mixed)
        assert together.calls < sum(together.nfe.values())
        for one in mixed:
            assert t.decode(model, [one]).answers[one.id] == together.answers[one.id], (kind, one.id)


# ---- what is stale ends with the block -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """A policy that writes what another run wrote, block by block, each in one step."""

    writes: dict[int, int]
    scores = ()

    def init(self, seq: Seq) -> None:
        return None

    def wants(self, seq: Seq, open: Any, state: None) -> Tensor:
        return seq.holes(0, max(b.stop for b in open))

    def decide(self, seq: Seq, want: Tensor, candidates: Candidates, state: None, noise: Any) -> tuple[Commit, None]:
        tokens = torch.tensor([self.writes[p] for p in want.tolist()])
        return Commit(torch.arange(len(want)), tokens, candidates.prob), None


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("cache", [c for c in STALE if "dual" not in c])
def test_rows_kept_for_good_are_those_of_the_exact_cache(kind: str, cache: str) -> None:
    def stored(strategy: Strategy) -> tuple[Any, int, dict[int, int]]:
        engine = Engine(denoiser(kind, 5), 1)
        engine.submit(t.request([3, 1, 4], 45, strategy, session="s"))
        writes = {p: k for e in steps(list(engine.run())) for p, k, *_ in e.writes}
        return engine._store, engine.kept("s"), writes

    ours, kept, writes = stored(t.strategy("blocks(4)", "threshold(0.2)", cache))
    right, there, same = stored(t.strategy("blocks(4)", Replay(writes), "block"))
    assert writes == same and kept == there == 32
    for a, b in ((ours.keys, right.keys), (ours.values, right.values)):
        assert torch.allclose(a[:, 0, :, :kept], b[:, 0, :, :kept], atol=1e-4, rtol=0)


# ---- fixed reuse and its control -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["block-causal", "context-causal", "unshifted"])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_fixed_reuse_is_commit_ahead_whatever_the_subset(k: int, kind: str) -> None:
    """Replacing layers freezes what is above them: each such forward commits the next-best position of stale logits,
    so the same tokens cost one forward more for each."""
    skipped = 0
    for seed, axes in ((0, ("blocks(8)", 0.3)), (1, ("blocks(4)", 0.8)), (2, ("blocks(16)", 0.6))):
        model, ahead = denoiser(kind, seed), f"commit_ahead({axes[1]}, extra={k - 1}, like_reuse=True)"
        right = t.decode(model, crowd(PUBLISHED, (axes[0], ahead)))
        for subset in ("first", "middle", "last"):
            found = t.decode(model, crowd(f"fixed_reuse({k}, '{subset}')", (axes[0], f"threshold({axes[1]})")))
            assert found.answers == right.answers, (seed, axes, subset)
            shallow = sum(e.work.kind == "shallow" for e in steps(found.events))
            assert sum(found.nfe.values()) - shallow == sum(right.nfe.values())
            skipped += shallow
    assert skipped > 50


def test_which_steps_fixed_reuse_skips() -> None:
    """The counter runs over all forwards of the model's block; the first of a sub-block, and those while its first
    position is open, run every layer, as do whole-block forwards and commits."""
    for k in (2, 3):
        one = t.request(range(5), 43, t.strategy("blocks(8)", "low_confidence(steps=200)", f"fixed_reuse({k})"))
        spy = Spy(one.strategy.cache)
        starts: list[tuple[int, bool]] = []

        @dataclass
        class Note(Spy):
            def plan(self, *args: Any, starts: Any = starts) -> Any:
                starts.append((args[1][0].start, bool(args[0].decided[args[1][0].start])))
                return super().plan(*args)

        note = Note(spy.inner)
        t.decode(denoiser(), [replace(one, strategy=replace(one.strategy, cache=note))])
        block = count = last = -1
        for (start, spoken), plan in zip(starts, note.plans, strict=True):
            count = count + 1 if start // 16 == block else 0
            skip = start == last and spoken and count % k != 0
            assert bool(plan.stages) == skip, (k, start, count)
            block, last = start // 16, start
        assert any(p.stages for p in note.plans)


def test_subsets_are_those_of_the_published_runs() -> None:
    from unmask.cache.depth import subset

    assert [subset(n, 28) for n in ("first", "middle", "last")] == [(1, 13), (8, 20), (16, 28)]
    for layers in range(1, 40):
        assert all(0 <= a < b <= layers for a, b in (subset(n, layers) for n in ("first", "middle", "last")))


def test_commit_ahead_takes_the_next_best_after_the_sure_ones() -> None:
    seq = Seq(t.request([1], 6, t.strategy()), KINDS["llada"], *[torch.zeros(7, dtype=torch.long)] * 3)
    prob = torch.tensor([0.2, 0.95, 0.7, 0.4, 0.7, 0.9])
    said = Candidates(torch.arange(6), prob)
    want = torch.arange(1, 7)
    chosen = [
        catalog.parse("policy", s).decide(seq, want, said, catalog.parse("policy", s).init(seq), None)[0].slots.tolist()
        for s in (
            "commit_ahead(0.9, extra=0)",
            "commit_ahead",
            "commit_ahead(0.9, extra=2)",
            "commit_ahead(1.0, extra=9)",
        )
    ]
    assert chosen == [[1, 5], [1, 2, 5], [1, 2, 4, 5], [0, 1, 2, 3, 4, 5]]


def test_commit_ahead_without_extras_is_threshold() -> None:
    for name in ("full", "block-causal"):
        for policy in ("threshold(0.6)", "commit_ahead(0.6, extra=0)"):
            found = t.decode(t.FakeDenoiser(t.TRAITS[name]), t.crowd(t.strategy("blocks(4)", policy, "dual"), 16))
            right = found.answers if policy.startswith("threshold") else right  # noqa: F821
            assert found.answers == right


# ---- early exit ------------------------------------------------------------------------------------------------------


def test_a_shallow_step_takes_only_what_is_sure_and_agreed_or_goes_on() -> None:
    model, seen = denoiser("block-causal", 1), []
    inner = catalog.parse("cache", "early_exit(4, threshold=0.15)")

    @dataclass
    class Watch(Spy):
        def observe(self, probes: Any, candidates: Candidates, state: Any) -> Any:
            after, more = super().observe(probes, candidates, state)
            seen.append((state, candidates, after, more))
            return after, more

    one = t.request(range(5), 43, t.strategy("blocks(16)", "low_confidence(steps=22)", Watch(inner)))
    found = t.decode(model, [one])
    taken, last = 0, {}
    for step, (state, candidates, after, more) in zip(steps(found.events), seen, strict=True):
        answers = dict(zip(state.need.tolist(), candidates.token.tolist(), strict=True))
        if state.rest is None:  # a full step, or the rest of a shallow one
            last = answers
            assert more is None and after.sure is None
            continue
        sure = [candidates.prob[i] > 0.15 and answers[p] == last.get(p) for i, p in enumerate(state.need.tolist())]
        if any(sure):
            taken += 1
            wanted = {p + 1 for p, ok in zip(state.need.tolist(), sure, strict=True) if ok}
            assert more is None and {w[0] for w in step.writes} <= wanted and step.writes
        else:
            assert more is not None and not step.writes and more.stages[0].layers == (4, LAYERS)
    assert taken > 0


def test_going_on_is_the_full_step_and_costs_only_the_layers_left() -> None:
    """With a threshold that nothing passes, every step ends as a full one: the answers are off's."""
    for kind in ("block-causal", "llada"):
        model = denoiser(kind, 1)
        base = "block" if kind == "block-causal" else "dual"
        off = t.decode(model, crowd(base))
        ours = t.decode(model, crowd("early_exit(3, threshold=1.0)"))
        assert ours.answers == off.answers
        assert sum(s.work.row_layers for s in steps(ours.events)) == sum(s.work.row_layers for s in steps(off.events))
        assert sum(ours.nfe.values()) > sum(off.nfe.values())


def test_what_is_withheld_stays_open() -> None:
    """A policy that closes a block after its last pass closes none of whose positions some were kept from it."""
    for policy in ("low_confidence(steps=8, all_passes=True)", "dream('origin', steps=6)", "factor(1.0)"):
        for cache in ("early_exit(2, threshold=0.2)", "early_exit(5, agreement=False, threshold=0.1, every=4)"):
            t.decode(denoiser("block-causal", 2), crowd(cache, ("blocks(4)", policy)))


# ---- depth split and delta reuse -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache", "part"), [("depth_split(3, refresh=None)", (0, 3)), ("delta_reuse(refresh=None)", (2, 5))]
)
def test_changed_rows_are_those_written_by_the_last_step(cache: str, part: tuple[int, int]) -> None:
    one = t.request(range(5), 43, t.strategy("blocks(16)", "low_confidence(steps=22)", cache))
    spy = Spy(one.strategy.cache)
    found = t.decode(denoiser(), [replace(one, strategy=replace(one.strategy, cache=spy))])
    before: set[int] = set()
    for plan, step in zip(spy.plans, steps(found.events), strict=True):
        for stage in plan.stages:
            rows = set(t.positions(stage.query).tolist())
            assert rows == (before if stage.layers == part else set(t.positions(plan.query).tolist()))
        before = {w[0] for w in step.writes}


@pytest.mark.parametrize("spec", ["depth_split(3, refresh={})", "delta_reuse('last', refresh={})"])
def test_refresh_counts_steps_within_a_block(spec: str) -> None:
    one = t.request(range(16), 32, t.strategy("blocks(16)", "low_confidence(steps=32)", spec.format(3)))
    plans, _ = plans_of(denoiser(), one)
    assert [bool(p.stages) for p in plans] == ([False, True, True] * 6)[:16] * 2


def test_shift_and_scattered_probes_of_part_forwards() -> None:
    """A look at a layer shows the rows that it ran for, or that went past it, and no other."""
    probes = (Probe("hidden", 0), Probe("hidden", 6), Probe("kv_cosine", 0), Probe("kv_cosine", 6), Probe("logits"))
    one = t.request(range(5), 27, t.strategy("blocks(16)", "low_confidence(steps=14)", "depth_split(3, refresh=None)"),
                    probes=probes)  # fmt: skip
    spy = Spy(one.strategy.cache)
    found = t.decode(denoiser(), [replace(one, strategy=replace(one.strategy, cache=spy))])
    looks = [e for e in found.events if isinstance(e, Probed)]
    for i, plan in enumerate(spy.plans):
        rows = t.positions(plan.query).tolist()
        own = {(e.kind, e.layer): e for e in looks if e.nfe == i + 1}
        low = t.positions(plan.stages[0].query).tolist() if plan.stages else rows
        assert list(own["hidden", 0].positions) == low and list(own["hidden", 6].positions) == rows
        assert set(own["kv_cosine", 0].positions) <= set(low) and set(own["kv_cosine", 6].positions) <= set(rows)
        assert len(own["logits", -1].positions) == plan.need.numel()


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_they_refuse() -> None:
    for spec, words in (
        ("fixed_reuse(0)", "k"),
        ("fixed_reuse(2, 'lower')", "layers"),
        ("early_exit", "exit"),
        ("early_exit(0)", "exit"),
        ("early_exit(2, threshold=1.5)", "threshold"),
        ("depth_split(-1)", "split"),
        ("depth_split(1, inside='prefix')", "inside"),
        ("delta_reuse(refresh=0)", "refresh"),
    ):
        with pytest.raises(SpecError, match=words):
            catalog.parse("cache", spec)
    with pytest.raises(SpecError, match="an extra above 0"):
        catalog.parse("policy", "commit_ahead(extra=0, like_reuse=True)")
    for name in ("causal", "recurrent"):
        for spec in ("early_exit(1)", "depth_split(1)", "delta_reuse"):
            assert not serves(spec, t.TRAITS[name])
    assert [n for n in t.TRAITS if serves("fixed_reuse(2)", t.TRAITS[n])] == [
        "block-causal", "block-causal-off-grid", "context-causal"]  # fmt: skip
    assert not serves("depth_split(1, inside='sub_block')", t.TRAITS["full"])
    one = t.request([1], 4, t.strategy())
    seq = Seq(one, t.TRAITS["full"], one.canvas, one.fixed, one.fixed.clone())
    with pytest.raises(RequestError, match="block-causal"):
        catalog.parse("policy", "commit_ahead(like_reuse=True)").init(seq)


@pytest.mark.parametrize("spec", ["early_exit(8)", "depth_split(8)"])
def test_layers_that_the_model_does_not_have(spec: str) -> None:
    engine = Engine(denoiser(), 1)
    engine.submit(crowd(spec)[0])
    (event,) = list(engine.run())
    assert isinstance(event, Failed) and "at most 7, the layers of this model" in event.error and "8" in event.error


@pytest.mark.parametrize("name", ["fixed_reuse", "early_exit", "depth_split", "delta_reuse"])
def test_they_are_experimental(name: str) -> None:
    assert catalog.find("cache", name).experimental and catalog.find("policy", "commit_ahead").experimental


def test_the_public_checks_pass() -> None:
    for spec in (
        "fixed_reuse(3, 'last')",
        "early_exit(1, threshold=0.2)",
        "depth_split(1)",
        "delta_reuse('first', None)",
    ):
        t.check_cache(spec, ("full-shift", "block-causal"))
    t.check_policy("commit_ahead(0.5, extra=2)", ("full", "block-causal"))
