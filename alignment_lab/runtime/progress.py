"""Progress of a long loop: a bar on a terminal, a few lines in a log file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

LOG_LINES = 10  # lines that a loop prints where there is no terminal
T = TypeVar("T")
Progress = Callable[[Sequence[Any]], Iterable[Any]]  # wraps a sequence of steps and shows how far along it is


class ProgressBar:
    """A progress bar of `total` steps; LOG_LINES printed lines on anything but a terminal."""

    def __init__(self, label: str, total: int, console: Console) -> None:
        self.label, self.total, self.console, self.done = label, total, console, 0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = RichProgress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task(label, total=total, note="")

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, note: str = "") -> None:
        """Count one more step; `note` is shown beside it."""
        self.done += 1
        self.bar.update(self.task, completed=self.done, note=note)
        every = max(1, self.total // LOG_LINES)
        if not self.console.is_terminal and (self.done % every == 0 or self.done == self.total):
            line = f"{self.label} {self.done}/{self.total} {note}".rstrip()
            self.console.print(line, highlight=False, soft_wrap=True)


def progress_tracker(label: str, console: Console) -> Callable[[Sequence[T]], Iterable[T]]:
    """A function that wraps a sequence: iterating over it shows a bar. See `Progress`.

    Where the sequence has a `note`, it is shown beside the bar.
    """

    def track(steps: Sequence[T]) -> Iterable[T]:
        return _iterate(label, steps, console)

    return track


def _iterate(label: str, steps: Sequence[T], console: Console) -> Iterator[T]:
    with ProgressBar(label, len(steps), console) as bar:
        for step in steps:
            yield step
            bar.advance(getattr(steps, "note", ""))
