"""Samplers of continuous diffusion as decode policies: the vectors of a block walk from pure noise to tokens.

Every forward reads the noised vectors of the open block; its expected clean vectors move them one level down the
noise. On the way the nearest tokens are written as edits, for whoever watches, where they or their confidence band
changed; the last forward settles the block. What is given (prompt, constraints, finished blocks) is clean and never
noised; blocks to come are masks. Sources: DDPM (arXiv 2006.11239), DDIM (2010.02502), DPM-Solver++ (2211.01095),
clamping: Diffusion-LM (2205.14217).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unmask.core.errors import RequestError
from unmask.core.protocols import Noise
from unmask.core.spec import MOST, component, option
from unmask.core.types import EDIT, Block, Candidates, Commit, Latent, LatentSpace, Sequence
from unmask.decode.gaussian_steps import ddim_step, ddpm_step, dpmpp_2m_step
from unmask.decode.select import passes_per_block

BANDS = torch.tensor([0.3, 0.7])
"""Confidences at which the published demos change the colour of a token."""
STEPS = "forwards for the whole answer"
CLAMP = "share of the last steps in which the expected vector is replaced by that of the token shown"


@dataclass(frozen=True)
class Walk:
    """Where a block stands: its noised vectors [K, E] (float64), the last estimate of the clean ones, that of the step
    before and its level, and what was shown of it."""

    block: int = -1
    done: int = 0
    positions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    vectors: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    hint: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    previous: tuple[Tensor, float] | None = None
    shown: Tensor | None = None
    bands: Tensor | None = None


Move = Callable[[Walk, Tensor, float, float, Callable[[], Tensor]], Tensor]
"""(walk, clean vectors, level, next level, fresh noise) -> vectors at the next level."""


def begin(seq: Sequence, name: str) -> Walk:
    """Refuses models that denoise no vectors."""
    if seq.traits.latent is None:
        raise RequestError(
            f"policy {name}",
            expected="a model trained to denoise vectors (birwkv, mode diffusion or mixed)",
            got="one that only fills masks",
            remedy="use threshold, dream or another policy of masks; see `unmask ls policies`",
        )
    return Walk()


def open_positions(seq: Sequence, open: Seq[Block]) -> Tensor:
    """What is not given in the open blocks; also positions that show a token already."""
    start, stop = open[0].start, open[-1].stop
    return (~seq.fixed[start:stop]).nonzero().flatten() + start


def levels_of(space: LatentSpace, steps: int) -> list[float]:
    """The levels of the forwards, from the noisiest to the cleanest; a single one reads pure noise."""
    if steps == 1:
        return [space.low]
    return [float(g) for g in torch.linspace(space.low, space.high, steps, dtype=torch.float64)]


def read(seq: Sequence, open: Seq[Block], walk: Walk, steps: int, noise: Noise) -> tuple[Latent, Walk]:
    """What the next forward reads; a block begins with noise."""
    space = _space(seq)
    if walk.block != open[0].start:
        positions = open_positions(seq, open)
        drawn = noise.normal(-1 - open[0].start, positions, space.dim)
        walk = Walk(open[0].start, 0, positions, drawn, torch.zeros_like(drawn))
    level = levels_of(space, passes_per_block(steps, seq))[walk.done]
    return Latent(walk.positions, walk.vectors.float(), walk.hint.float(), level), walk


def move(
    seq: Sequence, candidates: Candidates, walk: Walk, steps: int, clamp: float, noise: Noise, by: Move
) -> tuple[Commit, Walk]:
    """One step down the noise, or the end of the block."""
    grid = levels_of(_space(seq), passes_per_block(steps, seq))
    every = torch.arange(walk.positions.numel())
    if walk.done == len(grid) - 1:
        return Commit(every, candidates.token, candidates.prob), Walk()
    assert candidates.mean is not None
    clean = candidates.mean.double()
    if walk.done >= (1.0 - clamp) * len(grid) and candidates.nearest is not None:
        clean = candidates.nearest.double()
    level, following = grid[walk.done], grid[walk.done + 1]
    drawn = lambda: noise.normal(seq.step, walk.positions, clean.shape[1])  # noqa: E731 - drawn only by those who use it
    vectors = by(walk, clean, level, following, drawn)
    bands = torch.bucketize(candidates.prob.float(), BANDS)
    changed = every
    if walk.shown is not None and walk.bands is not None:
        changed = ((candidates.token != walk.shown) | (bands != walk.bands)).nonzero().flatten()
    shown = replace(
        walk,
        done=walk.done + 1,
        vectors=vectors,
        hint=clean,
        previous=(clean, level),
        shown=candidates.token,
        bands=bands,
    )
    return Commit(changed, candidates.token[changed], candidates.prob[changed], EDIT, busy=True), shown


def _space(seq: Sequence) -> LatentSpace:
    assert seq.traits.latent is not None
    return seq.traits.latent


@component("ddpm")
class Ddpm:
    """Ancestral sampling: every step draws from the posterior of the expected clean vectors."""

    steps: int = option(64, low=1, high=MOST, help=STEPS)
    clamp: float = option(0.0, low=0.0, high=1.0, help=CLAMP)
    scores = ("mean", "nearest")

    def init(self, seq: Sequence) -> Walk:
        return begin(seq, "ddpm")

    def wants(self, seq: Sequence, open: Seq[Block], state: Walk) -> Tensor:
        return open_positions(seq, open)

    def latent(self, seq: Sequence, open: Seq[Block], state: Walk, noise: Noise) -> tuple[Latent, Walk]:
        return read(seq, open, state, self.steps, noise)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Walk, noise: Noise
    ) -> tuple[Commit, Walk]:
        return move(seq, candidates, state, self.steps, self.clamp, noise, _ancestral)


@component("ddim")
class Ddim:
    """DDIM: eta 0 is deterministic, eta 1 equals ddpm."""

    steps: int = option(64, low=1, high=MOST, help=STEPS)
    eta: float = option(0.0, low=0.0, high=1.0, help="share of fresh noise; 0 none, 1 as ddpm")
    clamp: float = option(0.0, low=0.0, high=1.0, help=CLAMP)
    scores = ("mean", "nearest")

    def init(self, seq: Sequence) -> Walk:
        return begin(seq, "ddim")

    def wants(self, seq: Sequence, open: Seq[Block], state: Walk) -> Tensor:
        return open_positions(seq, open)

    def latent(self, seq: Sequence, open: Seq[Block], state: Walk, noise: Noise) -> tuple[Latent, Walk]:
        return read(seq, open, state, self.steps, noise)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Walk, noise: Noise
    ) -> tuple[Commit, Walk]:
        def by(walk: Walk, clean: Tensor, level: float, following: float, drawn: Callable[[], Tensor]) -> Tensor:
            return ddim_step(walk.vectors, clean, level, following, self.eta, drawn() if self.eta else None)

        return move(seq, candidates, state, self.steps, self.clamp, noise, by)


@component("dpmpp")
class DpmSolverPlusPlus:
    """DPM-Solver++(2M): deterministic, of second order; few steps."""

    steps: int = option(32, low=1, high=MOST, help=STEPS)
    clamp: float = option(0.0, low=0.0, high=1.0, help=CLAMP)
    scores = ("mean", "nearest")

    def init(self, seq: Sequence) -> Walk:
        return begin(seq, "dpmpp")

    def wants(self, seq: Sequence, open: Seq[Block], state: Walk) -> Tensor:
        return open_positions(seq, open)

    def latent(self, seq: Sequence, open: Seq[Block], state: Walk, noise: Noise) -> tuple[Latent, Walk]:
        return read(seq, open, state, self.steps, noise)

    def decide(
        self, seq: Sequence, want: Tensor, candidates: Candidates, state: Walk, noise: Noise
    ) -> tuple[Commit, Walk]:
        return move(seq, candidates, state, self.steps, self.clamp, noise, _second_order)


def _ancestral(walk: Walk, clean: Tensor, level: float, following: float, drawn: Callable[[], Tensor]) -> Tensor:
    return ddpm_step(walk.vectors, clean, level, following, drawn())


def _second_order(walk: Walk, clean: Tensor, level: float, following: float, drawn: Callable[[], Tensor]) -> Tensor:
    previous, before = walk.previous if walk.previous is not None else (None, None)
    return dpmpp_2m_step(walk.vectors, clean, level, following, previous, before)
