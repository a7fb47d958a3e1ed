"""How far a long job is and when it will be done: a bar on a terminal, a line now and then elsewhere.

Enters: how many are done. Leaves: words on the stream. What was done before this start is in the bar, not in the speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

PAUSE = 10.0
"""Seconds between two lines where nothing can be redrawn."""


def clock(seconds: float) -> str:
    """1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class Progress:
    """Shows progress while the `with` block runs.

    Args:
        label: what is done. total: of how many; done: those there already.
        now: what tells the time (tests give their own).
    """

    def __init__(
        self, label: str, total: int, done: int, stream: TextIO, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.label, self.total, self.first, self.stream, self.now = label, total, done, stream, now
        self.begun = self.said = now()
        self.bar: Bar | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Progress:
        from rich.console import Console

        console = Console(file=self.stream, highlight=False)
        if console.is_terminal and not console.is_dumb_terminal:
            self._draw(console)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """So many are done; note: a few words, such as the score so far."""
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=done, note=note)
        elif done >= self.total or self.now() - self.said >= PAUSE:
            self.said = self.now()
            print(f"{self.label}: {done}/{self.total}  {note}  {self.left(done)} left", file=self.stream, flush=True)

    def left(self, done: int) -> str:
        """The time that the rest will take, at the speed of this start."""
        made = done - self.first
        return clock((self.now() - self.begun) / made * (self.total - done)) if made > 0 else "?"

    def _draw(self, console: object) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self.bar = Bar(*columns, *times, console=console)  # type: ignore[arg-type]
        self.task = self.bar.add_task(self.label, total=self.total, completed=self.first, note="")
        self.bar.start()
