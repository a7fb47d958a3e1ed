"""The only decoding loop: many sequences of any length, one forward per step for all of them.

Enters: requests. Leaves: events. A step asks each sequence's schedule, policy and cache for its plan, packs the plans
into one forward, scores the needed rows, and applies what the policies commit. All mutable state of decoding lives
here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unmask.core.errors import RequestError, RunError, UnmaskError
from unmask.core.events import Accepted, BlockDone, Event, Failed, Finished, Opened, Probed, Stepped, Work
from unmask.core.protocols import Denoiser, LatentPolicy, Noise, Selective
from unmask.core.types import (
    FILL,
    REMASK,
    Block,
    Candidates,
    Commit,
    Forwarded,
    Latent,
    Peers,
    Plan,
    Probe,
    Request,
    Sequence,
    Stats,
    Strategy,
    Traits,
    rows_in,
)
from unmask.engine.batch import collate, executed, lane_slices, layers_run, positions_of
from unmask.engine.clock import now
from unmask.engine.cohort import Running, all_ended, fronts, place
from unmask.engine.noise import PositionNoise, StreamNoise
from unmask.engine.slots import Slots
from unmask.ops.score import logits_of, score


@dataclass
class _Job:
    """One sequence's part of a step; riding: its rows are computed with its cohort's, to no effect."""

    run: Running
    open: tuple[Block, ...]
    want: Tensor
    plan: Plan
    riding: bool = False
    lane: int = 0
    """Index of its first lane in the batch."""
    latent: Latent | None = None
    candidates: Candidates | None = None


class Engine:
    """Decodes requests on one denoiser.

    Args:
        denoiser: the model.
        slots: store slots; a sequence takes one per guidance lane. Requests beyond wait in order. A slot that a session
            left is kept for it until another request needs it.
    """

    def __init__(self, denoiser: Denoiser, slots: int = 8) -> None:
        self.denoiser, self.slots = denoiser, slots
        self.stats = Stats()
        self._waiting: list[Request] = []
        self._running: list[Running] = []
        self._ids: set[str] = set()
        self._slots = Slots(slots)
        self._store: Any = None
        self._cohorts: dict[str, StreamNoise] = {}
        self._early: list[Event] = []

    # ---- what callers see -------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """True when nothing runs or waits and every event was handed out."""
        return not (self._waiting or self._running or self._early)

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: an id in use, tensors that do not fit, a probe of a layer that is not there, or more lanes
                than the engine has slots.
        """
        _check(request, self._ids, self.slots, self.denoiser.traits.mask_id)
        probes = tuple(_located(p, self.denoiser.layers) for p in request.probes)
        self._ids.add(request.id)
        self._waiting.append(replace(request, probes=probes))

    def cancel(self, id: str) -> None:
        """Stop a request before its next forward; its Finished event has the reason "cancelled"."""
        for request in [r for r in self._waiting if r.id == id]:
            self._waiting.remove(request)
            self._ids.discard(id)
            self._early.append(Finished(id, "cancelled", 0, request.prompt_len))
        for run in [r for r in self._running if r.seq.request.id == id]:
            self._early.append(self._finish(run, "cancelled"))

    def kept(self, session: str) -> int:
        """Rows that wait in the store for the session's next request."""
        return self._slots.kept(session)

    def release(self, session: str) -> None:
        """Forget what a session left in the store."""
        self._slots.release(session)

    def run(self) -> Iterator[Event]:
        """Step until nothing is left."""
        while not self.idle:
            yield from self.step()

    @torch.no_grad()
    def step(self) -> list[Event]:
        """Admit what fits, run one forward for everyone who is not waiting for a peer, and apply what is committed."""
        events, self._early = self._early, []
        events += self._admit()
        pending = self._jobs(events)
        for job in pending:
            job.run.seq.step += 1
        while pending:
            pending = self._pass(pending, events)
        return events + [self._finish(run, "stop") for run in all_ended(self._running)]

    # ---- admission --------------------------------------------------------------------------------------------------

    def _admit(self) -> list[Event]:
        events: list[Event] = []
        while self._waiting and _lanes(self._waiting[0]) <= self._slots.available:
            request = self._waiting.pop(0)
            try:
                run = self._start(request)
            except UnmaskError as e:
                self._ids.discard(request.id)
                events.append(Failed(request.id, str(e)))
                continue
            self._running.append(run)
            events.append(accepted(run.seq))
            if not run.seq.open_holes:
                events.append(self._finish(run, None))
        return events

    def _start(self, request: Request) -> Running:
        traits, strategy = self.denoiser.traits, request.strategy
        kept = self._slots.common(request, traits) if _lanes(request) == 1 else 0
        seq = sequence_of(request, traits, kept, self.denoiser.layers)
        self._reserve(seq.length)
        slots = self._slots.claim(request.session, _lanes(request), kept)
        for slot in slots:
            self._store.free(slot, kept)
        given = request.fixed[request.prompt_len :].nonzero()
        floor = request.prompt_len + (int(given[-1]) + 1 if given.numel() else 0)
        return Running(seq, strategy, slots, self._noise(request), floor, settled=request.prompt_len)

    def _noise(self, request: Request) -> Noise:
        if not request.strategy.stream:
            return PositionNoise(request.seed)
        if request.cohort is None:
            return StreamNoise(torch.Generator().manual_seed(request.seed))
        if request.cohort not in self._cohorts:
            self._cohorts[request.cohort] = StreamNoise(torch.Generator().manual_seed(request.seed))
        return self._cohorts[request.cohort]

    def _reserve(self, rows: int) -> None:
        if self._store is None:
            self._store = self.denoiser.new_store(self.slots, rows)
        elif rows > self._store.rows:
            self._store = self.denoiser.grow_store(self._store, self.slots, rows)

    # ---- one step ---------------------------------------------------------------------------------------------------

    def _jobs(self, events: list[Event]) -> list[_Job]:
        standing, jobs = fronts(self._running), []
        for run in self._running:
            seq, strategy = run.seq, run.strategy
            open, front = strategy.schedule.open(seq), standing.get(seq.request.cohort)
            entering = open[0].start != run.opened
            peers = Peers(entering) if front is None else front.peers
            riding = front is not None and place(run) > front.place
            if riding and seq.traits.grid_origin == "prompt":
                continue
            if riding and front is not None:
                open, want = (front.open,), torch.zeros(0, dtype=torch.long)
            else:
                want = strategy.policy.wants(seq, open, seq.policy_state)
                if entering or open[-1].stop != run.reach:
                    run.opened, run.reach = open[0].start, open[-1].stop
                    events.append(Opened(seq.request.id, seq.blocks.index(open[0]), open[0].start, open[-1].stop))
            need, horizon = self.denoiser.support(want), strategy.schedule.horizon(seq)
            plan, seq.cache_state = strategy.cache.plan(seq, open, need, horizon, seq.cache_state, peers)
            plan = self._probing(plan, seq.request)
            if seq.kept and not seq.nfe:
                self.stats.reused += min(seq.kept, plan.query[0][0])
            jobs.append(_Job(run, open, want, plan, riding, latent=_latent(run, open)))
        return jobs

    def _probing(self, plan: Plan, request: Request) -> Plan:
        """The plan with its cache's probes located, and the request's own behind them."""
        if not plan.probes and not request.probes:
            return plan
        own = tuple(_located(p, self.denoiser.layers) for p in plan.probes)
        return replace(plan, probes=own + request.probes)

    def _pass(self, jobs: list[_Job], events: list[Event]) -> list[_Job]:
        """One forward for the jobs; returns those whose cache asked for a second plan within the step."""
        begun = now(self.denoiser.device)
        forwarded, spans = self._forward(jobs)
        self._score(jobs, forwarded, spans)
        seconds = now(self.denoiser.device) - begun
        self.stats.seconds += seconds
        again = []
        for job in jobs:
            more = self._observe(job, forwarded, spans)
            work = self._work(job, seconds, len(jobs))
            events += self._probed(job, forwarded, spans)
            if more is not None:
                events.append(Stepped(job.run.seq.request.id, job.run.seq.nfe, work, ()))
                again.append(replace(job, plan=self._probing(more, job.run.seq.request)))
            else:
                events += self._decide(job, work)
        return again

    def _forward(self, jobs: list[_Job]) -> tuple[Forwarded, list[tuple[int, int]]]:
        batch = collate([(j.run.seq, j.run.strategy.guidance, j.run.slots, j.plan, j.latent) for j in jobs])
        lane = 0
        for job in jobs:
            job.lane = lane
            lane += len(job.run.slots)
        self.stats.model_calls += 1
        self.stats.layer_calls += layers_run([j.plan for j in jobs], self.denoiser.layers)
        self.stats.head_calls += any(j.want.numel() for j in jobs)
        for job in jobs:
            job.run.seq.nfe += 1
        forwarded = self.denoiser(batch, self._store)
        for job in jobs:
            job.run.seq.kept = job.plan.final
        return forwarded, lane_slices(batch)

    def _score(self, jobs: list[_Job], forwarded: Forwarded, spans: list[tuple[int, int]]) -> None:
        """Candidates for every job; jobs with equal sampling share the passes over the vocabulary."""
        groups: dict[Any, list[_Job]] = {}
        for job in jobs:
            s = job.run.strategy
            groups.setdefault((s.sampling, s.guidance, s.policy.scores), []).append(job)
        for (sampling, guidance, wanted), members in groups.items():
            lanes = 1 if guidance is None else guidance.lanes

            def of_lanes(rows: Tensor, members: list[_Job] = members, lanes: int = lanes) -> list[Tensor]:
                return [torch.cat([rows[slice(*spans[j.lane + i])] for j in members]) for i in range(lanes)]

            uniforms = (
                _Uniforms(members, sampling.gumbel, self.denoiser.head.weight.shape[0])
                if sampling.temperature
                else None
            )
            found = score(
                of_lanes(forwarded.hidden),
                self.denoiser.head,
                sampling,
                mask_id=self.denoiser.traits.mask_id,
                combine=None if guidance is None or lanes == 1 else guidance.combine,
                wanted=wanted,
                uniforms=uniforms,
                table=self.denoiser.table if "mean" in wanted else None,
                clean=None if forwarded.clean is None else of_lanes(forwarded.clean),
            )
            at = 0
            for job in members:
                n = int(job.want.numel())
                job.candidates = found.slice(at, at + n)
                at += n

    def _observe(self, job: _Job, forwarded: Forwarded, spans: list[tuple[int, int]]) -> Plan | None:
        assert job.candidates is not None
        seq, own = job.run.seq, len(job.plan.probes) - len(job.run.seq.request.probes)
        probes = forwarded.probes[job.lane][:own] if own else ()
        seq.cache_state, more = job.run.strategy.cache.observe(probes, job.candidates, seq.cache_state)
        return more

    def _decide(self, job: _Job, work: Work) -> list[Event]:
        run, seq = job.run, job.run.seq
        assert job.candidates is not None
        if job.riding:
            return [Stepped(seq.request.id, seq.nfe, work, ())]
        want, candidates = _trusted(job, job.candidates)
        try:
            commit, seq.policy_state = run.strategy.policy.decide(seq, want, candidates, seq.policy_state, run.noise)
            if len(want) < len(job.want):  # what was withheld from the policy is still open
                commit = replace(commit, close=False)
            run.edited |= bool(seq.decided[want[commit.slots]].any())
            writes = self._apply(seq, want, commit)
        except UnmaskError as e:
            self._drop(run)
            return [Failed(seq.request.id, str(e))]
        events: list[Event] = [Stepped(seq.request.id, seq.nfe, work, writes)]
        events += self._close_blocks(run, job.open, commit)
        reason = self._over(run, commit)
        if reason is not None:
            events.append(self._finish(run, reason))
        return events

    def _apply(self, seq: Sequence, want: Tensor, commit: Commit) -> tuple[tuple[int, int, float, int], ...]:
        """Write a commit into the canvas; the only place where a canvas changes."""
        positions, tokens = want[commit.slots], commit.tokens
        if bool(seq.fixed[positions].any()):
            raise RunError("a policy wrote to a fixed position")
        remask = commit.kind == REMASK
        mask_id = seq.traits.mask_id
        if bool(commit.confidence.isnan().any()):
            raise RunError(
                "the model's scores are not numbers (NaN): damaged weights, or fp16 that overflowed; try bf16"
            )
        if mask_id is not None and not remask and bool((tokens == mask_id).any()):
            raise RunError("the model committed the mask id; use a profile or sampling that excludes it")
        seq.canvas[positions] = mask_id if remask and mask_id is not None else tokens
        seq.decided[positions] = not remask
        seq.open_holes = seq.length - int(seq.decided.count_nonzero())
        values = zip(positions.tolist(), tokens.tolist(), commit.confidence.tolist(), strict=True)
        return tuple((p, t, float(c), commit.kind) for p, t, c in values)

    def _close_blocks(self, run: Running, open: tuple[Block, ...], commit: Commit) -> list[Event]:
        seq, events = run.seq, []
        blocks = list(seq.blocks)
        for block in open:
            i = blocks.index(block)
            filled = bool(seq.decided[block.start : block.stop].all())
            done = (commit.close and block is open[0]) or (filled and not commit.busy)
            blocks[i] = replace(block, steps=block.steps + 1, done=done)
            if done:
                events.append(BlockDone(seq.request.id, block.start, block.stop, block.steps + 1))
        seq.blocks = tuple(blocks)
        return events  # type: ignore[return-value]

    # ---- endings ----------------------------------------------------------------------------------------------------

    def _over(self, run: Running, commit: Commit) -> str | None:
        """Why the sequence is finished now, or None."""
        seq = run.seq
        if all(b.done for b in seq.blocks):
            return "length"
        if commit.end and (run.ended or seq.request.cohort is None):
            return "stop"
        run.ended = commit.end
        if not run.strategy.early_stop:
            return None
        if commit.busy and isinstance(run.strategy.policy, LatentPolicy):
            return None  # what it writes on the way is for the eye
        holes = seq.holes(seq.request.prompt_len, seq.length)
        settled = int(holes[0]) if holes.numel() else seq.length
        if settled == run.settled and commit.kind == FILL:
            return None
        run.settled = settled
        return "stop" if _end(run, settled) is not None else None

    def _finish(self, run: Running, reason: str | None) -> Finished:
        """The last event of a sequence; its slots are free from now on, or kept for its session."""
        seq = run.seq
        holes = seq.holes(seq.request.prompt_len, seq.length)
        settled = int(holes[0]) if holes.numel() else seq.length
        end = _end(run, settled)
        if reason != "cancelled":
            reason = "stop" if end is not None else "length"
        self._drop(run, keep=not run.edited)
        return Finished(seq.request.id, reason, seq.nfe, seq.length if end is None else end)  # type: ignore[arg-type]

    def _drop(self, run: Running, keep: bool = False) -> None:
        """Let a sequence go; keep: its final rows stay for its session's next request."""
        seq, session = run.seq, run.seq.request.session
        self._running.remove(run)
        self._ids.discard(seq.request.id)
        if keep and session is not None and seq.kept and len(run.slots) == 1:
            self._slots.park(session, run.slots[0], seq.canvas[: seq.kept].clone())
        else:
            for slot in run.slots:
                self._store.free(slot)
            self._slots.give(*run.slots)
        cohort = run.seq.request.cohort
        if cohort is not None and not any(r.cohort == cohort for r in self._requests()):
            self._cohorts.pop(cohort, None)

    def _requests(self) -> list[Request]:
        return [r.seq.request for r in self._running] + self._waiting

    # ---- accounting -------------------------------------------------------------------------------------------------

    def _work(self, job: _Job, seconds: float, sharing: int) -> Work:
        rows = rows_in(job.plan.query) * len(job.run.slots)
        head_rows = int(job.want.numel()) * len(job.run.slots)
        ran = executed(job.plan, self.denoiser.layers)
        self.stats.rows += rows
        self.stats.row_layers += ran.rows * len(job.run.slots)
        self.stats.key_layers += ran.keys * len(job.run.slots)
        self.stats.read_layers += ran.read * len(job.run.slots)
        self.stats.head_rows += head_rows
        self.stats.by_kind[job.plan.kind] = self.stats.by_kind.get(job.plan.kind, 0) + 1
        return Work(job.plan.kind, ran.rows * len(job.run.slots), head_rows, seconds, sharing)

    def _probed(self, job: _Job, forwarded: Forwarded, spans: list[tuple[int, int]]) -> list[Event]:
        """What the request's own probes saw in this forward (its conditional lane)."""
        request = job.run.seq.request
        if not request.probes:
            return []
        rows = positions_of(job.plan.query).tolist()
        inner = iter(forwarded.probes[job.lane][len(job.plan.probes) - len(request.probes) :])
        events: list[Event] = []
        for probe in request.probes:
            if probe.kind == "logits":
                hidden = forwarded.hidden[slice(*spans[job.lane])]
                values, at = logits_of(hidden, self.denoiser.head).float().cpu(), job.want.tolist()
            else:
                values, at = next(inner), rows
            if probe.kind == "kv_cosine" or (probe.kind == "hidden" and job.plan.stages):
                # rows that were never stored have nothing to be compared with; others are not at this layer
                known = ~values.isnan().any(-1)
                values, at = values[known], positions_of(job.plan.query)[known].tolist()
            events.append(Probed(request.id, job.run.seq.nfe, probe.kind, probe.layer, tuple(at), values.tolist()))
        return events


def sequence_of(request: Request, traits: Traits, kept: int = 0, layers: int = 0) -> Sequence:
    """The record a request starts with on a model of these traits; front doors make one to learn of misfits early.

    Args:
        kept: rows of its slot that its session left.
        layers: of the model; 0 leaves what depends on it for later.

    Raises:
        RequestError: a schedule, policy or cache that refuses this model (an exact cache under full attention).
    """
    strategy = request.strategy
    _check_masks(strategy, traits)
    hole = traits.mask_id if traits.mask_id is not None else 0
    canvas = torch.where(request.fixed, request.canvas, hole)
    seq = Sequence(request, traits, canvas, request.fixed, request.fixed.clone(), kept=kept, layers=layers)
    seq.open_holes = int((~seq.decided).sum())
    seq.blocks = _without_full(seq, strategy.schedule.layout(seq))
    seq.policy_state = strategy.policy.init(seq)
    seq.cache_state = strategy.cache.init(seq)
    return seq


def _check_masks(strategy: Strategy, traits: Traits) -> None:
    """A policy that fills masks is nothing for a model that has never seen one."""
    if not traits.fills_masks and not isinstance(strategy.policy, LatentPolicy):
        raise RequestError(
            f"policy {getattr(strategy.policy, 'spec_name', strategy.policy)}",
            expected="a model trained to fill masks (birwkv: mode token or mixed)",
            got="one that only denoises vectors (mode diffusion)",
            remedy="use ddpm, ddim or dpmpp (--sampler)",
        )


class _Uniforms:
    """Random numbers for the packed wanted rows of several jobs, drawn job by job."""

    def __init__(self, jobs: list[_Job], gumbel: bool, vocab: int) -> None:
        draw = []
        for job in jobs:
            seq, noise = job.run.seq, job.run.noise
            if gumbel:
                draw.append(noise.gumbel(seq.step, seq.length, job.want, vocab))
            else:
                draw.append(noise.uniform("token", seq.step, job.want, seq.length).double())
        self.values = torch.cat(draw)

    def __call__(self, a: int, b: int) -> Tensor:
        return self.values[a:b]


def _check(request: Request, ids: set[str], slots: int, mask_id: int | None) -> None:
    if request.id in ids:
        raise RequestError(f"request id {request.id!r}", expected="an id that is not in use")
    if request.canvas.dim() != 1 or request.canvas.shape != request.fixed.shape or request.canvas.numel() == 0:
        raise RequestError(
            "canvas and fixed",
            expected="two tensors [T], T >= 1",
            got=f"{tuple(request.canvas.shape)}, {tuple(request.fixed.shape)}",
        )
    if request.canvas.dtype != torch.int64 or request.fixed.dtype != torch.bool:
        got = f"{request.canvas.dtype}, {request.fixed.dtype}"
        raise RequestError("canvas and fixed", expected="int64 ids and a bool mask", got=got)
    if not 0 <= request.prompt_len <= request.canvas.numel():
        raise RequestError("prompt_len", expected=f"0 to {request.canvas.numel()}", got=str(request.prompt_len))
    if mask_id is None and not bool(request.fixed[0]):
        raise RequestError("canvas", expected="a given first token: nothing speaks for it", got="a hole")
    if request.session is not None and request.cohort is not None:
        raise RequestError("session", expected="a request outside a cohort", got=f"cohort {request.cohort!r}")
    if _lanes(request) > slots:
        raise RequestError(
            "guidance",
            expected=f"at most {slots} lanes",
            got=str(_lanes(request)),
            remedy="make the engine with more slots",
        )


def _located(probe: Probe, layers: int) -> Probe:
    """The probe with its layer counted from the front; logits have none."""
    if probe.kind == "logits":
        return probe
    if not -layers <= probe.layer < layers:
        raise RequestError(f"probe {probe.kind}: layer", expected=f"{-layers} to {layers - 1}", got=str(probe.layer))
    return replace(probe, layer=probe.layer % layers)


def _latent(run: Running, open: tuple[Block, ...]) -> Latent | None:
    """The vectors its policy denoises, if it is one that does."""
    policy, seq = run.strategy.policy, run.seq
    if not isinstance(policy, LatentPolicy):
        return None
    found, seq.policy_state = policy.latent(seq, open, seq.policy_state, run.noise)
    return found


def _trusted(job: _Job, candidates: Candidates) -> tuple[Tensor, Candidates]:
    """The wanted positions that its cache stands behind, with their candidates."""
    cache = job.run.strategy.cache
    chosen = cache.trusted(job.run.seq.cache_state) if isinstance(cache, Selective) else None
    return (job.want, candidates) if chosen is None else (job.want[chosen], candidates.at(chosen))


def _lanes(request: Request) -> int:
    guidance = request.strategy.guidance
    return 1 if guidance is None else guidance.lanes


def _without_full(seq: Sequence, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """Blocks that hold no hole are done before they begin."""
    return tuple(replace(b, done=not seq.holes(b.start, b.stop).numel()) for b in blocks)


def accepted(seq: Sequence) -> Accepted:
    """The event of a sequence that was admitted."""
    ids = torch.where(seq.decided, seq.canvas, -1).tolist()
    blocks = tuple((b.start, b.stop) for b in seq.blocks)
    return Accepted(seq.request.id, tuple(ids), tuple(seq.fixed.tolist()), seq.request.prompt_len, blocks)


def _end(run: Running, settled: int) -> int | None:
    """Where the answer ends by EOS or by the request's stop rule, within the settled part; None if it does not."""
    seq, start = run.seq, run.seq.request.prompt_len
    answer = seq.canvas[start:settled].tolist()
    eos = set(seq.traits.eos_ids)
    ends = [
        start + i
        for i, t in enumerate(answer)
        if t in eos and start + i >= run.floor and not bool(seq.fixed[start + i])
    ]
    end = ends[0] if ends else None
    if seq.request.stop is not None:
        cut = seq.request.stop(answer if end is None else answer[: end - start])
        if cut is not None:
            return start + cut
    return end
