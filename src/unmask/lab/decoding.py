"""Runs decoding strategies side by side: every round runs each of them once and then samples the floor (A B C, A B C).

Enters: cases, each a strategy on a model (one set of weights may stand behind several readings of it). Leaves: one
`Measured` per case. A workload is one request, or `crowd` requests of mixed lengths, through one engine together or one
after the other.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from unmask.core.errors import RunError
from unmask.core.events import Accepted, Event, Failed, Finished, Opened, Stepped
from unmask.core.protocols import Denoiser
from unmask.core.types import Request, Stats, Strategy, Traits
from unmask.engine.engine import Engine
from unmask.lab.cost import NOTHING, Executed, executed_of
from unmask.lab.floor import Clock, Floor, Rows
from unmask.lab.memory import peak_bytes

FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """One line of the comparison.

    Args:
        strategy: what to call it. cache, policy: its specs.
        requests: decoded in one engine (together) or in one after the other.
        tokens_per_step: of a policy that counts steps.
        baseline: its name on the command line, for what is there to be compared with.
    """

    strategy: str
    cache: str
    policy: str
    denoiser: Denoiser
    requests: tuple[Request, ...]
    together: bool = True
    tokens_per_step: int | None = None
    baseline: str | None = None


@dataclass
class Ran:
    """One decode of a case."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    forwards: list[Rows] = field(default_factory=list)
    kinds: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How many forwards of a kind computed so many rows, counted per sequence; rows that not every layer ran for count
    by the share that did."""
    tokens: int = 0
    nfe: int = 0
    model_calls: int = 0
    head_rows: int = 0
    work: Executed = NOTHING


@dataclass(frozen=True)
class Measured:
    """All runs of a case (they compute the same) and what they are held against.

    Args:
        floor, strict_floor: seconds of the whole decode. peak: bytes above the weights, where the system says it.
        products: seconds of one forward's products by their number of rows: layers, head.
    """

    case: Case
    runs: tuple[Ran, ...]
    floor: float
    strict_floor: float
    peak: int | None
    products: tuple[dict[int, float], dict[int, float]] = ({}, {})

    @property
    def median(self) -> float:
        return statistics.median(r.seconds for r in self.runs)

    @property
    def share(self) -> float:
        """Floor / median time of the whole decode."""
        return self.floor / self.median


def compare(floor: Floor, cases: Sequence[Case], rounds: int, clock: Clock) -> list[Measured]:
    """Interleaved rounds over the cases, at least `FEWEST_ROUNDS` of the floor.

    Args:
        clock: seconds, read after the device has finished.
    """

    def run(case: Case) -> Ran:
        return decode(case, clock)

    for case in {id(c.denoiser): c for c in cases}.values():
        _warm_up(case)
    peaks = [peak_bytes(partial(run, case), case.denoiser.device) for case in cases]
    runs: list[list[Ran]] = [[] for _ in cases]
    seen: set[Rows] = set()
    for _ in range(rounds):
        for case, found in zip(cases, runs):
            found.append(run(case))
            seen |= set(found[-1].forwards)
        floor.sample(seen)
    for _ in range(max(0, FEWEST_ROUNDS - rounds)):
        floor.sample(seen)
    return [_measured(floor, c, tuple(r), p) for c, r, p in zip(cases, runs, peaks)]


def _measured(floor: Floor, case: Case, runs: tuple[Ran, ...], peak: int | None) -> Measured:
    forwards = runs[0].forwards
    strict = floor.seconds(forwards, strict=True)
    return Measured(case, runs, floor.seconds(forwards), strict, peak, floor.best(forwards))


def _warm_up(case: Case) -> None:
    """Two steps, after which kernels are built and pages touched."""
    engine = Engine(case.denoiser, slots=_lanes(case.requests[0].strategy))
    engine.submit(case.requests[0])
    for _ in range(2):
        engine.step()


def decode(case: Case, clock: Clock) -> Ran:
    """One decode of every request of the case, engine and store included."""
    ran, groups = Ran(), [case.requests] if case.together else [(r,) for r in case.requests]
    cpu, begun = time.process_time(), clock()
    for group in groups:
        _decode_group(case.denoiser, group, ran)
    ran.seconds, ran.cpu_seconds = clock() - begun, time.process_time() - cpu
    return ran


def _decode_group(denoiser: Denoiser, requests: Sequence[Request], ran: Ran) -> None:
    engine = Engine(denoiser, slots=sum(_lanes(r.strategy) for r in requests))
    for request in requests:
        engine.submit(request)
    watch = _Watch(denoiser, requests)
    while not engine.idle:
        before = _counters(engine.stats)
        watch.open_rows = 0
        for event in engine.step():
            watch(event)
        rows, run, scored, calls = (now - then for now, then in zip(_counters(engine.stats), before))
        if calls:
            share = run / (rows * denoiser.layers) if rows else 1.0
            ran.forwards += [Rows(rows // calls, watch.open_rows // calls, scored // calls, share)] * calls
    ran.kinds += watch.kinds
    ran.nfe += watch.nfe
    ran.tokens += watch.visible.count
    ran.model_calls += engine.stats.model_calls
    ran.head_rows += engine.stats.head_rows
    ran.work += executed_of(engine.stats)


def _counters(stats: Stats) -> tuple[int, int, int, int]:
    return stats.rows, stats.row_layers, stats.head_rows, stats.model_calls


def _lanes(strategy: Strategy) -> int:
    return 1 if strategy.guidance is None else strategy.guidance.lanes


class _Watch:
    """Counts what the events of a decode tell: forwards by kind and rows, rows of open blocks, visible tokens."""

    def __init__(self, denoiser: Denoiser, requests: Sequence[Request]) -> None:
        self.layers = denoiser.layers
        self.lanes = {r.id: _lanes(r.strategy) for r in requests}
        self.visible = _Visible(denoiser.traits)
        self.kinds: Counter[tuple[str, int]] = Counter()
        self.nfe = self.open_rows = 0
        self.blocks: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        self.visible(event)
        if isinstance(event, Opened):
            self.blocks[event.id] = event.stop - event.start
        elif isinstance(event, Stepped):
            self.kinds[event.work.kind, event.work.row_layers // self.layers] += 1
            self.open_rows += self.blocks[event.id] * self.lanes[event.id] if event.work.head_rows else 0
        elif isinstance(event, Finished):
            self.nfe += event.nfe


class _Visible:
    """Counts the tokens a user sees: of the answer, before its end, neither EOS nor padding."""

    def __init__(self, traits: Traits) -> None:
        self.hidden = {*traits.eos_ids, *(() if traits.pad_id is None else (traits.pad_id,))}
        self.answers: dict[str, dict[int, int]] = {}
        self.count = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Accepted):
            self.answers[event.id] = {}
        elif isinstance(event, Stepped):
            self.answers[event.id].update({p: t for p, t, _, _ in event.writes})
        elif isinstance(event, Finished):
            self.count += sum(p < event.end and t not in self.hidden for p, t in self.answers[event.id].items())
        elif isinstance(event, Failed):
            raise RunError(f"request {event.id} failed: {event.error}")


def make_request(
    id: str, strategy: Strategy, traits: Traits, vocab: int, prompt: Sequence[int] | int, gen_length: int
) -> Request:
    """A canvas of a prompt (its ids, or so many random ones that are no special id) and `gen_length` holes."""
    if isinstance(prompt, int):
        special = {traits.mask_id, traits.pad_id, *traits.eos_ids}
        plain = torch.tensor([i for i in range(min(vocab, 4096)) if i not in special])
        drawn = torch.randint(len(plain), (prompt,), generator=torch.Generator().manual_seed(len(id) + prompt))
        ids = plain[drawn]
    else:
        ids = torch.tensor(list(prompt), dtype=torch.long)
    canvas = torch.cat((ids, torch.zeros(gen_length, dtype=torch.long)))
    fixed = torch.arange(canvas.shape[0]) < ids.shape[0]
    return Request(id, canvas, fixed, ids.shape[0], strategy)


def mixed_lengths(count: int, prompt: int, gen_length: int, block: int) -> list[tuple[int, int]]:
    """(prompt, answer) lengths: prompts from the full length down to half, every other answer a block shorter."""
    shorter = gen_length - block if gen_length > block else gen_length
    return [(max(1, prompt - i * prompt // (2 * count)), gen_length if i % 2 == 0 else shorter) for i in range(count)]
