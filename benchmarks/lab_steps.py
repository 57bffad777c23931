"""What a benchmark takes note of at each step of the lab's loop."""

from __future__ import annotations

import time
from collections.abc import Mapping

from alignment_lab.training import Callback
from alignment_lab.training.state import TrainState

from .clock import synchronise


class LabSteps(Callback):
    """Seconds of each optimizer step, and what it logged; the loss is not rounded."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.logs: list[dict[str, float]] = []

    def on_step_begin(self, state: TrainState) -> None:
        """Start."""
        synchronise()
        self._began = time.perf_counter()

    def on_step_end(self, state: TrainState) -> None:
        """Stop."""
        synchronise()
        self.seconds.append(time.perf_counter() - self._began)

    def on_log(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Keep it."""
        self.logs.append({key: float(value) for key, value in metrics.items()})
