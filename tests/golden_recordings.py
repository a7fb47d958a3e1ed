"""The golden recordings, and the canvas after every step as Python folds it."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

from unmask.core.events import Accepted, Canvas, Finished, Stepped, start_canvas
from unmask.sinks.recorder import Recording

FOLDER = Path(__file__).parent / "fixtures" / "recordings"
NAMES = sorted(p.stem for p in FOLDER.glob("*.jsonl"))
TABLE: dict[str, dict[str, list[str]]] = json.loads((FOLDER / "canvases.json").read_text())


def steps_of(recording: Recording, request: str) -> list[Canvas]:
    """The canvas after every step, from none to all; what it was when the next step came."""
    seen: list[Canvas] = []
    canvas: Canvas | None = None
    for event in recording.events:
        if event.id != request:
            continue
        if isinstance(event, Accepted):
            canvas = start_canvas(event)
            seen = [copy.deepcopy(canvas)]
            continue
        assert canvas is not None
        fresh = set(canvas.fresh)
        canvas.apply(event)
        if isinstance(event, Finished):
            canvas.fresh = fresh  # what the last step wrote is still what it wrote
        if isinstance(event, Stepped):
            seen.append(copy.deepcopy(canvas))
        else:
            seen[-1] = copy.deepcopy(canvas)
    return seen


def kinds_of(canvas: Canvas) -> list[str]:
    """How each position is drawn."""

    def kind(position: int) -> str:
        if position < canvas.prompt_len:
            return "prompt"
        if canvas.end is not None and position >= canvas.end:
            return "after"
        if canvas.fixed[position]:
            return "given"
        if canvas.ids[position] < 0:
            return "mask"
        return "new" if position in canvas.fresh else "earlier"

    return [kind(p) for p in range(len(canvas.ids))]


def digest(canvas: Canvas) -> str:
    """Twelve signs that change with any id, step or confidence."""
    values = json.dumps([canvas.ids, canvas.step, canvas.confidence, canvas.nfe])
    return hashlib.sha256(values.encode()).hexdigest()[:12]
