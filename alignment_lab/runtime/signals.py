"""Signals that ask a run to stop: Ctrl-C, a scheduler's SIGTERM or warning, a terminal that was closed.

None of them interrupts a write.

Knows when to defer a signal, not what for: the code that runs checks `StopRequest.signal` where stopping
loses nothing.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals
from types import FrameType
from typing import Any

import psutil

from .errors import Interrupted

HANDLED_SIGNALS = (
    Signals.SIGINT,  # Ctrl-C
    Signals.SIGTERM,  # a scheduler, a container that is stopped, `kill`
    Signals.SIGHUP,  # the terminal was closed, the connection broke
    Signals.SIGQUIT,  # Ctrl-\
    Signals.SIGUSR1,  # a scheduler's warning that the time is nearly up, as is SIGUSR2
    Signals.SIGUSR2,
    Signals.SIGXCPU,  # `ulimit -t`, and schedulers that limit CPU time
)
# nohup, setsid and shells start a command with these ignored where it is to outlive its terminal
IGNORED_ON_REQUEST = (Signals.SIGHUP, Signals.SIGQUIT)
REPEAT_SECONDS = (
    1.0  # a second SIGINT within this time is the first one, sent by the terminal and by a launcher
)
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
LIBC = ctypes.CDLL(None)  # loaded before any fork


class StopRequest:
    """Whether this process was asked to stop.

    Before training it stops at once; in training, after the current step.
    """

    def __init__(self) -> None:
        self.signal: Signals | None = None  # the first one that came
        self.deferred = False  # a signal is only stored, for the next `check_stop`
        self._received_at = 0.0
        self._children: Children | None = None  # they do the work, and get every signal too

    @contextmanager
    def listen(self) -> Iterator[StopRequest]:
        """Handle HANDLED_SIGNALS inside the block, but for those that this command was started to ignore.

        Only the main thread can; in another thread this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {number: signal.signal(number, self._handle) for number in heeded_signals()}
        try:
            yield self
        finally:
            _restore(previous)

    @contextmanager
    def forward_to_children(self) -> Iterator[Children]:
        """Inside the block child processes do the work: signals are deferred here and sent on to them.

        When they have done it signals stay deferred: what they did is to be recorded. After an exception
        signals are as they were.
        """
        before = self.deferred
        self.deferred, self._children = True, Children()
        try:
            yield self._children
        except BaseException:
            self.deferred = before
            raise
        finally:
            self._children = None

    def _handle(self, number: int, _: FrameType | None) -> None:
        is_repeat = (
            self.signal is not None
            and number == signal.SIGINT
            and time.monotonic() - self._received_at > REPEAT_SECONDS
        )
        if self._children:
            self._children.send(Signals.SIGKILL if is_repeat else Signals(number))
        if is_repeat:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait; committed checkpoints stay
        if self.signal is None:
            self.signal, self._received_at = Signals(number), time.monotonic()
            if not self.deferred:
                raise Interrupted(self.signal)


class Children:
    """The child processes that were started since this was made, and the signals that they are to get."""

    def __init__(self) -> None:
        self._others = {child.pid for child in psutil.Process().children()}
        self.undelivered: Signals | None = None  # came when there was no child
        self.seen = False  # whether there was one, at a look

    def processes(self) -> list[psutil.Process]:
        """Those that are there now."""
        found = [child for child in psutil.Process().children() if child.pid not in self._others]
        self.seen = self.seen or bool(found)
        return found

    def send(self, number: Signals) -> None:
        """Send a signal to each; where there is none, keep it."""
        processes = self.processes()
        self.undelivered = None if processes else number
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue


def heeded_signals() -> list[Signals]:
    """HANDLED_SIGNALS without those that are ignored, and are to be, because whoever began the command said
    so.
    """
    return [
        number
        for number in HANDLED_SIGNALS
        if number not in IGNORED_ON_REQUEST or signal.getsignal(number) is not signal.SIG_IGN
    ]


@contextmanager
def default_actions() -> Iterator[None]:
    """Inside the block a signal ends this process as the system does it: in a call that waits for others
    outside of Python no handler would run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in heeded_signals()}
    try:
        yield
    finally:
        _restore(previous)


def _restore(handlers: dict[Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not Python's own


def ignore_signals() -> None:
    """For a helper process that its parent ends: a signal to the whole group must not end it first."""
    for number in HANDLED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def terminate_with_parent() -> None:
    """In a child: when its parent is killed, the kernel sends SIGTERM, and it commits a checkpoint.

    Linux only.
    """
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
