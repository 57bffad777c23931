"""Hundreds of saves and resumes in one process: nothing grows but the number of steps."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
from harness import Row, attempt, said

from alignment_lab.actions import run_action
from alignment_lab.config import Experiment
from alignment_lab.runtime.errors import Interrupted
from alignment_lab.runtime.run_directory import RunDirectory

WARM = 0.2  # share of the cycles after which it is measured what stays
GROWTH = 1.05  # memory is not to grow by more


def campaign(spec: Experiment, folder: Path, cycles: int) -> Iterator[Row]:
    """Each cycle resumes, takes one step, is asked to leave, and saves."""
    facts = folder.with_suffix(".jsonl")
    code = attempt(spec, folder, before=lambda: _cycle(spec, folder, cycles, facts))
    found = [json.loads(line) for line in facts.read_text().splitlines()]
    row = Row(f"{cycles} cycles of save and resume in one process")
    row.count(code == 0 and len(found) == cycles, f"exit {code} after {len(found)}: {said(folder)}")
    start, end = found[int(WARM * len(found))], found[-1]
    row.count(end["files"] <= start["files"], f"open files {start['files']} -> {end['files']}")
    row.count(end["memory"] <= GROWTH * start["memory"], f"memory {start['memory']} -> {end['memory']}")
    row.count(end["disk"] <= GROWTH * start["disk"], f"disk {start['disk']} -> {end['disk']}")
    yield row


def _cycle(spec: Experiment, folder: Path, cycles: int, facts: Path) -> None:
    from alignment_lab.training.callbacks import LeaveWhenAsked

    LeaveWhenAsked.on_step_begin = lambda self, *a, **k: os.kill(os.getpid(), signal.SIGTERM)
    process = psutil.Process()
    with facts.open("w") as file:
        for number in range(cycles):
            try:
                run_action(spec, RunDirectory(folder))
                raise AssertionError("it was to be interrupted")
            except Interrupted as asked:
                if f"checkpoint-{number + 1}" not in str(asked):
                    raise
            bytes_of = sum(
                path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file()
            )
            file.write(
                json.dumps(
                    {"files": process.num_fds(), "memory": process.memory_info().rss, "disk": bytes_of}
                )
                + "\n"
            )
            file.flush()
    os._exit(0)
