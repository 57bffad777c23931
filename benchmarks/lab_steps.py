"""The callback that records each step of the lab's loop."""

from __future__ import annotations

import time
from collections.abc import Mapping

from alignment_lab.training import Callback
from alignment_lab.training.state import TrainState

from .clock import synchronize


class LabStepTimer(Callback):
    """Seconds of each optimizer step, and its metrics; the loss is not rounded."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.logs: list[dict[str, float]] = []

    def on_step_begin(self, state: TrainState) -> None:
        """Start."""
        synchronize()
        self._began = time.perf_counter()

    def on_step_end(self, state: TrainState) -> None:
        """Stop."""
        synchronize()
        self.seconds.append(time.perf_counter() - self._began)

    def on_log(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Keep the metrics."""
        self.logs.append({key: float(value) for key, value in metrics.items()})
