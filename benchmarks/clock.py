"""The clock, the memory's peak and the log of one training run, the same on both sides."""

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

# What a first training step imports: no part of what is measured, so both sides import it before their clocks start.
LATE = (
    "torch._dynamo",
    "torch._inductor",
    "torch.utils.tensorboard",
    "accelerate.utils",
    "peft",
    "matplotlib",
)


def import_late() -> None:
    """Import what would else be imported in the middle of training."""
    for name in LATE:
        if find_spec(name.partition(".")[0]):
            importlib.import_module(name)


class Clock:
    """Wall and CPU seconds of what happens inside `running`, with a lap between."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = self.lap_seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the block."""
        self._wall, cpu = time.perf_counter(), time.process_time()
        yield
        synchronise()
        self.seconds, self.cpu_seconds = time.perf_counter() - self._wall, time.process_time() - cpu

    def lap(self) -> None:
        """What lies before this call is `lap_seconds`."""
        synchronise()
        self.lap_seconds = time.perf_counter() - self._wall


class Steps(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        synchronise()
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        synchronise()
        self.seconds.append(time.perf_counter() - self._began)


def synchronise() -> None:
    """Wait for the accelerator, where there is one in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def step_logs(trainer: Any) -> list[dict[str, float]]:
    """What a trainer logged at each step; the loss is not rounded."""
    return [
        {key: float(value) for key, value in entry.items()}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def peak_gb() -> float:
    """The peak of this process's resident memory (VmHWM), or of the accelerator's where one was used, in GB (1e9 bytes)."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9
