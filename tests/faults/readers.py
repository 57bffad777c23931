"""Whoever reads the output goes away at any time: the run must end as if somebody had read it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Row, attempt, digest, last_output, remove_run, seeded_random

from alignment_lab.config import Experiment
from alignment_lab.runtime.output import keep_output_writable
from alignment_lab.runtime.run_directory import RunDirectory


def campaign(spec: Experiment, folder: Path, faults: int, seed: int) -> Iterator[Row]:
    """Close the pipe behind stdout, or behind both streams, at a random time of `faults` runs."""
    random = seeded_random(seed)
    assert attempt(spec, folder) == 0, last_output(folder)  # fills the caches
    remove_run(folder)
    started = time.monotonic()
    assert attempt(spec, folder) == 0, last_output(folder)
    seconds, expected = time.monotonic() - started, digest(RunDirectory(folder))
    remove_run(folder)
    row = Row("a closed pipe, dpo: at any time")
    for _ in range(faults):
        delay, streams = random.random() * seconds, random.choice([(1,), (1, 2)])
        read_end, write_end = os.pipe()

        def before(
            read_end: int = read_end, write_end: int = write_end, streams: tuple[int, ...] = streams
        ) -> None:
            os.close(read_end)
            for stream in streams:
                os.dup2(write_end, stream)
            keep_output_writable()

        def disturb(
            pid: int, pipe: int, read_end: int = read_end, write_end: int = write_end, delay: float = delay
        ) -> None:
            os.close(write_end)
            time.sleep(delay)
            os.close(read_end)

        code = attempt(spec, folder, before=before, disturb=disturb)
        run = RunDirectory(folder)
        is_whole = code == 0 and run.state()["state"] == "finished" and digest(run) == expected
        row.count(
            is_whole, f"closed after {delay:.2f} s, streams {streams}: exit {code}, {last_output(folder)}"
        )
        remove_run(folder)
    yield row
