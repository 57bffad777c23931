"""The keyboard while no line is asked for: Ctrl-C stops an answer, and nothing that is typed is shown."""

from __future__ import annotations

import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interruption:
    """Whether Ctrl-C came: an answer is asked after every token."""

    requested: bool = False


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Inside the block the first Ctrl-C is noted; a second one does not wait for whoever asks."""
    noted = Interruption()

    def note(number: int, _: FrameType | None) -> None:
        if noted.requested:
            raise KeyboardInterrupt
        noted.requested = True

    with ctrl_c(note):
        yield noted


def ignore(number: int, _: FrameType | None) -> None:
    """For Ctrl-C between an answer and the next line: it was meant to stop the answer."""


@contextmanager
def ctrl_c(handle: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Inside the block this function handles Ctrl-C."""
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def without_echo() -> Iterator[None]:
    """Inside the block the terminal does not show what is typed: it would stand in the middle of an answer.

    What was typed is the beginning of the next line.
    """
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(terminal, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
