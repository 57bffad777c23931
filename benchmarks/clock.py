"""The clock, peak memory and log of one training run, the same on both sides."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

# Imports of a first training step. They are not measured: both sides import them before their clocks start.
LATE_IMPORTS = (
    "torch._dynamo",
    "torch._inductor",
    "torch.utils.tensorboard",
    "accelerate.utils",
    "peft",
    "matplotlib",
)


def import_late() -> None:
    """Import what would otherwise be imported during training."""
    for name in LATE_IMPORTS:
        if find_spec(name.partition(".")[0]):
            importlib.import_module(name)


class Clock:
    """Wall and CPU seconds of the block inside `running`, and of its first lap."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = self.lap_seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the block."""
        self._wall, cpu = time.perf_counter(), time.process_time()
        yield
        synchronize()
        self.seconds, self.cpu_seconds = time.perf_counter() - self._wall, time.process_time() - cpu

    def lap(self) -> None:
        """Set `lap_seconds` to the time since the start."""
        synchronize()
        self.lap_seconds = time.perf_counter() - self._wall


class StepTimer(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        synchronize()
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        synchronize()
        self.seconds.append(time.perf_counter() - self._began)


def synchronize() -> None:
    """Wait for the accelerator, where there is one in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def step_logs(trainer: Any) -> list[dict[str, float]]:
    """The metrics that a TRL trainer logged at each step; the loss is not rounded."""
    return [
        {key: float(value) for key, value in entry.items()}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def peak_gb() -> float:
    """Peak resident memory of this process (VmHWM), or of the accelerator if one was used, in 1e9 bytes."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9
