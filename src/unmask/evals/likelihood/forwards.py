"""Canvases into forwards: log-probabilities of the tokens asked for, many canvases of many pairs in one model call.

Enters: canvases. Leaves: one `Spoken` per canvas. Our transformers compute packed rows without a store: canvases of
block models that belong to one pair share its clean rows. Any other denoiser is given whole canvases, lane by lane.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from unmask.core.errors import RunError
from unmask.core.protocols import Denoiser
from unmask.core.types import Batch, Lane, Plan, Traits
from unmask.evals.likelihood.canvas import Canvas, Pair, lay_out
from unmask.models.denoiser import TransformerDenoiser
from unmask.models.transformer import Transformer
from unmask.ops import attention as attn_op
from unmask.ops.score import logits_of

NOT_NUMBERS = "the model's scores are not numbers (NaN): damaged weights, or fp16 that overflowed; try bf16"
HEAD_CELLS = 1 << 24
"""Rows times vocabulary that exist together."""
SHEET_ROWS = 2048
"""Open rows that share one copy of a pair's clean rows: their mask is a square."""


@dataclass(frozen=True)
class Spoken:
    """What a model said about the asked tokens of a canvas; tensors [W] on the CPU.

    log_p: of the right tokens; best: the most likely ids; best_log_p: theirs; call: the number of the model call.
    """

    log_p: Tensor
    best: Tensor
    best_log_p: Tensor
    call: int

    @cached_property
    def total(self) -> float:
        """The sum of `log_p`."""
        return float(self.log_p.sum())


class Speaker:
    """Computes canvases on a denoiser.

    Args:
        cfg_scale: classifier-free guidance in LLaDA's scale.
        forward_tokens: rows of one forward, at most.
    """

    def __init__(self, denoiser: Denoiser, cfg_scale: float = 0.0, forward_tokens: int = 16384) -> None:
        self.denoiser, self.cfg_scale, self.forward_tokens = denoiser, cfg_scale, forward_tokens
        self.calls = 0

    @torch.inference_mode()
    def __call__(self, canvases: Sequence[Canvas]) -> list[Spoken]:
        """Answers in the order of the canvases."""
        return [spoken for chunk in self._chunks(canvases) for spoken in self._speak(chunk)]

    def _chunks(self, canvases: Sequence[Canvas]) -> Iterator[list[Canvas]]:
        """Runs of canvases whose rows fit one forward."""
        chunk: list[Canvas] = []
        rows, lanes = 0, 2 if self.cfg_scale else 1
        for canvas in canvases:
            shared = bool(chunk) and chunk[-1].pair is canvas.pair and isinstance(self.denoiser, TransformerDenoiser)
            cost = lanes * (canvas.stop - (canvas.start if shared else 0))
            if chunk and rows + cost > self.forward_tokens:
                yield chunk
                chunk, rows, cost = [], 0, lanes * canvas.stop
            chunk.append(canvas)
            rows += cost
        if chunk:
            yield chunk

    def _speak(self, canvases: list[Canvas]) -> Iterator[Spoken]:
        self.calls += 1
        blinds = (False, True) if self.cfg_scale else (False,)
        asked = [(canvas, blind) for blind in blinds for canvas in canvases]
        if isinstance(self.denoiser, TransformerDenoiser):
            hidden = _packed(self.denoiser, asked)
        else:
            hidden = _by_lanes(self.denoiser, asked)
        target = torch.cat([c.target for c in canvases])
        log_p, best, best_log_p = self._read(hidden.chunk(len(blinds)), target.to(hidden.device))
        sizes = [len(c.asked) for c in canvases]
        for parts in zip(log_p.split(sizes), best.split(sizes), best_log_p.split(sizes), strict=True):
            yield Spoken(*parts, self.calls)

    def _read(self, hidden: Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden: [W, C] per lane -> log p of the targets, the best ids, their log p; the vocabulary in chunks."""
        head, out = self.denoiser.head, []
        step = max(1, HEAD_CELLS // head.weight.shape[0])
        for a in range(0, target.numel(), step):
            logits = [wide(logits_of(h[a : a + step], head)) for h in hidden]
            mixed = logits[0] if len(logits) == 1 else logits[1] + (self.cfg_scale + 1) * (logits[0] - logits[1])
            total = mixed.logsumexp(-1)
            top, best = mixed.max(-1)
            right = mixed.gather(1, target[a : a + step, None]).squeeze(1)
            if torch.isnan(right - total).any():
                raise RunError(NOT_NUMBERS)
            out.append(((right - total).double().cpu(), best.cpu(), (top - total).double().cpu()))
        return tuple(torch.cat(t) for t in zip(*out, strict=True))  # type: ignore[return-value]


def wide(logits: Tensor) -> Tensor:
    """float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()


# ---- any denoiser ----------------------------------------------------------------------------------------------------


def _by_lanes(denoiser: Denoiser, asked: Iterable[tuple[Canvas, bool]]) -> Tensor:
    """Final states of the rows that speak, [W, C]: every canvas computed whole, in a slot of its own."""
    ids, at, need, lanes, base = [], [], [], [], 0
    for slot, (canvas, blind) in enumerate(asked):
        row, n = canvas.ids(blind), canvas.stop
        want = denoiser.support(torch.tensor(canvas.asked))
        query = ((0, n),)
        plan = Plan(query, want, query, denoiser.traits.attention.visible(query, n, canvas.start))
        ids.append(row)
        at.append(torch.arange(n))
        need.append(want + base)
        lanes.append(Lane(slot, plan))
        base += n
    batch = Batch(torch.cat(ids), torch.cat(at), torch.cat(need), tuple(lanes))
    store = denoiser.new_store(len(lanes), max(t.numel() for t in ids))
    return denoiser(batch, store).hidden


# ---- our transformer -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sheet:
    """Rows computed together: ids and positions [R], who sees whom (None: all see all; "causal"; or bool [R, R]), and
    for each canvas (by its place in the chunk) the rows that speak.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor | str | None
    needs: tuple[tuple[int, Tensor], ...]


@dataclass(frozen=True)
class _Group:
    """Sheets of one shape side by side: `count` of `length` rows from flat row `first` on."""

    first: int
    count: int
    length: int
    mask: Tensor | None
    causal: bool

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        span = slice(self.first, self.first + self.count * self.length)
        q, k, v = (t[span].unflatten(0, (self.count, self.length)) for t in (q, k, v))
        return attn_op.dense(q, k, v, self.mask, self.causal).flatten(0, 1)


def _packed(denoiser: TransformerDenoiser, asked: Sequence[tuple[Canvas, bool]]) -> Tensor:
    """Final states of the rows that speak, [W, C], in the order asked."""
    sheets = sorted(_sheets(denoiser, asked), key=lambda s: (isinstance(s.mask, Tensor), s.mask is None, len(s.ids)))
    first = 0
    rows: dict[int, Tensor] = {}
    for sheet in sheets:
        rows |= {i: at + first for i, at in sheet.needs}
        first += len(sheet.ids)
    device = denoiser.device
    ids, positions = torch.cat([s.ids for s in sheets]), torch.cat([s.positions for s in sheets])
    need = torch.cat([rows[i] for i in range(len(asked))])
    groups = list(_groups(sheets, device))
    return _run(denoiser.model, ids.to(device), positions.to(device), need.to(device), groups)


def _run(model: Transformer, ids: Tensor, positions: Tensor, need: Tensor, groups: Sequence[_Group]) -> Tensor:
    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = [g(q, k, v) for g in groups]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    return model.norm(model.run(model.embed_ids(ids), positions, attend).index_select(0, need))


def _groups(sheets: Sequence[_Sheet], device: torch.device) -> Iterator[_Group]:
    at, first = 0, 0
    while at < len(sheets):
        sheet, count = sheets[at], 1
        if not isinstance(sheet.mask, Tensor):
            same = (s.mask is sheet.mask and len(s.ids) == len(sheet.ids) for s in sheets[at + 1 :])
            count += next((i for i, equal in enumerate(same) if not equal), len(sheets) - at - 1)
        mask = sheet.mask.to(device)[None, None] if isinstance(sheet.mask, Tensor) else None
        yield _Group(first, count, len(sheet.ids), mask, sheet.mask == "causal" if mask is None else False)
        at, first = at + count, first + count * len(sheet.ids)


def _sheets(denoiser: TransformerDenoiser, asked: Sequence[tuple[Canvas, bool]]) -> Iterator[_Sheet]:
    """Canvases of one pair (and lane) share a sheet where they have clean rows in common."""
    groups: dict[tuple[int, bool], list[list[int]]] = {}
    for i, (canvas, blind) in enumerate(asked):
        if not canvas.start:
            groups[i, blind] = [[i]]
            continue
        runs = groups.setdefault((-1 - id(canvas.pair), blind), [[]])
        if sum(asked[j][0].stop - asked[j][0].start for j in runs[-1]) >= SHEET_ROWS:
            runs.append([])
        runs[-1].append(i)
    for (_, blind), runs in groups.items():
        for members in runs:
            yield _sheet(denoiser, {i: asked[i][0] for i in members}, blind)


def _sheet(denoiser: TransformerDenoiser, canvases: dict[int, Canvas], blind: bool) -> _Sheet:
    """The clean rows that any of the canvases sees, then the open rows of each."""
    one = next(iter(canvases.values()))
    clean = max(c.start for c in canvases.values())
    ids, positions = [(one.pair.blind if blind else one.pair.ids)[:clean]], [torch.arange(clean)]
    needs, tails, base = [], [], clean
    for i, canvas in canvases.items():
        want = denoiser.support(torch.tensor(canvas.asked))
        needs.append((i, torch.where(want < canvas.start, want, want - canvas.start + base)))
        if canvas.stop == canvas.start or bool((want < canvas.start).all()):
            continue  # the clean rows say it all
        tails.append((base, canvas))
        ids.append(canvas.ids(blind)[canvas.start :])
        positions.append(torch.arange(canvas.start, canvas.stop))
        base += canvas.stop - canvas.start
    return _Sheet(torch.cat(ids), torch.cat(positions), _mask(denoiser.traits, clean, tails, base), tuple(needs))


def _mask(traits: Traits, clean: int, tails: list[tuple[int, Canvas]], rows: int) -> Tensor | str | None:
    if not clean:
        return None  # one canvas: open rows see one another
    runs = traits.attention.visible(((0, clean),), clean, clean)
    if not tails and all(run == (1, ((0, p + 1),)) for p, run in enumerate(runs)):
        return "causal"
    seen, at = torch.zeros(rows, rows, dtype=torch.bool), 0
    for count, spans in runs:
        for a, b in spans:
            seen[at : at + count, a:b] = True
        at += count
    for base, canvas in tails:
        own = slice(base, base + canvas.stop - canvas.start)
        seen[own, : canvas.start] = True
        seen[own, own] = True
    return seen


# ---- recorded rounds -------------------------------------------------------------------------------------------------


def round_value(
    denoiser: Denoiser, noisy: Tensor, target: Tensor, ratio: Tensor, prompt_len: int, cfg_scale: float = 0.0
) -> float:
    """The estimate of one round whose noise is given (a recorded one, say).

    Args:
        noisy: ids [b, L] with masked answer tokens; target: clean ids [L]; ratio: mask ratio per row [b].
        cfg_scale: LLaDA's scale; the unconditional half has the prompt masked.
    """
    vocab = int(denoiser.head.weight.shape[0])
    ids = target.tolist()
    pair: Pair = lay_out(denoiser.traits, ids[:prompt_len], ids[prompt_len:], vocab)
    (part,) = pair.parts
    assert pair.mask_id is not None
    hidden = [row.nonzero().flatten().tolist() for row in noisy.eq(pair.mask_id)]
    found = Speaker(denoiser, cfg_scale)([pair.canvas(part, h, h) for h in hidden])
    return sum(float(s.log_p.sum()) / r for s, r in zip(found, ratio.tolist(), strict=True)) / len(noisy)
