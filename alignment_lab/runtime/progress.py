"""How far along a long loop is: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_LINES = 10  # how many lines a loop writes where there is no terminal


class ProgressBar:
    """A progress bar of `total` steps; on anything but a terminal, `LINES` lines instead."""

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
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task(label, total=total, note="")

    def __enter__(self) -> ProgressBar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, note: str = "") -> None:
        """One step more, and what it came to."""
        self.done += 1
        self.bar.update(self.task, completed=self.done, note=note)
        every = max(1, self.total // LOG_LINES)
        if not self.console.is_terminal and (self.done % every == 0 or self.done == self.total):
            self.console.print(f"{self.label} {self.done}/{self.total} {note}".rstrip(), highlight=False)


def progress_tracker(label: str, console: Console) -> Any:
    """A function that wraps a sequence so that going through it shows a bar; see logprobs.Progress."""

    def wrap(steps: Sequence[Any]) -> Iterable[Any]:
        return _stepping(label, steps, console)

    return wrap


def _stepping(label: str, steps: Sequence[Any], console: Console) -> Iterator[Any]:
    with ProgressBar(label, len(steps), console) as bar:
        for step in steps:
            yield step
            bar.advance()
