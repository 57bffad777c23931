"""SIGKILL and signals at any time, in the middle of saves too: the same command again must come to the same
bits.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import Row, attempt, chances, clean, digest, events, said, send_after, send_when_told, tell_at

from alignment_lab.checkpoints import manifest
from alignment_lab.config import Experiment
from alignment_lab.runtime.run_directory import RunDirectory

IN_A_ROW = 4  # faults that one run suffers before it is let to finish
INSIDE = 0.4  # share of faults that are aimed at a save; of those some come to a run that has no such save any more, and do not count
WITHIN = 0.004  # seconds after a point of a save within which a fault may come
POLITE = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


@dataclass
class Undisturbed:
    """What a run comes to, how long it takes, and what its saves do."""

    digest: str
    seconds: float
    events: list[str]


def undisturbed(spec: Experiment, folder: Path) -> Undisturbed:
    """Run once to fill the caches and list the saves' file events, and once for the clock; both must come to
    the same bits.
    """
    found = events(spec, folder)
    first = digest(RunDirectory(folder))
    clean(folder)
    started = time.monotonic()
    assert attempt(spec, folder) == 0, said(folder)
    seconds = time.monotonic() - started
    assert digest(RunDirectory(folder)) == first, "two undisturbed runs differ"
    clean(folder)
    return Undisturbed(first, seconds, found)


def campaign(
    name: str,
    spec: Experiment,
    folder: Path,
    faults: int,
    signals: Sequence[signal.Signals],
    seed: int,
    share: float = INSIDE,
) -> Iterator[Row]:
    """`faults` that hit, a few in a row, this share of them aimed at saves; then the run is let to finish,
    and compared.
    """
    dice = chances(seed)
    calm = undisturbed(spec, folder)
    anywhere, inside = Row(f"{name}: at any time"), Row(f"{name}: inside a save")
    left = faults
    while left:
        suffered: list[tuple[Row, str]] = []
        for _ in range(min(IN_A_ROW, left)):
            number = dice.choice(signals)
            if dice.random() < share:
                at = dice.randrange(len(calm.events))
                delay = dice.random() * WITHIN
                code = attempt(spec, folder, before=tell_at(at + 1), disturb=send_when_told(number, delay))
                suffered.append(
                    (inside, f"{number.name} {1000 * delay:.1f} ms after event {at}, {calm.events[at]}")
                )
            else:
                after = dice.random() * calm.seconds
                code = attempt(spec, folder, disturb=send_after(after, number))
                saving = number is signal.SIGKILL and any(folder.glob(".partial/checkpoint-*"))
                suffered.append((inside if saving else anywhere, f"{number.name} after {after:.2f} s"))
            if code == 0:  # it had ended before: no fault
                suffered.pop()
                break
            left -= 1
            wrong = _wrong(folder, code, number)
            if wrong:
                suffered[-1][0].count(False, f"{suffered[-1][1]}: {wrong}")
                suffered.pop()
        code = attempt(spec, folder)
        good = code == 0 and digest(RunDirectory(folder)) == calm.digest
        for row, what in suffered:
            row.count(good, f"{what}: exit {code}, {'other bits' if code == 0 else said(folder)}")
        clean(folder)
    yield from (row for row in (anywhere, inside) if row.tried)


def _wrong(folder: Path, code: int, number: signal.Signals) -> str | None:
    """What must not be after one fault: an end of another kind, or a step that is neither in a checkpoint nor
    was in progress.
    """
    if code not in ((-number,) if number is signal.SIGKILL else (128 + number, -number)):
        return f"exit {code}: {said(folder)}"
    run = RunDirectory(folder)
    if (
        number is signal.SIGKILL
        or code != 128 + number
        or not run.metrics()
        or run.state()["state"] == "finished"
    ):
        return None
    logged = [row["step"] for row in run.metrics() if "loss" in row]
    kept, passed = manifest.newest_valid(run.checkpoints, run.state()["id"])
    if run.state()["state"] != "interrupted":
        return f"the state is {run.state()['state']}"
    if (
        logged
        and "goes on from checkpoint" in run.state()["error"]
        and (kept is None or passed or manifest.step_of(kept) != logged[-1])
    ):
        return f"steps {logged} were taken, and the checkpoint is {kept}"
    return None
