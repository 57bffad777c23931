"""What a run costs: seconds by phase, and the peak of its memory."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PhaseTimer:
    """Adds up seconds by phase; the memory's peak is counted from the meter's making where the system can."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._started = time.perf_counter()
        self._inside = 0.0  # seconds of phases inside of the one that is counted
        if CLEAR.exists():
            CLEAR.write_text("5")  # resets the peak: a sweep's cells share a process

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count what happens inside as `phase`, and as nothing else: a phase inside of another one is not part of it."""
        started, inside = time.perf_counter(), self._inside
        self._inside = 0.0
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.seconds[phase] += seconds - self._inside
            self._inside = inside + seconds

    def report(self) -> dict[str, float]:
        """Seconds by phase, and `total` since the meter was made."""
        return {
            name: round(value, 2)
            for name, value in {"total": time.perf_counter() - self._started, **self.seconds}.items()
        }


def peak_memory_gb() -> float:
    """The peak of this process's resident memory, or of the accelerator's where there is one, in GB (1e9 bytes)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    unit = 1 if sys.platform == "darwin" else 1024
    return (peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) / 1e9
