"""What caches share that run some layers for some rows only: the cache they are built on, and when all layers must run.

Inside the open block a row may be computed in part. A block's first forward, the forward that commits it, and the first
one for other open blocks (sub-blocks) run every layer: what is stale inside a block ends with it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Literal

from unmask.cache.block import BlockCache
from unmask.cache.dual import Dual
from unmask.cache.sub_block import SubBlock
from unmask.core.errors import RequestError
from unmask.core.spec import option
from unmask.core.types import Block, BlockCausal, Full, Plan, Recurrent, Sequence, Span, Traits

Inside = Literal["dual", "block", "sub_block"]
Subset = Literal["first", "middle", "last"]
Base = Dual | BlockCache | SubBlock
BASES: dict[str, Base] = {"dual": Dual(None), "block": BlockCache(), "sub_block": SubBlock(None, False)}


def inside_option() -> Any:
    """The field of a component that names the cache it is built on."""
    return option(None, help="rows as in this cache; None: dual, or block where that is exact")


def base_of(inside: Inside | None, traits: Traits) -> Base:
    """The cache that says which rows are computed."""
    return BASES[inside or ("dual" if isinstance(traits.attention, Full) else "block")]


def same_as(inside: Inside | None, traits: Traits) -> bool:
    """Whether that cache is exact."""
    serves = isinstance(traits.attention, BlockCausal) or inside in (None, "dual")
    return has_blocks(traits) and serves and base_of(inside, traits).exact_for(traits)


def has_blocks(traits: Traits) -> bool:
    """Whether a row is ever computed twice with other tokens around it, through layers that can be told apart."""
    attention = traits.attention
    return not isinstance(attention, Recurrent) and attention != BlockCausal(1)


def must_have_blocks(traits: Traits, name: str) -> None:
    """Refuses models that compute every row once (autoregressive), and those without rows to keep (recurrent)."""
    if not has_blocks(traits):
        recurrent = isinstance(traits.attention, Recurrent)
        raise RequestError(
            f"cache {name}",
            expected="a model with attention that decodes in blocks",
            got="a recurrent one" if recurrent else "an autoregressive one",
            remedy="use none or boundary" if recurrent else "use block",
        )


def must_be_inside(layers: int, seq: Sequence, what: str) -> None:
    """Refuses a layer that the model does not have."""
    if seq.layers and layers > seq.layers:
        raise RequestError(what, expected=f"at most {seq.layers}, the layers of this model", got=str(layers))


def subset(name: Subset, layers: int) -> Span:
    """Layers [a, b) of a published subset: 12 of 28, and as many of other models: 1..12, 8..19, 16..27."""
    size = max(1, round(layers * 12 / 28))
    start = {"first": min(1, layers - size), "middle": (layers - size) // 2, "last": layers - size}[name]
    return start, start + size


@dataclass(frozen=True)
class Place:
    """Where a sequence stands: its open blocks as one span, and the rows of it that are final."""

    open: Span = (-1, -1)
    final: int = -1


NOWHERE = Place()


def place_of(plan: Plan, open: Seq[Block]) -> Place:
    """The place at which this plan is made."""
    return Place((open[0].start, open[-1].stop), plan.final)


def may_be_partial(plan: Plan, before: Place, now: Place) -> bool:
    """A forward inside open blocks whose first one, through all layers, was made before; no commit."""
    return plan.kind != "full" and before == now
