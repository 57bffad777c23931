"""Hundreds of saves and resumes in one process: open files, memory and disk usage do not grow."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
from harness import Row, attempt, last_output

from alignment_lab.actions import run_action
from alignment_lab.config import Experiment
from alignment_lab.runtime.errors import Interrupted
from alignment_lab.runtime.run_directory import RunDirectory

WARMUP_SHARE = 0.2  # share of the cycles before the first measurement
MAX_GROWTH = 1.05  # of memory and disk usage


def campaign(spec: Experiment, folder: Path, cycles: int) -> Iterator[Row]:
    """Each cycle resumes, takes one step, gets SIGTERM, and saves."""
    samples_file = folder.with_suffix(".jsonl")
    code = attempt(spec, folder, before=lambda: _run_cycles(spec, folder, cycles, samples_file))
    samples = [json.loads(line) for line in samples_file.read_text().splitlines()]
    row = Row(f"{cycles} cycles of save and resume in one process")
    row.count(
        code == 0 and len(samples) == cycles, f"exit {code} after {len(samples)}: {last_output(folder)}"
    )
    start, end = samples[int(WARMUP_SHARE * len(samples))], samples[-1]
    row.count(end["files"] <= start["files"], f"open files {start['files']} -> {end['files']}")
    row.count(end["memory"] <= MAX_GROWTH * start["memory"], f"memory {start['memory']} -> {end['memory']}")
    row.count(end["disk"] <= MAX_GROWTH * start["disk"], f"disk {start['disk']} -> {end['disk']}")
    yield row


def _run_cycles(spec: Experiment, folder: Path, cycles: int, samples_file: Path) -> None:
    from alignment_lab.training.callbacks import MetricsLog

    MetricsLog.on_step_begin = lambda self, state: os.kill(os.getpid(), signal.SIGTERM)
    process = psutil.Process()
    with samples_file.open("w") as file:
        for cycle in range(cycles):
            try:
                run_action(spec, RunDirectory(folder))
                raise AssertionError("the run was not interrupted")
            except Interrupted as interruption:
                if f"checkpoint-{cycle + 1}" not in str(interruption):
                    raise
            checkpoint_bytes = sum(
                path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file()
            )
            gc.collect()  # reference cycles of a finished run are not growth
            file.write(
                json.dumps(
                    {
                        "files": process.num_fds(),
                        "memory": process.memory_info().rss,
                        "disk": checkpoint_bytes,
                    }
                )
                + "\n"
            )
            file.flush()
    os._exit(0)
