"""Several processes build the same caches at once, and some of them are killed: one builds, the others read,
nobody reads half of it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Row, attempt, chances, clean, digest, said

from alignment_lab.config import Experiment
from alignment_lab.runtime.run_directory import RunDirectory

RACERS, KILLED = 8, 4


def campaign(spec: Experiment, folder: Path, rounds: int) -> Iterator[Row]:
    """Eight runs of one experiment in eight directories, on an empty cache."""
    calm_folder = folder / "calm"
    assert attempt(spec, calm_folder) == 0, said(calm_folder)
    calm = digest(RunDirectory(calm_folder))
    dice = chances(11)
    row = Row(f"{RACERS} builders of one cache, {KILLED} of them killed")
    for number in range(rounds):
        cache = folder / f"cache-{number}"
        cache.mkdir()
        (cache / "models").symlink_to(Path(os.environ["ALIGNMENT_LAB_CACHE"]) / "models")
        started = [_start(spec, folder / f"race-{number}-{racer}", cache) for racer in range(RACERS)]
        time.sleep(dice.random() * 3)
        for pid in started[:KILLED]:
            os.kill(pid, signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]
        for racer in range(RACERS):
            path = folder / f"race-{number}-{racer}"
            code = (
                codes[racer]
                if racer >= KILLED
                else attempt(spec, path, before=lambda cache=cache: _use(cache))
            )
            row.count(
                code == 0 and digest(RunDirectory(path)) == calm, f"racer {racer}: exit {code}, {said(path)}"
            )
            clean(path)
    yield row


def _start(spec: Experiment, path: Path, cache: Path) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(max(0, attempt(spec, path, before=lambda: _use(cache), disturb=_die_together)))
    return pid


def _die_together(pid: int, pipe: int) -> None:
    """Nothing: the run is the racer's child, and ends with it."""


def _use(cache: Path) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: who starts the run is killed in its stead
    os.environ["ALIGNMENT_LAB_CACHE"] = str(cache)
