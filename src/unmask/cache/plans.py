"""Plans that cache policies share: a forward over spans of rows, with the model's own visibility rule."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Literal

import torch
from torch import Tensor

from unmask.core.errors import RequestError
from unmask.core.types import Block, BlockCausal, Full, Plan, Recurrent, Run, Sequence, Span, Spans, Traits

HOLE = -1
Kind = Literal["full", "partial", "shallow", "commit", "prefill"]


def forward(seq: Sequence, query: Spans, need: Tensor, keep: Spans, horizon: int, kind: Kind) -> Plan:
    """Compute `query`, each row seeing what the model's attention allows among the rows that exist."""
    visible = merged(seq.traits.attention.visible(query, horizon, finished(seq, horizon)))
    return Plan(query, need, keep, visible, kind)


def merged(runs: Seq[Run]) -> tuple[Run, ...]:
    """The same runs, with neighbours that see the same spans as one: scattered rows of a block are one product."""
    out: list[Run] = []
    for count, spans in runs:
        if out and out[-1][1] == spans:
            out[-1] = (out[-1][0] + count, spans)
        else:
            out.append((count, spans))
    return tuple(out)


def whole_blocks(traits: Traits, start: int, stop: int, horizon: int) -> Span:
    """[start, stop) widened to whole attention blocks: rows of one see each other, so one forward computes them all."""
    size = traits.attention.size if isinstance(traits.attention, BlockCausal) else 1
    return start - start % size, min(-(-stop // size) * size, horizon)


def reach(traits: Traits, open: Seq[Block], horizon: int) -> int:
    """Where the rows end that an open row may see: all that exist, or the open attention block."""
    if not isinstance(traits.attention, BlockCausal):
        return horizon
    return whole_blocks(traits, 0, open[-1].stop, horizon)[1]


def lowest(need: Tensor, start: int) -> int:
    """Where a forward must begin so that every needed row is in it: the shift may need the row before a block."""
    return min(start, int(need.min())) if need.numel() else start


def finished(seq: Sequence, horizon: int) -> int:
    """Rows of attention blocks without a hole, from 0 on: their tokens are final, and so are they."""
    first_hole = int(seq.holes(0, seq.length)[0]) if seq.open_holes else seq.length
    return whole_blocks(seq.traits, min(first_hole, horizon), horizon, horizon)[0]


def marked(horizon: int, spans: Spans, need: Tensor) -> Tensor:
    """bool [horizon]: the rows of `spans`, as far as they exist, and the needed ones."""
    rows = torch.zeros(horizon, dtype=torch.bool)
    for a, b in spans:
        rows[max(a, 0) : max(b, 0)] = True
    rows[need] = True
    return rows


def spans_of(rows: Tensor) -> Spans:
    """Sorted, disjoint spans of the marked rows; rows [T] bool."""
    edges = torch.nn.functional.pad(rows.to(torch.int8), (1, 1)).diff().nonzero().flatten().tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


def tokens(seq: Sequence, horizon: int) -> Tensor:
    """The tokens that rows [0, horizon) are computed with now, HOLE where none is decided."""
    return torch.where(seq.decided, seq.canvas, HOLE)[:horizon]


def changed(now: Tensor, then: Tensor) -> Tensor:
    """Rows [T] whose token is another than `then`, or that did not exist then."""
    found = torch.ones_like(now, dtype=torch.bool)
    shared = min(len(now), len(then))
    found[:shared] = now[:shared] != then[:shared]
    return found


def must_be_full(traits: Traits, name: str) -> None:
    """Refuses models whose rows do not all see one another: other things are stale there."""
    attention = traits.attention
    if isinstance(attention, Full):
        return
    got, remedy = "a recurrent model", "use none or boundary"
    if isinstance(attention, BlockCausal):
        got = "an autoregressive model" if attention.size == 1 else "a block-causal model"
        remedy = "use block" if attention.size == 1 else "use block or sub_block"
    raise RequestError(f"cache {name}", expected="a model with full attention (LLaDA, Dream)", got=got, remedy=remedy)


def must_be_causal(traits: Traits, name: str) -> None:
    """Refuses full attention, where a finished row still sees what comes later."""
    if not isinstance(traits.attention, BlockCausal):
        raise RequestError(
            f"cache {name}",
            expected="a causal or block-causal model",
            got="a recurrent model" if isinstance(traits.attention, Recurrent) else "full attention",
            remedy="use boundary" if isinstance(traits.attention, Recurrent) else "use prefix or dual",
        )


def must_have_keys(traits: Traits, name: str) -> None:
    """Refuses models without keys and values, which have no rows to keep."""
    if isinstance(traits.attention, Recurrent):
        raise RequestError(
            f"cache {name}", expected="a model with attention", got="a recurrent one", remedy="use none or boundary"
        )
