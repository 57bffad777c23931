"""Signals that ask a run to stop: Ctrl-C, a scheduler's SIGTERM, Slurm's warning SIGUSR2.

None of them interrupts a write.

Knows when to defer a signal, not what for: the code that runs checks `StopRequest.signal` where stopping
loses nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals
from types import FrameType

import psutil

from .errors import Interrupted

HANDLED_SIGNALS = (Signals.SIGINT, Signals.SIGTERM, Signals.SIGUSR2)
REPEAT_SECONDS = (
    1.0  # a second SIGINT within this time is the first one, sent by the terminal and by a launcher
)


class StopRequest:
    """Whether this process was asked to stop.

    Before training it stops at once; in training, after the current step.
    """

    def __init__(self) -> None:
        self.signal: Signals | None = None  # the first one that came
        self.deferred = False  # a signal is only stored, for the next `check_stop`
        self._received_at = 0.0
        self._forwarding = False  # child processes do the work, and get every signal too

    @contextmanager
    def listen(self) -> Iterator[StopRequest]:
        """Handle HANDLED_SIGNALS inside the block.

        Only the main thread can; in another thread this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {number: signal.signal(number, self._handle) for number in HANDLED_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def forward_to_children(self) -> Iterator[None]:
        """Inside the block child processes do the work: signals are deferred here and sent on to them."""
        self.deferred = self._forwarding = True
        try:
            yield
        finally:
            self.deferred = self._forwarding = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        is_repeat = (
            self.signal is not None
            and number == signal.SIGINT
            and time.monotonic() - self._received_at > REPEAT_SECONDS
        )
        if self._forwarding:
            _signal_children(Signals.SIGKILL if is_repeat else Signals(number))
        if is_repeat:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait; committed checkpoints stay
        if self.signal is None:
            self.signal, self._received_at = Signals(number), time.monotonic()
            if not self.deferred:
                raise Interrupted(self.signal)


def _signal_children(number: Signals) -> None:
    for child in psutil.Process().children():
        if child.pid != os.getpid():
            try:
                child.send_signal(number)
            except psutil.NoSuchProcess:
                continue
