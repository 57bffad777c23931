"""What a run costs: seconds by phase, and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROC_STATUS, PROC_CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PhaseTimer:
    """Adds up seconds by phase. Making one also resets the peak of resident memory where the system can."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._started = time.perf_counter()
        self._running: list[_Phase] = []  # outermost first
        if PROC_CLEAR_REFS.exists():
            PROC_CLEAR_REFS.write_text("5")  # resets the peak: a sweep's cells share a process

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the block's seconds as `phase`; those of a nested phase count for the nested one alone."""
        current = _Phase(phase, time.perf_counter())
        self._running.append(current)
        try:
            yield
        finally:
            self._running.pop()
            seconds = time.perf_counter() - current.started
            self.seconds[phase] += seconds - current.nested
            if self._running:
                self._running[-1].nested += seconds

    def report(self) -> dict[str, float]:
        """Seconds by phase, those that are running included, and `total` since the timer was made."""
        now = time.perf_counter()
        seconds, inner = defaultdict(float, {"total": now - self._started, **self.seconds}), 0.0
        for phase in reversed(self._running):
            elapsed = now - phase.started
            seconds[phase.name] += elapsed - phase.nested - inner
            inner = elapsed
        return {phase: round(value, 2) for phase, value in seconds.items()}


@dataclass
class _Phase:
    """A phase that is running."""

    name: str
    started: float
    nested: float = 0.0  # seconds of the phases within that have ended


def peak_memory_gb() -> float:
    """Peak memory in GB (1e9 bytes): allocated on the accelerator where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    lines = PROC_STATUS.read_text().splitlines() if PROC_STATUS.exists() else []
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    unit = 1 if sys.platform == "darwin" else 1024
    return (peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) / 1e9
