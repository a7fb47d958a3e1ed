"""The values every room shares. Only `Sequence` is mutable, and only the engine mutates it.

Positions are absolute canvas indices, spans are half-open. Nothing here knows a string, a model or a policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from unmask.core.protocols import BlockSchedule, CachePolicy, DecodePolicy, Guidance

Span = tuple[int, int]
Spans = tuple[Span, ...]
Run = tuple[int, Spans]
"""(count, spans): so many consecutive query rows see the same spans: one or two, more where masks are left out."""

FILL, EDIT, REMASK = 1, 2, 3


# ---- what a model is -------------------------------------------------------------------------------------------------


Context = Literal["block", "causal"]
"""How rows of finished blocks see their own block: from both sides, or each row only those up to itself."""


@dataclass(frozen=True)
class Full:
    """Every row sees every row that exists (LLaDA, Dream)."""

    def visible(self, query: Spans, horizon: int, final: int = 0) -> tuple[Run, ...]:
        """Runs for the rows of `query`, cut by the rows that exist now; `final` changes nothing here."""
        return ((rows_in(query), ((0, horizon),)),)


@dataclass(frozen=True)
class BlockCausal:
    """A row sees its own block of `size` rows (grid from 0) and all before it; size 1 is autoregressive.

    Args:
        context: "block", the same rule for all rows (published models); "causal", rows of finished blocks see the rows
            up to themselves, as in an autoregressive model, and only an open block is seen from both sides
            (the context-causal path of NBDiff, openreview 5gzBAI8Li7).
    """

    size: int = 1
    context: Context = "block"

    def visible(self, query: Spans, horizon: int, final: int = 0) -> tuple[Run, ...]:
        """Runs for the rows of `query`: one per grid block they touch, or per finished row of a causal context.

        Args:
            final: rows [0, final) belong to finished blocks.
        """
        runs: list[Run] = []
        for a, b in query:
            if self.context == "causal":
                runs += [(1, ((0, p + 1),)) for p in range(a, min(b, final))]
                a = max(a, min(b, final))
            while a < b:
                stop = min((a // self.size + 1) * self.size, horizon)
                count = min(stop, b) - a
                runs.append((count, ((0, stop),)))
                a += count
        return tuple(runs)


@dataclass(frozen=True)
class Recurrent:
    """Every row reads every row, through states that run along the sequence in both directions; a forward over a part
    of the rows needs the states at its ends (BiRWKV).

    Args:
        boundaries: the model can keep those states between forwards (a layer with attention cannot).
    """

    boundaries: bool = True

    def visible(self, query: Spans, horizon: int, final: int = 0) -> tuple[Run, ...]:
        """As in `Full`."""
        return ((rows_in(query), ((0, horizon),)),)


Attention = Full | BlockCausal | Recurrent


@dataclass(frozen=True)
class LatentSpace:
    """Where continuous diffusion runs: a vector of `dim` numbers per position, noise levels from `high` (clean) down to
    `low`, as log signal-to-noise ratios in nats."""

    dim: int
    low: float
    high: float


@dataclass(frozen=True)
class Traits:
    """Declared properties of a checkpoint; nothing else about a model is ever probed.

    Args:
        mask_id: the id that marks a hole, None for autoregressive models.
        shift: the token at position p is predicted by row p - shift (Dream and AR models: 1).
        eos_ids: ids that end an answer.
        pad_id: the padding id, if any.
        max_len: longest canvas the checkpoint was made for.
        grid_origin: where blocks are counted from, "prompt" (its end) or "zero".
        latent: for models that also denoise vectors (continuous diffusion).
        fills_masks: False for models that were trained to denoise vectors only and have never seen a mask.
    """

    mask_id: int | None
    shift: int = 0
    attention: Attention = Full()
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    max_len: int = 4096
    grid_origin: Literal["prompt", "zero"] = "prompt"
    latent: LatentSpace | None = None
    fills_masks: bool = True


# ---- what a user asks for --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How a distribution becomes a token and a confidence.

    Args:
        temperature: 0 takes the best token; above, tokens are drawn from softmax(logits / temperature).
        top_p, top_k: keep the smallest set of probability >= top_p, the k best; None keeps all.
        precision: dtype of the confidence softmax; "model" is the logits' own.
        exclude_mask: remove the mask id before the softmax (profiles keep it, as their references do).
        suppress: ids whose logit is set to -inf before anything else (LLaDA's logits_eos_inf).
        demote: ids removed from the confidence softmax after the token was taken: a position that predicts one gets
            confidence 0 and is committed last (LLaDA's confidence_eos_eot_inf).
        filtered_confidence: confidence of the tempered, filtered distribution (Dream) instead of the raw one (LLaDA).
        gumbel: draw as LLaDA does, exp(logits) / (-ln u)^temperature in float64 from the reference's stream.
    """

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    precision: Literal["float32", "float64", "model"] = "float32"
    exclude_mask: bool = True
    suppress: tuple[int, ...] = ()
    demote: tuple[int, ...] = ()
    filtered_confidence: bool = False
    gumbel: bool = False


@dataclass(frozen=True)
class Strategy:
    """A point on the axes: which blocks are open, who is committed, what is recomputed, how a token is drawn.

    Args:
        early_stop: finish as soon as the answer is settled up to its EOS or stop match (profiles: never).
        stream: draw random numbers from one torch generator per cohort in the reference's order (profiles).
    """

    schedule: BlockSchedule
    policy: DecodePolicy
    cache: CachePolicy
    guidance: Guidance | None = None
    sampling: Sampling = Sampling()
    early_stop: bool = True
    stream: bool = False

    def __str__(self) -> str:
        parts = [f"schedule={self.schedule!r}", f"policy={self.policy!r}", f"cache={self.cache!r}"]
        if self.guidance is not None:
            parts.append(f"guidance={self.guidance!r}")
        if self.sampling.temperature:
            parts.append(f"temperature={self.sampling.temperature:g}")
        return " ".join(parts)


@dataclass(frozen=True)
class Probe:
    """A read-only look inside one forward: "logits" (wanted rows), "hidden" (rows after a layer), or "kv_cosine"
    (similarity of fresh to stored keys and values of a layer, where a stored row existed)."""

    kind: Literal["logits", "hidden", "kv_cosine"]
    layer: int = -1


@dataclass(frozen=True)
class Request:
    """One canvas to settle.

    Args:
        canvas: ids [T], prompt and holes; what stands at a hole is ignored.
        fixed: bool [T]: prompt, constraints and template text; never edited.
        prompt_len: where the answer begins (the caller's cut; blocks start at the first hole).
        stop: given the settled answer ids, the index of the answer's end, or None (stop strings live in `text`).
        cohort: requests of one cohort run in lock-step, as a reference's batch does; None never waits. Rows with block
            grids of their own wait for one another; rows on one grid (`grid_origin` "zero") ride along instead: they
            are computed with the others, to no effect.
        probes: looks to take with every forward.
        session: requests of one session follow one another, such as the turns of a conversation. What one leaves in
            the store for good is not computed again by the next, as far as both begin with the same ids. Not in a
            cohort; with guidance nothing is left.
    """

    id: str
    canvas: Tensor
    fixed: Tensor
    prompt_len: int
    strategy: Strategy
    stop: Callable[[list[int]], int | None] | None = None
    seed: int = 0
    cohort: str | None = None
    probes: tuple[Probe, ...] = ()
    session: str | None = None


# ---- what runs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Positions [start, stop) that are decoded together; `steps` counts the forwards it was open."""

    start: int
    stop: int
    done: bool = False
    steps: int = 0


@dataclass
class Sequence:
    """The mutable record of one request. `fixed` is a subset of `decided`; a hole is "not decided", never an id.

    kept: rows [0, kept) of its store slot are final. Before the first forward they are what its session left; a cache
    may begin there, or not look at it.
    layers: of the model; 0 where no model is at hand (a front door that asks what would be refused).
    """

    request: Request
    traits: Traits
    canvas: Tensor
    fixed: Tensor
    decided: Tensor
    blocks: tuple[Block, ...] = ()
    policy_state: Any = None
    cache_state: Any = None
    nfe: int = 0
    step: int = 0
    open_holes: int = 0
    kept: int = 0
    layers: int = 0

    @property
    def length(self) -> int:
        return int(self.canvas.shape[0])

    def holes(self, start: int, stop: int) -> Tensor:
        """Undecided positions in [start, stop), ascending."""
        return (~self.decided[start:stop]).nonzero().flatten() + start


@dataclass(frozen=True)
class Stage:
    """Layers [a, b) of a forward, run for the rows of `query` only; a == b reads rows and runs nothing.

    Args:
        rest: "stored", rows of `query` that the stage before did not bring to layer a are read from the store, as a
            plan with `hold` left them there. "delta", rows that it did bring and that are not in `query` go on as well:
            every layer adds to them what it added when it was last computed for them (`hold_deltas`).
    """

    layers: Span
    query: Spans
    rest: Literal["stored", "delta"] = "stored"


@dataclass(frozen=True)
class Plan:
    """What one forward computes for one sequence.

    Args:
        query: rows to compute, sorted disjoint spans.
        need: the rows that must speak, one per wanted position, each inside `query`.
        keep: rows of `query` that later forwards may read without recomputing.
        visible: runs over the query rows, in order.
        kind: what to call it in the work record.
        final: from this forward on, rows [0, final) are stored as if computed anew, in whole attention blocks whose
            tokens will never change. 0 promises nothing.
        stages: which layers run for which rows of `query`, from below; empty runs all for all. Keys and values of a
            layer stay as they are for rows it does not run for. `need` speaks from where the last stage ends.
        hold: boundaries (0: embeddings, i: after layer i - 1) at which the rows that get there are stored.
        hold_deltas: layers for which is stored what they add to the rows they run for.
    """

    query: Spans
    need: Tensor
    keep: Spans
    visible: tuple[Run, ...]
    kind: Literal["full", "partial", "shallow", "commit", "prefill"] = "full"
    probes: tuple[Probe, ...] = ()
    final: int = 0
    stages: tuple[Stage, ...] = ()
    hold: tuple[int, ...] = ()
    hold_deltas: tuple[int, ...] = ()

    @property
    def by_layers(self) -> bool:
        """Not simply every layer for every row, with nothing but keys and values left behind."""
        return bool(self.stages or self.hold or self.hold_deltas)

    def staged(self, layers: int) -> tuple[Stage, ...]:
        """Its stages on a model of so many layers."""
        return self.stages or (Stage((0, layers), self.query),)


@dataclass(frozen=True)
class Lane:
    """One sequence (or one guidance lane of it) in a batch: its store slot and its plan."""

    slot: int
    plan: Plan


@dataclass(frozen=True)
class Latent:
    """Noised vectors of one sequence: positions [K], vectors and hint (the last estimate of the clean ones) [K, E], and
    their log signal-to-noise ratio."""

    positions: Tensor
    vectors: Tensor
    hint: Tensor
    level: float


@dataclass(frozen=True)
class Latents:
    """The same for the packed rows of a batch: noisy [N] says which rows have vectors and hint [N, E]; level is one per
    lane."""

    noisy: Tensor
    vectors: Tensor
    hint: Tensor
    level: tuple[float, ...]


@dataclass(frozen=True)
class Batch:
    """Packed query rows of all lanes. ids [N], positions [N] (absolute), need [W] (row indices into N).

    latents: where some sequence denoises vectors. dropped [N]: rows that a guidance lane leaves out, where there is
        one.
    """

    ids: Tensor
    positions: Tensor
    need: Tensor
    lanes: tuple[Lane, ...]
    latents: Latents | None = None
    dropped: Tensor | None = None


@dataclass(frozen=True)
class Forwarded:
    """hidden [W, C]: final-norm states of the needed rows, lane after lane. probes: one tensor per lane and probe.
    clean [W, E]: the model's own estimate of the clean vectors, where it does not follow from its token
    distribution."""

    hidden: Tensor
    probes: tuple[tuple[Tensor, ...], ...] = ()
    clean: Tensor | None = None


@dataclass(frozen=True)
class Head:
    """The output matrix [V, C] and the factor on its logits."""

    weight: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Candidates:
    """What the model proposes at the wanted positions; every tensor [W] on the CPU. mean [W, E]: the expected clean
    vector; nearest [W, E]: the vector of `token`."""

    token: Tensor
    prob: Tensor
    margin: Tensor | None = None
    entropy: Tensor | None = None
    mean: Tensor | None = None
    nearest: Tensor | None = None

    def at(self, chosen: Tensor) -> Candidates:
        optional = (self.margin, self.entropy, self.mean, self.nearest)
        return Candidates(self.token[chosen], self.prob[chosen], *(None if t is None else t[chosen] for t in optional))

    def slice(self, a: int, b: int) -> Candidates:
        optional = (self.margin, self.entropy, self.mean, self.nearest)
        return Candidates(self.token[a:b], self.prob[a:b], *(None if t is None else t[a:b] for t in optional))


@dataclass(frozen=True)
class Commit:
    """A policy's word on one step.

    Args:
        slots: indices into the wanted positions that are written.
        tokens: ids to write there; confidence: the number behind each.
        kind: FILL a hole, EDIT a decided token, or REMASK it.
        busy: keep the block open even if it has no hole left; close: close it (of several, the first) even if it has.
        end: the answer is complete whatever holes are left; the sequence leaves at once, or, in a cohort, when all its
            rows say so or with its next commit.
    """

    slots: Tensor
    tokens: Tensor
    confidence: Tensor
    kind: int = FILL
    busy: bool = False
    close: bool = False
    end: bool = False


@dataclass(frozen=True)
class Peers:
    """What a cache may know of its cohort.

    Args:
        entering: any of its sequences enters a block with this step.
        first_hole: the lowest hole of all of them; None outside a cohort.
    """

    entering: bool = False
    first_hole: int | None = None


@dataclass
class Stats:
    """Counters of an engine since it was made.

    Args:
        reused: rows that an earlier request of a session had left.
        row_layers: rows times the layers that ran for them. key_layers: keys that these rows saw, added up over them;
            read_layers: the same, a key that several rows of a forward saw counted once per sequence and layer.
        layer_calls: layers that ran in a model call, for whatever rows, added up over the calls. head_calls: model
            calls that were asked for tokens.
        by_kind: forwards, counted per sequence.
    """

    model_calls: int = 0
    rows: int = 0
    reused: int = 0
    row_layers: int = 0
    key_layers: int = 0
    read_layers: int = 0
    layer_calls: int = 0
    head_rows: int = 0
    head_calls: int = 0
    seconds: float = 0.0
    by_kind: dict[str, int] = field(default_factory=dict)


def rows_in(spans: Spans) -> int:
    """How many rows the spans hold."""
    return sum(b - a for a, b in spans)
