"""What each room promises the engine. Interfaces only; leaves are final and never inherit from one another."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unmask.core.events import Event
    from unmask.core.types import (
        Batch,
        Block,
        Candidates,
        Commit,
        Forwarded,
        Head,
        Latent,
        Peers,
        Plan,
        Sequence,
        Span,
        Traits,
    )


class Store(Protocol):
    """Per layer, one key and one value row per absolute position and slot (keys after RoPE), written in place. Plans
    may ask for other rows as well, which then have a place until the slot is free."""

    rows: int

    def write(self, layer: int, slot: int, spans: Seq[Span], k: Tensor, v: Tensor) -> None:
        """k, v [n, KV, D]: the rows of `spans`, in order."""

    def kv(self, layer: int, slot: int) -> tuple[Tensor, Tensor]:
        """Keys and values [KV, rows, D] of a slot."""

    def hold(self, kind: Literal["hidden", "delta"], layer: int, slot: int, positions: Tensor, x: Tensor) -> None:
        """x [n, C]: hidden rows at a boundary, or what a layer added to them."""

    def held(self, kind: Literal["hidden", "delta"], layer: int, slot: int, positions: Tensor) -> Tensor:
        """Such rows [n, C], as they were last stored."""

    def free(self, slot: int, start: int = 0) -> None:
        """The slot's rows from `start` on mean nothing from now on."""


class Denoiser(Protocol):
    """A model as decoding sees it."""

    @property
    def traits(self) -> Traits: ...

    @property
    def head(self) -> Head: ...

    @property
    def table(self) -> Tensor | None:
        """The tokens' vectors [V, E] that continuous diffusion runs on; None for models without."""

    @property
    def device(self) -> torch.device: ...

    @property
    def layers(self) -> int: ...

    def support(self, want: Tensor) -> Tensor:
        """The rows that speak for the wanted positions, one each; the shift lives here."""

    def __call__(self, batch: Batch, store: Any) -> Forwarded: ...

    def new_store(self, slots: int, rows: int) -> Any: ...

    def grow_store(self, store: Any, slots: int, rows: int) -> Any:
        """A larger store with the same contents."""


class Noise(Protocol):
    """Random numbers of one sequence."""

    def uniform(
        self, stream: Literal["token", "canvas", "positions"], step: int, positions: Tensor, length: int
    ) -> Tensor:
        """[K] in [0, 1), one per position. A reference stream draws one number per canvas column ("canvas") or one per
        position ("positions"); ours depends only on the seed, the step and the position."""

    def gumbel(self, step: int, length: int, positions: Tensor, vocab: int) -> Tensor:
        """float64 [K, V] uniforms, drawn as LLaDA draws them for the whole canvas."""

    def normal(self, step: int, positions: Tensor, dim: int) -> Tensor:
        """float64 [K, dim] standard normal numbers."""


class BlockSchedule(Protocol):
    """Which blocks are open now, and how far the canvas reaches."""

    def layout(self, seq: Sequence) -> tuple[Block, ...]: ...

    def open(self, seq: Sequence) -> tuple[Block, ...]: ...

    def horizon(self, seq: Sequence) -> int: ...


class DecodePolicy(Protocol):
    """Which positions may speak, and which are committed. State is returned, never kept."""

    @property
    def scores(self) -> tuple[str, ...]:
        """What the decision reads besides token and prob: "margin", "entropy", "mean" (and "nearest" with it)."""

    def init(self, seq: Sequence) -> Any: ...

    def wants(self, seq: Sequence, open: Seq[Block], state: Any) -> Tensor: ...

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Any, noise: Noise
    ) -> tuple[Commit, Any]: ...


@runtime_checkable
class LatentPolicy(Protocol):
    """A decode policy that denoises vectors: what it writes before its last step are nearest tokens, for the eye."""

    def latent(self, seq: Sequence, open: Seq[Block], state: Any, noise: Noise) -> tuple[Latent, Any]:
        """The vectors that the next forward reads, and the state that knows them."""


class CachePolicy(Protocol):
    """Which rows are recomputed, and what may be stale."""

    @property
    def scoring(self) -> Literal["exact", "approximate", "undefined"]:
        """What a likelihood under this cache would be."""

    def exact_for(self, traits: Traits) -> bool: ...

    def init(self, seq: Sequence) -> Any:
        """The state to begin with. Rows [0, seq.kept) are final and need not be computed."""

    def plan(
        self, seq: Sequence, open: Seq[Block], need: Tensor, horizon: int, state: Any, peers: Peers
    ) -> tuple[Plan, Any]: ...

    def observe(self, probes: Seq[Tensor], candidates: Candidates, state: Any) -> tuple[Any, Plan | None]: ...


@runtime_checkable
class Selective(Protocol):
    """A cache that does not stand behind every candidate of a forward (one that ended at a low layer)."""

    def trusted(self, state: Any) -> Tensor | None:
        """bool [W]: the wanted positions that the policy may decide on in this step; None: all of them."""


class Guidance(Protocol):
    """Extra lanes beside the conditional one, and how their logits are combined."""

    @property
    def lanes(self) -> int: ...

    def ids(self, lane: int, canvas: Tensor, fixed: Tensor, mask_id: int) -> Tensor:
        """The ids a lane sees, [T]; lane 0 is the canvas itself."""

    def combine(self, logits: Seq[Tensor]) -> Tensor: ...


class Sink(Protocol):
    """A consumer of the event stream."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...
