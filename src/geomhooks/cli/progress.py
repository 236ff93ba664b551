"""What a person sees, and may do, while a run is on: a progress bar, and Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from geomhooks import measuring

__all__ = ["Interrupted", "Interrupts", "progress_bar", "steps_bar"]


class Interrupted(Exception):
    """A run was stopped from outside, by the signal of this number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Interrupts:
    """Turns the first Ctrl-C, or SIGTERM, into a wish to stop; a second one acts at once.

    A batch that is cut off in its middle would be counted at some sites and not at others, so the
    run is asked to stop between two batches.

    Attributes:
        signal: number of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])


@contextmanager
def progress_bar(total: int, *, shown: bool = True) -> Iterator[Any]:
    """A bar on stderr where that is a terminal; yields what to call after each batch."""
    console = Console(stderr=True)
    columns = (
        TextColumn("reading"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TextColumn("{task.fields[speed]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    bar = Progress(
        *columns, console=console, disable=not (shown and console.is_terminal), transient=True
    )
    with bar:
        task = bar.add_task("", total=total, tokens=0, speed=0.0)

        def report(progress: measuring.Progress) -> None:
            bar.update(
                task,
                completed=progress.done,
                tokens=progress.tokens,
                speed=progress.tokens / max(progress.seconds, 1e-9),
            )

        yield report


@contextmanager
def steps_bar(total: int) -> Iterator[Any]:
    """A bar on stderr where that is a terminal; yields what to call after each training step."""
    console = Console(stderr=True)
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("step {task.completed} of {task.total}, loss {task.fields[loss]:.2f}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    with bar:
        task = bar.add_task("", total=total, loss=float("nan"))
        yield lambda progress: bar.update(task, completed=progress.step, loss=progress.loss)
