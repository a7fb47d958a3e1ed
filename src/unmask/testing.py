"""Checks that our own methods pass, for packages that bring a policy, a cache, a schedule or a model of their own.

Enters: a component (object or spec), a model family or a checkpoint directory. Leaves: nothing, or an AssertionError
that says what rule was broken. The fake model behind the checks depends on the id and position of every row it sees,
and turns to NaN every row that a forward computed but did not keep, so a forgotten row cannot go unnoticed.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from unmask.cache.plans import finished, whole_blocks
from unmask.core import catalog
from unmask.core.errors import InputError
from unmask.core.events import Accepted, BlockDone, Event, Failed, Finished, Stepped, fold
from unmask.core.protocols import BlockSchedule, CachePolicy, DecodePolicy, Guidance, Selective
from unmask.core.types import (
    Batch,
    Block,
    BlockCausal,
    Candidates,
    Forwarded,
    Full,
    Head,
    Lane,
    LatentSpace,
    Peers,
    Plan,
    Recurrent,
    Request,
    Run,
    Sampling,
    Sequence,
    Spans,
    Strategy,
    Traits,
    rows_in,
)
from unmask.engine.engine import Engine

if TYPE_CHECKING:
    from unmask.models.backbone import AnyDenoiser
    from unmask.models.family import Family

VOCAB, MASK, EOS = 24, 23, 22
WIDTH = 16

TRAITS: dict[str, Traits] = {
    "full": Traits(MASK),
    "full-shift": Traits(MASK, shift=1),
    "block-causal": Traits(MASK, shift=1, attention=BlockCausal(4), grid_origin="zero"),
    "block-causal-off-grid": Traits(MASK, attention=BlockCausal(4)),
    "causal": Traits(MASK, shift=1, attention=BlockCausal(1), grid_origin="zero"),
    "context-causal": Traits(MASK, shift=1, attention=BlockCausal(4, "causal"), grid_origin="zero"),
    "recurrent": Traits(MASK, attention=Recurrent(), latent=LatentSpace(4, -4.0, 4.0)),
}
"""Kinds of models that a strategy meets: attention rule, shift, and where the blocks are counted from."""


# ---- the fake model --------------------------------------------------------------------------------------------------


class FakeStore:
    """Two layers of rows per slot, all NaN until they are written; NaN again unless a forward keeps them."""

    def __init__(self, slots: int, rows: int) -> None:
        self.values = torch.full((2, slots, rows, WIDTH), torch.nan, dtype=torch.float64)
        self.beside = torch.full((2, 3, slots, rows, WIDTH), torch.nan, dtype=torch.float64)
        """Hidden rows at the three boundaries, and what the two layers added: what plans hold."""
        self.slots, self.rows = slots, rows

    def free(self, slot: int, start: int = 0) -> None:
        """The slot's rows from `start` on are NaN from now on."""
        self.values[:, slot, start:] = torch.nan
        self.beside[:, :, slot] = torch.nan


class FakeDenoiser:
    """A deterministic two-layer model in float64 on the CPU: every visible row's id and position moves its logits.

    Args:
        traits: any attention rule, shift and ids.
        seed: of its weights. gain: spread of its logits; 0 makes every logit equal.
    """

    def __init__(self, traits: Traits, seed: int = 0, gain: float = 1.0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.traits, self.layers, self.device = traits, 2, torch.device("cpu")
        self.embed = 3 * torch.rand(VOCAB, WIDTH, generator=draw, dtype=torch.float64)
        self.turn = 0.5 + torch.rand(2, WIDTH, generator=draw, dtype=torch.float64)
        weight = torch.randn(VOCAB, WIDTH, generator=draw, dtype=torch.float64) * gain
        weight[MASK] *= 1.5
        self.head = Head(weight)
        dim = 0 if traits.latent is None else traits.latent.dim
        self.table = torch.randn(VOCAB, dim, generator=draw, dtype=torch.float64) if dim else None
        self.into = torch.randn(2 * dim, WIDTH, generator=draw, dtype=torch.float64)
        self.calls: list[Batch] = []

    def support(self, want: Tensor) -> Tensor:
        """Row p - shift speaks for position p."""
        return (want - self.traits.shift).clamp(min=0)

    def new_store(self, slots: int, rows: int) -> FakeStore:
        return FakeStore(slots, rows)

    def grow_store(self, store: FakeStore, slots: int, rows: int) -> FakeStore:
        """A larger store with the same contents."""
        new = FakeStore(max(slots, store.slots), max(rows, store.rows))
        new.values[:, : store.slots, : store.rows] = store.values
        new.beside[:, :, : store.slots, : store.rows] = store.beside
        return new

    def __call__(self, batch: Batch, store: FakeStore) -> Forwarded:
        """Compute the query rows of every lane, then poison those that the plan does not keep."""
        self.calls.append(batch)
        states, probed, at = [], [], 0
        for lane in batch.lanes:
            n = rows_in(lane.plan.query)
            ids, positions = batch.ids[at : at + n], batch.positions[at : at + n]
            vectors = self._vectors(batch, slice(at, at + n))
            stored = store.values[:, lane.slot, positions]
            if lane.plan.by_layers:
                states.append(self._staged(ids, positions, store, lane))
            else:
                states.append(self._rows(ids, positions, store.values[:, lane.slot], lane.plan.visible, vectors))
            probed.append(_similar(lane.plan, stored, store.values[:, lane.slot, positions]))
            lost = positions[~inside(positions, lane.plan.keep)]
            store.values[:, lane.slot, lost] = torch.nan
            at += n
        hidden = torch.cat(states)[batch.need]
        bad = [int(batch.positions[i]) for i, h in zip(batch.need, hidden, strict=True) if bool(h.isnan().any())]
        assert not bad, f"rows {bad} read a row that no forward kept (or that does not exist)"
        return Forwarded(hidden, tuple(probed))

    def _vectors(self, batch: Batch, own: slice) -> Tensor | None:
        """What noised vectors and hints add to the rows that have them; their level moves them too."""
        found = batch.latents
        if found is None:
            return None
        lane = int(torch.searchsorted(torch.tensor(_ends(batch)), own.start, right=True))
        both = torch.cat([found.vectors[own], found.hint[own]], -1).double() * (1.5 + found.level[lane] / 10)
        return torch.where(found.noisy[own, None], both @ self.into, 0.0)

    def dense(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> logits [B, T, V]: the same model without a store, every row computed; mask ids are holes."""
        out = []
        for row in ids:
            n, holes = row.shape[0], (row == MASK).nonzero()
            final = whole_blocks(self.traits, int(holes[0]) if len(holes) else n, n, n)[0]
            visible = self.traits.attention.visible(((0, n),), n, final)
            values = FakeStore(1, n).values[:, 0]
            out.append(self._rows(row, torch.arange(n), values, visible) @ self.head.weight.T)
        return torch.stack(out)

    def _rows(
        self, ids: Tensor, positions: Tensor, values: Tensor, visible: Seq[Run], vectors: Tensor | None = None
    ) -> Tensor:
        """Two layers of write, then read: values [2, rows, WIDTH] is the slot's part of the store."""
        place = positions[:, None].double()
        x = torch.sin(self.embed[ids] + place * self.turn[0] + (0.0 if vectors is None else vectors))
        for layer in range(2):
            values[layer, positions] = x
            x = torch.sin(1.3 * x + 2.0 * self._read(place, values[layer], visible))
        return x

    def _staged(self, ids: Tensor, positions: Tensor, store: FakeStore, lane: Lane) -> Tensor:
        """The same row by row and layer by layer, as the stages say; a row that is not at a layer is NaN there."""
        plan, values, held, place = lane.plan, store.values, store.beside[:, :, lane.slot], positions[:, None].double()
        sees = [(1, spans) for count, spans in plan.visible for _ in range(count)]
        x = torch.sin(self.embed[ids] + place * self.turn[0])
        level = 0
        for stage in plan.staged(2):
            low, high = stage.layers
            x = x if level == low else torch.full_like(x, torch.nan)
            runs = inside(positions, stage.query)
            read = runs & x.isnan().any(-1)
            x[read] = held[0, low, positions[read]]
            goes_on = runs | (~x.isnan().any(-1) if stage.rest == "delta" else runs)
            x[~goes_on] = torch.nan
            for layer in range(low, high):
                own = runs.nonzero().flatten()
                if layer in plan.hold and layer == low == 0:
                    held[0, 0, positions[goes_on]] = x[goes_on]
                values[layer, lane.slot, positions[own]] = x[own]
                seen = self._read(place[own], values[layer, lane.slot], [sees[i] for i in own.tolist()])
                fresh = torch.sin(1.3 * x[own] + 2.0 * seen)
                if layer in plan.hold_deltas:
                    held[1, layer, positions[own]] = fresh - x[own]
                beside = goes_on & ~runs
                x[beside] += held[1, layer, positions[beside]]
                x[own] = fresh
                if layer + 1 in plan.hold:
                    held[0, layer + 1, positions[goes_on]] = x[goes_on]
            level = high
        return x

    def _read(self, place: Tensor, values: Tensor, visible: Seq[Run]) -> Tensor:
        """A positive weight on every visible row, by its distance; the rows of a run see the same spans."""
        parts, at = [], 0
        for count, spans in visible:
            keys = torch.cat([torch.arange(a, b) for a, b in spans])
            assert keys.numel() and int(keys.max()) < values.shape[0], (
                f"a row sees {spans}, the store has {len(values)} rows"
            )
            weight = 1.2 + torch.cos(0.9 * (place[at : at + count] - keys[None]))
            parts.append((weight[..., None] * values[keys]).sum(1) / keys.numel() ** 0.5)
            at += count
        assert at == place.shape[0], f"visible covers {at} rows, the query has {place.shape[0]}"
        return torch.cat(parts) if parts else torch.zeros(0, WIDTH, dtype=torch.float64)


def _similar(plan: Plan, stored: Tensor, fresh: Tensor) -> tuple[Tensor, ...]:
    """Cosines [n, 2] of fresh to stored rows [2, n, WIDTH], per "kv_cosine" probe; NaN for rows that no forward kept.
    Its keys are its values."""
    cosine = torch.cosine_similarity(stored, fresh, dim=-1)
    return tuple(cosine[p.layer][:, None].repeat(1, 2) for p in plan.probes if p.kind == "kv_cosine")


def _ends(batch: Batch) -> list[int]:
    """Where the rows of every lane end in the packed batch."""
    out, at = [], 0
    for lane in batch.lanes:
        at += rows_in(lane.plan.query)
        out.append(at)
    return out


def inside(positions: Tensor, spans: Spans) -> Tensor:
    """Which positions [n] lie in the spans."""
    found = torch.zeros_like(positions, dtype=torch.bool)
    for a, b in spans:
        found |= (positions >= a) & (positions < b)
    return found


# ---- a watched run ---------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A cache policy that is watched: each of its plans is checked against the contract, and counted."""

    inner: CachePolicy
    rows: int = 0
    kept: int = 0
    sequences: dict[str, Sequence] = field(default_factory=dict)
    asked: Any = None

    @property
    def scoring(self) -> Literal["exact", "approximate", "undefined"]:
        return self.inner.scoring

    def exact_for(self, traits: Traits) -> bool:
        return self.inner.exact_for(traits)

    def init(self, seq: Sequence) -> Any:
        self.sequences[seq.request.id] = seq
        return self.inner.init(seq)

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Any, peers: Peers
    ) -> tuple[Plan, Any]:
        plan, state = self.inner.plan(seq, open, need, horizon, state, peers)
        self.asked = (need, horizon, seq.traits, finished(seq, horizon))
        self._count(plan)
        return plan, state

    def _count(self, plan: Plan) -> None:
        check_plan(plan, *self.asked)
        self.rows += rows_in(plan.query)
        self.kept += rows_in(plan.keep)

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Any) -> tuple[Any, Plan | None]:
        state, more = self.inner.observe(probes, candidates, state)
        if more is not None:
            self._count(more)
        return state, more

    def trusted(self, state: Any) -> Tensor | None:
        return self.inner.trusted(state) if isinstance(self.inner, Selective) else None


def check_plan(plan: Plan, need: Tensor, horizon: int, traits: Traits, final: int = 0) -> None:
    """A plan against the contract: spans in order, need and keep inside the query, no row sees more than it may.

    Args:
        final: rows [0, final) belong to finished blocks, which see less under a causal context.
    """
    for name in ("query", "keep"):
        edges = [e for span in getattr(plan, name) for e in span]
        assert edges == sorted(edges), f"{name} {getattr(plan, name)} is not sorted and disjoint"
        assert not edges or (edges[0] >= 0 and edges[-1] <= horizon), f"{name} leaves the {horizon} rows that exist"
    query = positions(plan.query)
    assert torch.equal(plan.need, need), f"need is {plan.need.tolist()}, asked were {need.tolist()}"
    assert bool(torch.isin(need, query).all()), f"need {need.tolist()} is not inside query {plan.query}"
    assert bool(torch.isin(positions(plan.keep), query).all()), f"keep {plan.keep} is not inside query {plan.query}"
    allowed = _per_row(traits.attention.visible(plan.query, horizon, final))
    _check_stages(plan, query)
    seen = _per_row(plan.visible)
    assert len(seen) == query.numel(), f"visible covers {len(seen)} rows, the query has {query.numel()}"
    for row, ours, rule in zip(query.tolist(), seen, allowed, strict=True):
        assert ours <= rule, f"row {row} sees {sorted(ours - rule)} against the model's rule"


def _check_stages(plan: Plan, query: Tensor) -> None:
    """Stages go up without overlap, over rows of the query; the needed rows are in the last one."""
    assert bool(plan.stages) == (plan.kind == "shallow"), f"kind {plan.kind} with stages {plan.stages}"
    level, there = 0, query
    for stage in plan.stages:
        low, high = stage.layers
        assert level <= low <= high, f"stages {plan.stages} overlap or go down"
        own = positions(stage.query)
        assert bool(torch.isin(own, query).all()), f"stage {stage} is not inside query {plan.query}"
        there = torch.cat([own, there]) if stage.rest == "delta" and level == low else own
        level = high
    assert bool(torch.isin(plan.need, there).all()), f"need {plan.need.tolist()} does not get to the end of the stages"


def _per_row(visible: Iterable[Run]) -> list[set[int]]:
    return [{p for a, b in spans for p in range(a, b)} for count, spans in visible for _ in range(count)]


def positions(spans: Spans) -> Tensor:
    """The rows of the spans, in order."""
    return torch.cat([torch.arange(a, b) for a, b in spans]) if spans else torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class Outcome:
    """What a watched run gave: answers by request id (holes -1), its events, and its counters."""

    answers: dict[str, list[int]]
    events: tuple[Event, ...]
    rows: int
    kept: int
    nfe: dict[str, int]
    calls: int
    head_rows: int


def request(
    prompt: Seq[int],
    length: int,
    strategy: Strategy,
    id: str = "a",
    fixed: Mapping[int, int] | None = None,
    **more: Any,
) -> Request:
    """A request of `length` holes after the prompt. fixed: answer offset -> id of a given token."""
    given = {len(prompt) + i: t for i, t in (fixed or {}).items()}
    canvas = torch.tensor([*prompt, *[0] * length])
    decided = torch.arange(len(canvas)) < len(prompt)
    for position, token in given.items():
        canvas[position], decided[position] = token, True
    return Request(id, canvas, decided, len(prompt), strategy, **more)


def decode(denoiser: Any, requests: Iterable[Request], slots: int = 8, settled: bool = True) -> Outcome:
    """Run requests with their caches watched; every event and counter is checked on the way.

    Args:
        settled: also require that no hole is left.

    Raises:
        AssertionError: a rule of the house is broken.
    """
    engine, watched, members = Engine(denoiser, slots), [], []
    for one in requests:
        watched.append(Watched(one.strategy.cache))
        members.append(replace(one, strategy=replace(one.strategy, cache=watched[-1])))
        engine.submit(members[-1])
    limit = 50 + 4 * sum(int(m.canvas.numel()) for m in members)
    events = tuple(_bounded(engine, limit))
    sequences = {k: s for w in watched for k, s in w.sequences.items()}
    check_events(events, sequences, settled)
    nfe = {e.id: e.nfe for e in events if isinstance(e, Finished)}
    answers = {k: torch.where(s.decided, s.canvas, -1)[s.request.prompt_len :].tolist() for k, s in sequences.items()}
    rows = sum(w.rows for w in watched)
    assert engine.idle, "the engine is not idle after its last event"
    return Outcome(
        answers, events, rows, sum(w.kept for w in watched), nfe, engine.stats.model_calls, engine.stats.head_rows
    )


def _bounded(engine: Engine, limit: int) -> Iterator[Event]:
    for _ in range(limit):
        if engine.idle:
            return
        yield from engine.step()
    raise AssertionError(f"no end after {limit} steps: a policy must commit something while a hole is left")


def check_events(events: Seq[Event], sequences: Mapping[str, Sequence], settled: bool = True) -> None:
    """Events against their sequences: fold gives the same canvas, forwards are counted, fixed tokens stand."""
    canvases = fold(events)
    for id, seq in sequences.items():
        own = [e for e in events if e.id == id]
        assert not [e for e in own if isinstance(e, Failed)], f"{id} failed: {own[-1]}"
        assert isinstance(own[0], Accepted) and isinstance(own[-1], Finished), f"{id}: first or last event is wrong"
        ids = torch.where(seq.decided, seq.canvas, -1).tolist()
        assert canvases[id].ids == ids, f"{id}: fold gives {canvases[id].ids}, the engine has {ids}"
        steps = [e for e in own if isinstance(e, Stepped)]
        assert [e.nfe for e in steps] == list(range(1, len(steps) + 1)), f"{id}: forwards are not counted one by one"
        assert own[-1].nfe == seq.nfe == len(steps), f"{id}: nfe {own[-1].nfe}, {len(steps)} forwards were seen"
        given = seq.request.fixed
        assert torch.equal(seq.canvas[given], seq.request.canvas[given]), f"{id}: a given token was changed"
        written = [w[1] for e in steps for w in e.writes]
        assert seq.traits.mask_id not in written, f"{id}: the mask id was committed"
        if settled and own[-1].reason == "length":
            assert bool(seq.decided.all()), f"{id}: holes are left at {(~seq.decided).nonzero().flatten().tolist()}"
            done = {(e.start, e.stop) for e in own if isinstance(e, BlockDone)}
            open_first = {b for b in own[0].blocks if -1 in own[0].canvas[b[0] : b[1]]}
            assert done == open_first, f"{id}: blocks {open_first - done} never ended"


# ---- public checks ---------------------------------------------------------------------------------------------------

PROMPTS = ((1, 5, 9), (4, 4, 8, 2, 11, 7), (3,))
LENGTH = 10


def strategy(
    schedule: Any = "blocks(4)",
    policy: Any = "threshold(0.6)",
    cache: Any = "none",
    guidance: Guidance | None = None,
    sampling: Sampling | None = None,
    **more: Any,
) -> Strategy:
    """A strategy from objects or specs."""
    return Strategy(
        catalog.parse("schedule", schedule),
        catalog.parse("policy", policy),
        catalog.parse("cache", cache),
        guidance,
        sampling or Sampling(),
        **more,
    )


def crowd(strategy: Strategy, length: int = LENGTH) -> list[Request]:
    """Requests of mixed lengths, one of them with two given tokens inside its answer."""
    fixed: list[dict[int, int]] = [{}, {4: 6, 5: 2}, {}]
    return [
        request(p, length - i, strategy, str(i), f, seed=i) for i, (p, f) in enumerate(zip(PROMPTS, fixed, strict=True))
    ]


def _spec(kind: str, component: Any) -> Any:
    """The component; if it is in the catalog, its repr must parse to an equal one."""
    found = catalog.parse(kind, component)
    assert dataclasses.is_dataclass(found), f"{kind} {found!r} is not a frozen dataclass (use @component)"
    name = getattr(found, "spec_name", None)
    if name in catalog.entries(kind) and catalog.load(kind, name) is type(found):
        assert catalog.parse(kind, repr(found)) == found, f"{found!r} does not parse to itself"
    return found


def _alone_and_together(make: Callable[[], list[Request]], traits: Traits) -> None:
    """State is returned, not kept: a request gives the same answer beside others, and again."""
    together = decode(FakeDenoiser(traits), make()).answers
    for one in make():
        alone = decode(FakeDenoiser(traits), [one]).answers[one.id]
        assert alone == together[one.id], f"request {one.id} alone gives {alone}, beside others {together[one.id]}"


def check_policy(policy: DecodePolicy | str, traits: Iterable[str] = tuple(TRAITS)) -> None:
    """A decode policy settles every hole, keeps its state in what it returns, and reads no row that is not there.

    Args:
        policy: an object or a spec. traits: kinds of models, names of `TRAITS`.

    Raises:
        AssertionError: a rule is broken.
    """
    found = _spec("policy", policy)
    for name in traits:
        for schedule in ("whole", "blocks(4)", "growing(3)"):
            for sampling in (Sampling(), Sampling(temperature=0.7)):
                chosen = strategy(schedule, found, "none", sampling=sampling)
                _alone_and_together(lambda s=chosen: crowd(s), TRAITS[name])  # type: ignore[misc]


def check_cache(cache: CachePolicy | str, traits: Iterable[str] = tuple(TRAITS)) -> None:
    """A cache keeps the contract of plans, and changes no token where it calls itself exact.

    Raises:
        AssertionError: a rule is broken, or an exact cache gave other tokens than no cache.
    """
    found: CachePolicy = _spec("cache", cache)
    for name in traits:
        if not serves(found, TRAITS[name]):
            continue
        for schedule in ("whole", "blocks(4)", "blocks(5)", "growing(3)"):
            for policy in ("threshold(0.6)", "low_confidence(steps=10)"):
                _check_cache(found, name, schedule, policy)


def _check_cache(cache: CachePolicy, name: str, schedule: str, policy: str) -> None:
    chosen, plain = strategy(schedule, policy, cache), strategy(schedule, policy)
    _alone_and_together(lambda: crowd(chosen), TRAITS[name])
    if cache.exact_for(TRAITS[name]):
        ours = decode(FakeDenoiser(TRAITS[name]), crowd(chosen)).answers
        right = decode(FakeDenoiser(TRAITS[name]), crowd(plain)).answers
        assert ours == right, (
            f"{cache!r} calls itself exact for {name}; {schedule} {policy}: {ours}, without cache {right}"
        )


def serves(cache: CachePolicy, traits: Traits) -> bool:
    """Whether the cache accepts a model of these traits (it refuses others with a RequestError)."""
    one = request((1,), 2, strategy(cache=cache))
    try:
        cache.init(Sequence(one, traits, one.canvas, one.fixed, one.fixed.clone()))
    except InputError:
        return False
    return True


def check_schedule(schedule: BlockSchedule | str, traits: Iterable[str] = tuple(TRAITS)) -> None:
    """A schedule's blocks are disjoint and cover every hole; the canvas never shrinks and holds the open block.

    Raises:
        AssertionError: a rule is broken.
    """
    found: BlockSchedule = _spec("schedule", schedule)
    for name in traits:
        for one in crowd(strategy(found)):
            _check_layout(found, Sequence(one, TRAITS[name], one.canvas, one.fixed, one.fixed.clone()))
        for policy in ("threshold(0.6)", "low_confidence(steps=10)"):
            chosen = strategy(found, policy)
            _alone_and_together(lambda s=chosen: crowd(s), TRAITS[name])  # type: ignore[misc]


def _check_layout(schedule: BlockSchedule, seq: Sequence) -> None:
    seq.blocks = schedule.layout(seq)
    edges = [e for b in seq.blocks for e in (b.start, b.stop)]
    assert edges == sorted(edges) and edges[-1] <= seq.length, f"blocks {edges} are not sorted, disjoint and inside"
    holes = seq.holes(0, seq.length)
    covered = inside(holes, tuple((b.start, b.stop) for b in seq.blocks))
    assert bool(covered.all()), f"no block covers the holes {holes[~covered].tolist()}"
    last = 0
    for i in range(len(seq.blocks)):
        if all(block.done for block in seq.blocks):  # a schedule may open several at once
            break
        open, horizon = schedule.open(seq), schedule.horizon(seq)
        assert open and not any(b.done for b in open), f"open blocks {open} while block {i} is not done"
        assert open[-1].stop <= horizon <= seq.length, f"horizon {horizon} with the open block {open[-1]}"
        assert horizon >= last, f"the horizon shrinks from {last} to {horizon}"
        last = horizon
        seq.blocks = tuple(replace(b, done=True) if b in open else b for b in seq.blocks)
    assert not schedule.open(seq), "a block is open although all are done"


def check_model(model: Family | str | Path, config: Mapping[str, Any] | None = None) -> None:
    """A model family or checkpoint directory saves and loads to the same bits, and decodes as its dense forward says.

    Args:
        model: a `Family` (then `config` is a small config of it) or a directory.

    Raises:
        AssertionError: a rule is broken. InputError: the checkpoint or config is refused.
    """
    from unmask.models.backbone import Backbone, backbone, denoiser_of
    from unmask.models.family import Family
    from unmask.models.load import load_model
    from unmask.models.save import save_checkpoint
    from unmask.models.shapes import randomise

    if isinstance(model, Family):
        assert config is not None, "a family is checked with a small config of it"
        network: Backbone = backbone(model.shape(config)).eval()
        traits, given = model.traits(config), dict(config)
        randomise(network, 0, 0.3)
        entry = catalog.entries("model").get(str(config.get("model_type")))
        assert entry is not None, f"model_type {config.get('model_type')!r} is not in the catalog (`unmask.models`)"
        model.recommended(config, False, 32)
    else:
        loaded = load_model(model, dtype="fp32", device="cpu")
        network, traits, given = loaded.model, loaded.traits, loaded.config
    with tempfile.TemporaryDirectory() as place:
        again = load_model(save_checkpoint(network, given, Path(place) / "copy"), dtype="fp32", device="cpu")
    for (name, ours), theirs in zip(network.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), f"{name} is not the same after save and load"
    check_denoiser(denoiser_of(again.model, replace(traits, eos_ids=())))


def check_denoiser(denoiser: AnyDenoiser) -> None:
    """Rows through the store give the dense forward's logits, and exact caches change no token."""
    from unmask.models.denoiser import TransformerDenoiser

    traits, ids = denoiser.traits, torch.arange(3, 19) % denoiser.head.weight.shape[0]
    n, causal = len(ids), traits.attention == BlockCausal(1)
    if isinstance(denoiser, TransformerDenoiser) and (causal or isinstance(traits.attention, Full)):
        plan = Plan(((0, n),), torch.arange(n), (), traits.attention.visible(((0, n),), n))
        rows = denoiser(Batch(ids, torch.arange(n), torch.arange(n), (Lane(0, plan),)), denoiser.new_store(1, n)).hidden
        with torch.no_grad():
            dense = denoiser.model(ids[None], causal=causal)[0]
        gap = float((rows - dense).abs().max())
        assert gap < 1e-3, f"packed rows differ from the dense forward by {gap:.1e}"
    ar = traits.mask_id is None
    axes = ("growing(1)", "left_to_right") if ar else ("blocks(4)", "threshold(0.6)")
    plain = decode(denoiser, crowd(strategy(*axes))).answers
    for cache in ("prefix(refresh=1)", "dual(refresh=1)", "block", "boundary(refresh=1)"):
        found = catalog.parse("cache", cache)
        if found.exact_for(traits) and (cache == "boundary(refresh=1)") == isinstance(traits.attention, Recurrent):
            ours = decode(denoiser, crowd(strategy(*axes, found))).answers
            assert ours == plain, f"{cache} gives {ours}, no cache {plain}"
