"""SIGKILL and handled signals at any time, during saves too: the same command must end in the same bits."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import (
    Row,
    attempt,
    digest,
    last_output,
    list_save_events,
    notify_at,
    remove_run,
    seeded_random,
    send_after,
    send_when_notified,
)

from alignment_lab.checkpoints import manifest
from alignment_lab.config import Experiment
from alignment_lab.runtime.run_directory import RunDirectory

MAX_FAULTS_PER_RUN = 4  # faults of one run before it may finish
# Share of the faults that are aimed at a save. Some hit a run that has no such save left, and do not count.
SAVE_SHARE = 0.4
MAX_DELAY = 0.004  # seconds between an event of a save and the fault
HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


@dataclass
class UndisturbedRun:
    """The result of a run without faults, its duration, and the file events of its saves."""

    digest: str
    seconds: float
    events: list[str]


def measure_undisturbed(spec: Experiment, folder: Path) -> UndisturbedRun:
    """Run once to fill the caches and list the saves' file events, and once to time it.

    Both must end in the same bits.
    """
    save_events = list_save_events(spec, folder)
    first = digest(RunDirectory(folder))
    remove_run(folder)
    started = time.monotonic()
    assert attempt(spec, folder) == 0, last_output(folder)
    seconds = time.monotonic() - started
    assert digest(RunDirectory(folder)) == first, "two undisturbed runs differ"
    remove_run(folder)
    return UndisturbedRun(first, seconds, save_events)


def campaign(
    name: str,
    spec: Experiment,
    folder: Path,
    faults: int,
    signals: Sequence[signal.Signals],
    seed: int,
    share: float = SAVE_SHARE,
) -> Iterator[Row]:
    """Hit runs with `faults` faults, a few per run, `share` of them during saves; then finish and compare."""
    random = seeded_random(seed)
    undisturbed_run = measure_undisturbed(spec, folder)
    anywhere, during_save = Row(f"{name}: at any time"), Row(f"{name}: inside a save")
    faults_left = faults
    while faults_left:
        suffered: list[tuple[Row, str]] = []
        for _ in range(min(MAX_FAULTS_PER_RUN, faults_left)):
            number = random.choice(signals)
            if random.random() < share:
                event_index = random.randrange(len(undisturbed_run.events))
                delay = random.random() * MAX_DELAY
                code = attempt(
                    spec, folder, before=notify_at(event_index + 1), disturb=send_when_notified(number, delay)
                )
                event = f"event {event_index}, {undisturbed_run.events[event_index]}"
                suffered.append((during_save, f"{number.name} {1000 * delay:.1f} ms after {event}"))
            else:
                seconds = random.random() * undisturbed_run.seconds
                code = attempt(spec, folder, disturb=send_after(seconds, number))
                saving = number is signal.SIGKILL and any(folder.glob(".partial/checkpoint-*"))
                suffered.append((during_save if saving else anywhere, f"{number.name} after {seconds:.2f} s"))
            if code == 0:  # the run ended before the fault
                suffered.pop()
                break
            faults_left -= 1
            problem = _find_problem(folder, code, number)
            if problem:
                suffered[-1][0].count(False, f"{suffered[-1][1]}: {problem}")
                suffered.pop()
        code = attempt(spec, folder)
        is_recovered = code == 0 and digest(RunDirectory(folder)) == undisturbed_run.digest
        for row, description in suffered:
            outcome = "other bits" if code == 0 else last_output(folder)
            row.count(is_recovered, f"{description}: exit {code}, {outcome}")
        remove_run(folder)
    yield from (row for row in (anywhere, during_save) if row.tried)


def _find_problem(folder: Path, code: int, signal_number: signal.Signals) -> str | None:
    """What is wrong after one fault, or None.

    The exit must be of the expected kind, and every logged step must be in the checkpoint.
    """
    is_kill = signal_number is signal.SIGKILL
    if code not in ((-signal_number,) if is_kill else (128 + signal_number, -signal_number)):
        return f"exit {code}: {last_output(folder)}"
    run = RunDirectory(folder)
    if is_kill or code != 128 + signal_number or not run.metrics() or run.state()["state"] == "finished":
        return None
    logged_steps = [row["step"] for row in run.metrics() if "loss" in row]
    checkpoint, damaged = manifest.newest_valid(run.checkpoints, run.state()["id"])
    if run.state()["state"] != "interrupted":
        return f"the state is {run.state()['state']}"
    if (
        logged_steps
        and "resumes from checkpoint" in run.state()["error"]
        and (checkpoint is None or damaged or manifest.step_of(checkpoint) != logged_steps[-1])
    ):
        return f"steps {logged_steps} were taken, and the checkpoint is {checkpoint}"
    return None
