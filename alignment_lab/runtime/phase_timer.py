"""What a run costs: seconds by phase, and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROC_STATUS, PROC_CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PhaseTimer:
    """Adds up seconds by phase. Making one also resets the peak of resident memory where the system can."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._started = time.perf_counter()
        self._nested = 0.0  # seconds of phases nested in the current one
        if PROC_CLEAR_REFS.exists():
            PROC_CLEAR_REFS.write_text("5")  # resets the peak: a sweep's cells share a process

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the block's seconds as `phase`; those of a nested phase count for the nested one alone."""
        started, nested_before = time.perf_counter(), self._nested
        self._nested = 0.0
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.seconds[phase] += seconds - self._nested
            self._nested = nested_before + seconds

    def report(self) -> dict[str, float]:
        """Seconds by phase, and `total` since the timer was made."""
        seconds = {"total": time.perf_counter() - self._started, **self.seconds}
        return {phase: round(value, 2) for phase, value in seconds.items()}


def peak_memory_gb() -> float:
    """Peak memory in GB (1e9 bytes): allocated on the accelerator where there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    lines = PROC_STATUS.read_text().splitlines() if PROC_STATUS.exists() else []
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    unit = 1 if sys.platform == "darwin" else 1024
    return (peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) / 1e9
