"""Signals that ask a run to leave: Ctrl-C, a scheduler's SIGTERM, Slurm's warning SIGUSR2. None of them ends it in the middle of a write.

Knows when to wait, and refuses to know for what: whoever works asks `asked` where leaving loses nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals
from typing import Any

import psutil

from .errors import Interrupted

HANDLED_SIGNALS = (Signals.SIGINT, Signals.SIGTERM, Signals.SIGUSR2)
REPEAT_SECONDS = (
    1.0  # seconds within which a second Ctrl-C is the first one again, sent by the terminal and by a launcher
)


class StopRequest:
    """Whether this process was asked to leave. Before training it leaves at once, in training where it is convenient."""

    def __init__(self) -> None:
        self.signal: Signals | None = None
        self.deferred = False  # a signal is remembered, and answered at the next good place
        self._since = 0.0
        self._children = False  # those do the work, and are told

    @contextmanager
    def listen(self) -> Iterator[StopRequest]:
        """Listen, inside of the block. Only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._heard) for number in HANDLED_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def forward_to_children(self) -> Iterator[None]:
        """Inside of the block, processes that this one started do the work: a signal is sent on to them, and they are waited for."""
        self.deferred = self._children = True
        try:
            yield
        finally:
            self.deferred = self._children = False

    def _heard(self, number: int, _: Any) -> None:
        again = (
            self.signal is not None
            and number == signal.SIGINT
            and time.monotonic() - self._since > REPEAT_SECONDS
        )
        if self._children:
            _tell_children(Signals.SIGKILL if again else Signals(number))
        if again:
            raise KeyboardInterrupt  # who asks twice wants it now; what was committed stays
        if self.signal is None:
            self.signal, self._since = Signals(number), time.monotonic()
            if not self.deferred:
                raise Interrupted(self.signal)


def _tell_children(number: Signals) -> None:
    for child in psutil.Process().children():
        if child.pid != os.getpid():
            try:
                child.send_signal(number)
            except psutil.NoSuchProcess:
                continue
