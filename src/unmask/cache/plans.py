"""Plans that cache policies share: a forward over spans of rows, with the model's own visibility rule."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Literal

from torch import Tensor

from unmask.core.errors import RequestError
from unmask.core.types import Block, BlockCausal, Plan, Recurrent, Sequence, Span, Spans, Traits

Kind = Literal["full", "partial", "shallow", "commit", "prefill"]


def forward(seq: Sequence, query: Spans, need: Tensor, keep: Spans, horizon: int, kind: Kind) -> Plan:
    """Compute `query`, each row seeing what the model's attention allows among the rows that exist."""
    visible = seq.traits.attention.visible(query, horizon, finished(seq, horizon))
    return Plan(query, need, keep, visible, kind)


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
