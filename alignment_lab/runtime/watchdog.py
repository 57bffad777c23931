"""Ends a process that makes no progress, after writing every thread's stack to a file.

The run can be resumed.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import EXIT_HUNG

CHECKS_PER_TIMEOUT = 20
SUSPENDED = 3  # times the interval of checks: when one is that late, the process itself did not run


class Watchdog:
    """Expects a heartbeat every so many minutes, from the first one on.

    What comes before it may wait long for other processes.

    A hung thread may hold any lock, so the watchdog asks nobody and ends the process itself.
    """

    def __init__(self, minutes: float | None, stacks: Path, on_timeout: Callable[[str], None]) -> None:
        self.timeout_seconds = None if minutes is None else 60 * minutes
        self.stacks, self.on_timeout = stacks, on_timeout
        self._last_heartbeat: float | None = None

    def heartbeat(self) -> None:
        """Something made progress."""
        self._last_heartbeat = time.monotonic()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch the block from a thread; nothing where no timeout is set."""
        if self.timeout_seconds is None:
            yield
            return
        done = threading.Event()
        arguments = (done, self.timeout_seconds)
        threading.Thread(target=self._watch, args=arguments, name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _watch(self, done: threading.Event, timeout_seconds: float) -> None:
        interval = timeout_seconds / CHECKS_PER_TIMEOUT
        looked = time.monotonic()
        while not done.wait(interval):
            now = time.monotonic()
            was_suspended = now - looked > SUSPENDED * interval + 1  # by Ctrl-Z, or a laptop's lid
            if was_suspended and self._last_heartbeat is not None:
                self._last_heartbeat = now
            looked = now
            last = self._last_heartbeat
            if last is not None and now - last > timeout_seconds:
                self._end_process(timeout_seconds)

    def _end_process(self, timeout_seconds: float) -> None:
        message = (
            f"no progress for {timeout_seconds / 60:g} minutes (training.watchdog_minutes); "
            f"every thread's stack is in {self.stacks}; the same command with "
            f"hydra.run.dir={self.stacks.parent} resumes from the newest checkpoint."
        )
        with self.stacks.open("w") as file:
            print(message, file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        self.on_timeout(message)
        os._exit(EXIT_HUNG)
