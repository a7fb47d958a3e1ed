"""Random numbers of a sequence.

`PositionNoise`: a function of (seed, stream, step, position), so a sampled run depends neither on the crowd nor on the
cache. `StreamNoise`: one torch generator, drawn in the order of the published samplers (profiles).
"""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Stream = Literal["token", "canvas", "positions"]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(*keys: int | np.ndarray) -> Tensor:
    """Uniforms in (0, 1), float64, of the keys; arrays broadcast."""
    state = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            word = np.asarray(key).astype(np.int64).astype(np.uint64)
            state = mix((state ^ word) + _GOLDEN)
    return torch.from_numpy(((state >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


class PositionNoise:
    """Numbers that depend on the request's seed, the step and the absolute position only."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniform(self, stream: Stream, step: int, positions: Tensor, length: int) -> Tensor:
        """float64 [K]."""
        return hashed(self.seed, zlib.crc32(stream.encode()), step, positions.numpy()).expand(positions.shape[0])

    def gumbel(self, step: int, length: int, positions: Tensor, vocab: int) -> Tensor:
        """float64 [K, V]."""
        rows, columns = positions.numpy()[:, None], np.arange(vocab)[None, :]
        return hashed(self.seed, zlib.crc32(b"gumbel"), step, rows, columns)

    def normal(self, step: int, positions: Tensor, dim: int) -> Tensor:
        """float64 [K, dim], by the inverse of the normal distribution function."""
        rows, columns = positions.numpy()[:, None], np.arange(dim)[None, :]
        return torch.special.ndtri(hashed(self.seed, zlib.crc32(b"normal"), step, rows, columns))


class StreamNoise:
    """A shared torch generator; the rows of a cohort draw from it in their order."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, stream: Stream, step: int, positions: Tensor, length: int) -> Tensor:
        """float32 [K]: one draw per canvas column for "canvas", else one per position."""
        if stream == "canvas":
            return torch.rand(length, generator=self.generator)[positions]
        return torch.rand(positions.shape[0], generator=self.generator)

    def gumbel(self, step: int, length: int, positions: Tensor, vocab: int) -> Tensor:
        """float64 [K, V]: the whole canvas is drawn row by row, as the reference does, and the wanted rows are kept."""
        wanted = {int(p): i for i, p in enumerate(positions)}
        out = torch.empty(len(wanted), vocab, dtype=torch.float64)
        for column in range(length):
            row = torch.rand(vocab, dtype=torch.float64, generator=self.generator)
            if column in wanted:
                out[wanted[column]] = row
        return out

    def normal(self, step: int, positions: Tensor, dim: int) -> Tensor:
        """float64 [K, dim], in the order of the rows."""
        return torch.randn(positions.shape[0], dim, dtype=torch.float64, generator=self.generator)
