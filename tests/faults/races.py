"""Several processes build the same caches at once, and some of them are killed.

One process builds a cache, the others read it, and none reads half of it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Row, attempt, digest, last_output, remove_run, seeded_random

from alignment_lab.config import Experiment
from alignment_lab.runtime.run_directory import RunDirectory


def campaign(spec: Experiment, folder: Path, rounds: int, builders: int) -> Iterator[Row]:
    """Runs of one experiment in as many directories, with an empty cache; half of them are killed."""
    killed = builders // 2
    undisturbed_folder = folder / "calm"
    assert attempt(spec, undisturbed_folder) == 0, last_output(undisturbed_folder)
    expected_digest = digest(RunDirectory(undisturbed_folder))
    random = seeded_random(11)
    row = Row(f"{builders} builders of one cache, {killed} of them killed")
    for number in range(rounds):
        cache = folder / f"cache-{number}"
        cache.mkdir()
        (cache / "models").symlink_to(Path(os.environ["ALIGNMENT_LAB_CACHE"]) / "models")
        pids = [_fork_run(spec, folder / f"race-{number}-{racer}", cache) for racer in range(builders)]
        time.sleep(random.random() * 3)
        for pid in pids[:killed]:
            os.kill(pid, signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        for racer in range(builders):
            path = folder / f"race-{number}-{racer}"
            code = (
                codes[racer]
                if racer >= killed
                else attempt(spec, path, before=lambda cache=cache: _use_cache(cache))
            )
            row.count(
                code == 0 and digest(RunDirectory(path)) == expected_digest,
                f"racer {racer}: exit {code}, {last_output(path)}",
            )
            remove_run(path)
    yield row


def _fork_run(spec: Experiment, path: Path, cache: Path) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(max(0, attempt(spec, path, before=lambda: _use_cache(cache), disturb=_do_nothing)))
    return pid


def _do_nothing(pid: int, pipe: int) -> None:
    """The run is the racer's child, and ends with it."""


def _use_cache(cache: Path) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: killing the racer kills its run
    os.environ["ALIGNMENT_LAB_CACHE"] = str(cache)
