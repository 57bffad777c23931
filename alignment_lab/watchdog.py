"""Ends a process in which nothing moves any more: where every thread stands is written down, and the run can be resumed."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import HUNG

LOOKS = 20  # times that it looks within its patience


class Watchdog:
    """Wants to hear of progress every so many minutes. What hangs may hold any lock: it asks nobody, and ends the process itself."""

    def __init__(self, minutes: float | None, stacks: Path, told: Callable[[str], None]) -> None:
        self.patience = None if minutes is None else 60 * minutes
        self.stacks, self.told = stacks, told
        self._heard = 0.0

    def beat(self) -> None:
        """Something moved."""
        self._heard = time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside of the block."""
        if self.patience is None:
            yield
            return
        self.beat()
        over = threading.Event()
        threading.Thread(target=self._watch, args=(over, self.patience), name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, over: threading.Event, patience: float) -> None:
        while not over.wait(patience / LOOKS):
            if time.monotonic() - self._heard > patience:
                with self.stacks.open("w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
                self.told(
                    f"nothing moved for {patience / 60:g} minutes (training.watchdog_minutes); every thread's stack is in {self.stacks}; "
                    f"the same command with hydra.run.dir={self.stacks.parent} goes on from the newest checkpoint."
                )
                os._exit(HUNG)
