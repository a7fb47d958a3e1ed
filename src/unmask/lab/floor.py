"""The matmul floor of a decode: the time its matrix products alone would take, measured in the same process.

Per forward: every layer matrix of the model once, at the rows that forward computed, and the output matrix at the rows
of the open blocks (also where fewer were scored; none where a forward is not asked for a token). Each is one
`torch.mm(out=)` in the run's dtype on the model's own weights (q, k, v and gate, up are one matrix each, as the model
holds them), so all bytes of the model are read. The strict floor takes the output matrix at the scored rows only. The
floor takes the minimum over the rounds, the decode its median.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

Clock = Callable[[], float]


class Rows(NamedTuple):
    """What one forward computed: rows through the layers, rows of its open blocks, and rows that were scored; and which
    share of the layers' work on these rows it did, where it left layers out: its floor is that share of the time, which
    is less than products of few rows can reach."""

    layers: int
    head: int
    scored: int
    share: float = 1.0


@dataclass
class Floor:
    """Times of matrix products by their number of rows; one `sample` per round.

    Args:
        matrices: the layers' weights [out, in]. head: the output matrix [V, C]. clock: seconds, after the device.
    """

    matrices: Sequence[Tensor]
    head: Tensor
    clock: Clock
    layer_times: dict[int, list[float]] = field(default_factory=dict)
    head_times: dict[int, list[float]] = field(default_factory=dict)

    @torch.inference_mode()
    def sample(self, forwards: set[Rows]) -> None:
        """Measures every distinct number of rows once."""
        for rows in sorted({f.layers for f in forwards}):
            self.layer_times.setdefault(rows, []).append(self._time(self.matrices, rows))
        for rows in sorted({n for f in forwards for n in (f.head, f.scored) if n}):
            self.head_times.setdefault(rows, []).append(self._time((self.head,), rows))

    def seconds(self, forwards: Sequence[Rows], strict: bool = False) -> float:
        """The floor of a whole decode: the sum over its forwards of the best times seen.

        Args:
            strict: the output matrix at the scored rows only.
        """
        heads = (f.scored if strict else f.head for f in forwards)
        layers = sum(f.share * min(self.layer_times[f.layers]) for f in forwards)
        return layers + sum(min(self.head_times[rows]) for rows in heads if rows)

    def best(self, forwards: Sequence[Rows]) -> tuple[dict[int, float], dict[int, float]]:
        """The best times of these forwards' products by their number of rows: layers, head."""
        layers = {n: min(self.layer_times[n]) for n in sorted({f.layers for f in forwards})}
        heads = {n: min(self.head_times[n]) for n in sorted({f.head for f in forwards}) if n}
        return layers, heads

    def _time(self, matrices: Sequence[Tensor], rows: int) -> float:
        inputs = {m.shape[1]: torch.randn(rows, m.shape[1], device=m.device).to(m.dtype) for m in matrices}
        outputs = {m.shape[0]: m.new_empty(rows, m.shape[0]) for m in matrices}
        for out in outputs.values():
            out.zero_()  # touched: no page fault is timed
        begun = self.clock()
        for m in matrices:
            torch.mm(inputs[m.shape[1]], m.t(), out=outputs[m.shape[0]])
        return self.clock() - begun
