"""Answers read from the event stream.

Enters: prepared requests and their events. Leaves: one `Generation` per request, with honest counts: tokens that a
reader sees and the model wrote, without prompt, given words, EOS and padding.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unmask.core.errors import RunError
from unmask.core.events import Accepted, Canvas, Event, Failed, Finished, start_canvas
from unmask.core.types import Traits
from unmask.pipeline.request import Prepared
from unmask.text.codec import Codec


@dataclass(frozen=True)
class Generation:
    """One answer.

    Args:
        text: what a reader sees: special tokens skipped, cut before a stop string.
        ids: the answer's tokens up to its end, given words included.
        finish_reason: "stop" (EOS, end of turn or a stop string), "length", or "cancelled".
        nfe: forwards in which this request took part.
        completion_tokens: visible tokens the model wrote.
        seconds: wall time from its admission to its end, beside the others.
        settings: what it was decoded with and who decided it.
        canvas: every position with its step and confidence.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: str
    nfe: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    settings: dict[str, str]
    canvas: Canvas
    index: int = 0
    sample: int = 0


class Collector:
    """Gathers the answers of prepared requests from their events. Call it with every event, in order."""

    def __init__(self, prepared: Sequence[Prepared], codec: Codec | None, traits: Traits) -> None:
        self._prepared = {p.request.id: p for p in prepared}
        self._codec, self._traits = codec, traits
        self._begun: dict[str, float] = {}
        self.canvases: dict[str, Canvas] = {}
        self.generations: dict[str, Generation] = {}

    def __call__(self, event: Event) -> None:
        """Take one event into account.

        Raises:
            RunError: the request failed.
        """
        if isinstance(event, Accepted):
            self.canvases[event.id] = start_canvas(event)
            self._begun[event.id] = time.perf_counter()
            return
        canvas = self.canvases.get(event.id)
        if canvas is not None:
            canvas.apply(event)
        if isinstance(event, Failed):
            raise RunError(f"request {event.id} failed: {event.error}")
        if isinstance(event, Finished) and canvas is not None:
            self.generations[event.id] = self._read(event, canvas)

    def close(self) -> None:
        """Nothing to release."""

    def _read(self, event: Finished, canvas: Canvas) -> Generation:
        prepared = self._prepared[event.id]
        start, ids = canvas.prompt_len, settled(canvas.ids[canvas.prompt_len : event.end])
        text = "" if self._codec is None else self._codec.decode(ids)
        if prepared.stops is not None:
            text, ids = prepared.stops.cut(text), ids[: prepared.stops.visible(ids)]
        silent = {*self._traits.eos_ids, self._traits.pad_id} | (
            set() if self._codec is None else self._codec.special_ids
        )
        written = sum(t not in silent and not canvas.fixed[start + i] for i, t in enumerate(ids))
        return Generation(
            text=text,
            ids=tuple(ids),
            finish_reason=event.reason,
            nfe=event.nfe,
            prompt_tokens=start,
            completion_tokens=written,
            seconds=time.perf_counter() - self._begun[event.id],
            settings=prepared.settings.table,
            canvas=canvas,
            index=prepared.index,
            sample=prepared.sample,
        )


def settled(ids: Iterable[int]) -> list[int]:
    """The ids up to the first hole (a cancelled answer may have some)."""
    out = []
    for token in ids:
        if token < 0:
            break
        out.append(token)
    return out
