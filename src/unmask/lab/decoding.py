"""Runs decoding strategies side by side: every round runs each of them once and then samples the floor (A B C, A B C).

Enters: a denoiser and strategies. Leaves: one `Measured` per strategy and way of running. A workload is one request, or
`crowd` requests of mixed lengths, through one engine together or one after the other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from unmask.core.errors import RunError
from unmask.core.events import Accepted, Event, Failed, Finished, Stepped
from unmask.core.protocols import Denoiser
from unmask.core.types import Request, Strategy, Traits
from unmask.engine.clock import now
from unmask.engine.engine import Engine
from unmask.lab.floor import Clock, Floor, Rows
from unmask.lab.memory import peak_bytes

FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """One line of the comparison. requests are decoded in one engine (together) or in one after the other."""

    cache: str
    policy: str
    requests: tuple[Request, ...]
    together: bool = True


@dataclass
class Ran:
    """One decode of a case."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    forwards: list[Rows] = field(default_factory=list)
    tokens: int = 0
    nfe: int = 0
    model_calls: int = 0
    head_rows: int = 0


@dataclass(frozen=True)
class Measured:
    """All runs of a case (they compute the same), the floor in seconds, and the peak of memory above the weights."""

    case: Case
    runs: tuple[Ran, ...]
    floor: float
    peak: int | None

    @property
    def median(self) -> float:
        return statistics.median(r.seconds for r in self.runs)

    @property
    def share(self) -> float:
        """Floor / median wall time of the whole decode."""
        return self.floor / self.median


def compare(
    denoiser: Denoiser, floor: Floor, cases: Sequence[Case], rounds: int, block: int, clock: Clock | None = None
) -> list[Measured]:
    """Interleaved rounds over the cases, at least `FEWEST_ROUNDS` of the floor.

    Args:
        block: rows per sequence at which the floor counts the output matrix.
        clock: seconds; None is wall time that waits for the device.
    """
    seconds = clock or (lambda: now(denoiser.device))

    def run(case: Case) -> Ran:
        return decode(denoiser, case, block, seconds)

    _warm_up(denoiser, cases[0])
    peaks = [peak_bytes(partial(run, case), denoiser.device) for case in cases]
    runs: list[list[Ran]] = [[] for _ in cases]
    seen: set[Rows] = set()
    for _ in range(rounds):
        for case, found in zip(cases, runs):
            found.append(run(case))
            seen |= set(found[-1].forwards)
        floor.sample(seen)
    for _ in range(max(0, FEWEST_ROUNDS - rounds)):
        floor.sample(seen)
    return [Measured(c, tuple(r), floor.seconds(r[0].forwards), p) for c, r, p in zip(cases, runs, peaks)]


def _warm_up(denoiser: Denoiser, case: Case) -> None:
    """Two steps, after which kernels are built and pages touched."""
    engine = Engine(denoiser, slots=_lanes(case.requests[0].strategy))
    engine.submit(case.requests[0])
    for _ in range(2):
        engine.step()


def decode(denoiser: Denoiser, case: Case, block: int, clock: Clock) -> Ran:
    """One decode of every request of the case, engine and store included."""
    ran, groups = Ran(), [case.requests] if case.together else [(r,) for r in case.requests]
    cpu, begun = time.process_time(), clock()
    for group in groups:
        _decode_group(denoiser, group, block, ran)
    ran.seconds, ran.cpu_seconds = clock() - begun, time.process_time() - cpu
    return ran


def _decode_group(denoiser: Denoiser, requests: Sequence[Request], block: int, ran: Ran) -> None:
    engine = Engine(denoiser, slots=sum(_lanes(r.strategy) for r in requests))
    for request in requests:
        engine.submit(request)
    visible = _Visible(denoiser.traits)
    while not engine.idle:
        rows, calls = engine.stats.rows, engine.stats.model_calls
        events = engine.step()
        stepped = [e for e in events if isinstance(e, Stepped)]
        calls = engine.stats.model_calls - calls
        if calls:
            done = Rows((engine.stats.rows - rows) // calls, block * _speaking(requests, stepped) // calls)
            ran.forwards += [done] * calls
        for event in events:
            visible(event)
            ran.nfe += event.nfe if isinstance(event, Finished) else 0
    ran.tokens += visible.count
    ran.model_calls += engine.stats.model_calls
    ran.head_rows += engine.stats.head_rows


def _lanes(strategy: Strategy) -> int:
    return 1 if strategy.guidance is None else strategy.guidance.lanes


def _speaking(requests: Sequence[Request], stepped: Sequence[Stepped]) -> int:
    """How many lanes took part in a step."""
    lanes = {r.id: _lanes(r.strategy) for r in requests}
    return sum(lanes[e.id] for e in stepped)


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
