"""Ends a process in which nothing moves any more: where every thread stands is written down, and the run can be resumed."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import EXIT_HUNG

LOOKS_PER_TIMEOUT = 20  # times that it looks within its patience


class Watchdog:
    """Wants to hear of progress every so many minutes, once it has heard of some: what comes before may wait for others, and long.

    What hangs may hold any lock: it asks nobody, and ends the process itself.
    """

    def __init__(self, minutes: float | None, stacks: Path, told: Callable[[str], None]) -> None:
        self.patience = None if minutes is None else 60 * minutes
        self.stacks, self.told = stacks, told
        self._heard: float | None = None

    def heartbeat(self) -> None:
        """Something moved."""
        self._heard = time.monotonic()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Inside of the block."""
        if self.patience is None:
            yield
            return
        over = threading.Event()
        threading.Thread(target=self._watch, args=(over, self.patience), name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, over: threading.Event, patience: float) -> None:
        while not over.wait(patience / LOOKS_PER_TIMEOUT):
            if self._heard is not None and time.monotonic() - self._heard > patience:
                said = (
                    f"nothing moved for {patience / 60:g} minutes (training.watchdog_minutes); every thread's stack is in {self.stacks}; "
                    f"the same command with hydra.run.dir={self.stacks.parent} goes on from the newest checkpoint."
                )
                with self.stacks.open("w") as file:
                    print(said, file=file, flush=True)
                    faulthandler.dump_traceback(file, all_threads=True)
                self.told(said)
                os._exit(EXIT_HUNG)
