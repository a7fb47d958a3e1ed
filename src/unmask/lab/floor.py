"""The matmul floor of a decode: the time its matrix products alone would take, measured in the same process.

Per forward: every layer matrix of the model once, at the rows that forward computed, and the output matrix at the rows
of the open blocks (also where fewer were scored). Each is one `torch.mm(out=)` in the run's dtype on the model's own
weights (q, k, v and gate, up are one matrix each, as the model holds them), so all bytes of the model are read. The
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
    """What one forward computed: rows through the layers, and rows of its open blocks."""

    layers: int
    head: int


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
        for rows in sorted({f.head for f in forwards}):
            self.head_times.setdefault(rows, []).append(self._time((self.head,), rows))

    def seconds(self, forwards: Sequence[Rows]) -> float:
        """The floor of a whole decode: the sum over its forwards of the best times seen."""
        return sum(min(self.layer_times[f.layers]) + min(self.head_times[f.head]) for f in forwards)

    def _time(self, matrices: Sequence[Tensor], rows: int) -> float:
        inputs = {m.shape[1]: torch.randn(rows, m.shape[1], device=m.device).to(m.dtype) for m in matrices}
        outputs = {m.shape[0]: m.new_empty(rows, m.shape[0]) for m in matrices}
        for out in outputs.values():
            out.zero_()  # touched: no page fault is timed
        begun = self.clock()
        for m in matrices:
            torch.mm(inputs[m.shape[1]], m.t(), out=outputs[m.shape[0]])
        return self.clock() - begun
