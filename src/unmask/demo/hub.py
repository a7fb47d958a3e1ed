"""One engine for many visitors: a fair queue in front of it and one thread that steps it.

Enters: prepared requests, each with the client it belongs to. Leaves: per request the lines of a recording, as they
happen. A client's next request waits until clients with less running were served; a request that asks to be alone
runs when nothing else does, so that its clock is its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from unmask.core.errors import RequestError, RunError, UnmaskError
from unmask.core.events import Event, Failed, Finished
from unmask.engine.engine import Engine
from unmask.pipeline.generation import Collector
from unmask.pipeline.model import Model
from unmask.pipeline.record import answers, header, piece_of
from unmask.pipeline.request import Prepared
from unmask.sinks.recorder import Lines

NAME = "0"
"""The request's id in its recording."""
DEVICE_ERRORS = (RuntimeError, MemoryError, ValueError, IndexError, TypeError, ArithmeticError)
"""What torch and Python raise when a forward fails: out of memory, mostly."""

Line = dict[str, Any]
Deliver = Callable[[list[Line] | None], None]
"""Takes the next lines of a request, from the engine's thread; None is the end."""


def to_loop(lines: asyncio.Queue[list[Line] | None]) -> Deliver:
    """Hands lines from the engine's thread to the event loop that runs now."""
    loop = asyncio.get_running_loop()

    def deliver(more: list[Line] | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(lines.put_nowait, more)

    return deliver


class Full(UnmaskError):
    """The queue, or this client's share of it, is full."""


@dataclass(eq=False)
class Job:
    """One request on its way through the hub."""

    id: str
    client: str
    prepared: Prepared
    alone: bool
    deliver: Deliver
    lines: Lines
    collect: Collector
    stopped: bool = False
    failed: str = ""

    @property
    def lanes(self) -> int:
        """Engine slots it takes."""
        guidance = self.prepared.request.strategy.guidance
        return 1 if guidance is None else guidance.lanes


@dataclass
class Counts:
    """What happened so far, for the status line and the tests."""

    forwards: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    begun: float = field(default_factory=time.monotonic)


class Hub:
    """The engine's thread and the queue before it. All methods may be called from any thread.

    Args:
        slots: sequences (and guidance lanes) decoded at the same time.
        queue: requests that may wait, of all clients; share: of one client.
    """

    def __init__(self, model: Model, slots: int = 8, queue: int = 64, share: int = 4) -> None:
        self.model, self.slots, self.queue, self.share = model, slots, queue, share
        self.counts = Counts()
        self._engine = Engine(model.denoiser, slots)
        self._waiting: list[Job] = []
        self._running: dict[str, Job] = {}
        self._served: deque[str] = deque(maxlen=1024)
        self._work = threading.Condition()
        self._closed = False
        self._broken = ""
        self._thread = threading.Thread(target=self._live, name="unmask-engine", daemon=True)
        self._thread.start()

    # ---- from the outside --------------------------------------------------------------------------------------------

    def submit(self, id: str, client: str, prepared: Prepared, alone: bool, deliver: Deliver) -> Job:
        """Queue a request; its lines go to `deliver`.

        Raises:
            RequestError: more guidance lanes than the engine has slots.
            Full: no room for it now.
            RunError: the engine's thread has ended.
        """
        prepared = replace(prepared, request=replace(prepared.request, id=id))
        shown = replace(prepared, request=replace(prepared.request, id=NAME))
        head = header(self.model, [shown], prepared.request.seed)
        job = Job(
            id=id,
            client=client,
            prepared=prepared,
            alone=alone,
            deliver=deliver,
            lines=Lines(head, piece_of(self.model)),
            collect=self.model.collector([shown]),
        )
        if job.lanes > self.slots:
            raise RequestError(
                "guidance", expected=f"at most {self.slots} slots, all there are", got=f"{job.lanes}, one per lane"
            )
        with self._work:
            if self._broken or self._closed:
                raise RunError(self._broken or "the server is going down")
            if sum(j.client == client for j in self._waiting) >= self.share:
                raise Full(f"{self.share} of your requests wait already; stop one or wait for it")
            if len(self._waiting) >= self.queue:
                raise Full(f"{len(self._waiting)} requests wait already; try again in a moment")
            self._waiting.append(job)
            self._work.notify()
        return job

    def stop(self, id: str) -> bool:
        """End a request before its next forward; False if there is none of that id."""
        with self._work:
            job = next((j for j in self._waiting if j.id == id), self._running.get(id))
            if job is None:
                return False
            job.stopped = True
            self._work.notify()
        return True

    def place(self, id: str) -> int:
        """How many requests are ahead of a waiting one, and itself; 0 when it waits no longer."""
        with self._work:
            order = self._order()
        return next((n for n, job in enumerate(order, 1) if job.id == id), 0)

    def status(self) -> dict[str, Any]:
        """Counters, JSON-ready."""
        with self._work:
            return {
                "running": len(self._running),
                "waiting": len(self._waiting),
                "slots": self.slots,
                "forwards": self.counts.forwards,
                "finished": self.counts.finished,
                "cancelled": self.counts.cancelled,
                "failed": self.counts.failed,
                "uptime": round(time.monotonic() - self.counts.begun, 3),
                "broken": self._broken,
            }

    def close(self, seconds: float = 10.0) -> None:
        """Stop everything and end the thread."""
        with self._work:
            self._closed = True
            for job in [*self._waiting, *self._running.values()]:
                job.stopped = True
            self._work.notify()
        self._thread.join(seconds)

    # ---- the queue ---------------------------------------------------------------------------------------------------

    def _order(self) -> list[Job]:
        """Waiting requests in the order in which they would be taken if nothing else came."""
        running: dict[str, int] = {}
        for job in self._running.values():
            running[job.client] = running.get(job.client, 0) + 1
        last = {client: n for n, client in enumerate(self._served)}
        left, order = list(self._waiting), list[Job]()
        while left:
            best = min(left, key=lambda j: (running.get(j.client, 0), last.get(j.client, -1)))
            left.remove(best)
            order.append(best)
            running[best.client] = running.get(best.client, 0) + 1
        return order

    def _admit(self) -> list[Job]:
        """Move what fits from the queue to the engine."""
        taken = []
        for job in self._order():
            if any(j.alone for j in self._running.values()) or (job.alone and self._running):
                break
            if sum(j.lanes for j in self._running.values()) + job.lanes > self.slots:
                break
            self._waiting.remove(job)
            self._running[job.id] = job
            self._served.append(job.client)
            taken.append(job)
        return taken

    # ---- the engine's thread -----------------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            while True:
                with self._work:
                    while not (self._waiting or self._running or self._closed):
                        self._work.wait()
                    if self._closed and not (self._waiting or self._running):
                        return
                    dropped = [j for j in self._waiting if j.stopped]
                    self._waiting = [j for j in self._waiting if not j.stopped]
                    taken = self._admit()
                for job in dropped:
                    self.counts.cancelled += 1
                    job.deliver([{"stopped": True}])
                    job.deliver(None)
                self._begin(taken)
                self._step()
        finally:
            self._give_up("the engine's thread has ended; start the server again")

    def _begin(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.deliver([job.lines.begin()])
            try:
                self._engine.submit(job.prepared.request)
            except UnmaskError as error:
                self._leave(job, str(error))

    def _step(self) -> None:
        """One forward for everyone, and its events to everyone."""
        for job in [j for j in self._running.values() if j.stopped]:
            self._engine.cancel(job.id)
        before = self._engine.stats.model_calls
        try:
            events = self._engine.step()
        except (UnmaskError, *DEVICE_ERRORS) as error:
            self._restart(error)
            return
        self.counts.forwards += self._engine.stats.model_calls - before
        by_job: dict[str, list[Event]] = {}
        for event in events:
            by_job.setdefault(event.id, []).append(event)
        for id, own in by_job.items():
            if id in self._running:
                self._tell(self._running[id], own)

    def _tell(self, job: Job, events: list[Event]) -> None:
        lines: list[Line] = []
        for event in (replace(e, id=NAME) for e in events):
            with suppress(RunError):  # said to the visitor by the Failed line itself
                job.collect(event)
            lines += job.lines.of(event)
            if isinstance(event, Finished | Failed):
                lines += job.lines.finish(answers(job.collect.generations))
                job.deliver(lines)
                self._leave(job, event.error if isinstance(event, Failed) else "", event)
                return
        job.deliver(lines)

    def _leave(self, job: Job, error: str, event: Event | None = None) -> None:
        with self._work:
            self._running.pop(job.id, None)
        if error:
            self.counts.failed += 1
            if event is None:
                job.deliver([{"error": {"message": error}}])
        elif isinstance(event, Finished) and event.reason == "cancelled":
            self.counts.cancelled += 1
        else:
            self.counts.finished += 1
        job.deliver(None)

    def _restart(self, error: Exception) -> None:
        """A forward failed: everyone in it is told, and the next request gets a new engine and a new store."""
        self._engine = Engine(self.model.denoiser, self.slots)
        for job in list(self._running.values()):
            self._leave(job, f"the forward failed: {error}")

    def _give_up(self, message: str) -> None:
        """Nothing will run any more: nobody may wait for it."""
        with self._work:
            self._broken = message
            left = [*self._running.values(), *self._waiting]
            self._running, self._waiting = {}, []
        for job in left:
            job.deliver([{"error": {"message": message}}])
            job.deliver(None)
