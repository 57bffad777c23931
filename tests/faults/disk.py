"""A file system that is full: a sentence, what was saved before stays good, and the same command goes on when
there is room.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from harness import Row, at_event, attempt, clean, digest, events, said

from alignment_lab.config import Experiment
from alignment_lab.runtime.run_directory import RunDirectory

SENTENCES = {
    1: "the disk is full",
    2: "are free in",
}  # by exit code: a run that cannot fit is refused before it starts
ROOM = "400m"  # enough for three tiny checkpoints and the model


def can_mount() -> bool:
    """Whether this user may make a small file system."""
    return (
        os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    )


@contextmanager
def small(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Use up all but about `leave` bytes."""
    free = os.statvfs(folder)
    size = free.f_bavail * free.f_frsize - leave
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        for _ in range(max(0, size) // 2**12):
            file.write(bytes(2**12))
    return ballast


def at_a_step(disk: Path, step: int, leave: int) -> None:
    """Full before the step, so that the look before the next save sees it."""
    from alignment_lab.training.callbacks import LeaveWhenAsked

    def on_step_begin(self, arguments, state, control, **_):
        if state.global_step == step:
            fill(disk, leave)

    LeaveWhenAsked.on_step_begin = on_step_begin


def at_an_event(disk: Path, number: int, leave: int) -> None:
    """Full in the middle of a save, so that a write finds it out."""
    at_event(number, lambda: fill(disk, leave))


def campaign(spec: Experiment, folder: Path, quick: bool) -> Iterator[Row]:
    """Full before a save, at every few points inside of the first two, and under the caches."""
    calm_folder = folder / "calm"
    listed = events(spec, calm_folder)
    calm = digest(RunDirectory(calm_folder))
    points = range(1, 2 * len(listed) // 3, len(listed) // 4 if quick else 2)
    seen, found = Row("full disk, seen before a save"), Row("full disk, found by a write")
    tries = [(seen, partial(at_a_step, step=step)) for step in (0, 1, 3)] + [
        (found, partial(at_an_event, number=n)) for n in points
    ]
    for row, full in tries:
        for leave in (0,) if quick else (0, 3 * 2**20):
            with small(folder / "disk", ROOM) as disk:
                run = RunDirectory(disk / "run")
                code = attempt(
                    spec, run.path, before=lambda disk=disk, full=full, leave=leave: full(disk, leave=leave)
                )
                told = said(run.path)
                good = "Traceback" not in told and (code == 0 or SENTENCES.get(code, told + ".") in told)
                (disk / "ballast").unlink()
                again = attempt(spec, run.path)
                row.count(
                    good and again == 0 and digest(run) == calm, f"{full}: exit {code}, then {again}: {told}"
                )
    yield from (seen, found)
    row = Row("full disk under the caches")
    for leave in (0, 4096, 65536):
        with small(folder / "disk", "16m") as disk:
            ballast = fill(disk, leave)
            run = RunDirectory(folder / "cached")
            clean(run.path)
            code = attempt(spec, run.path, before=lambda disk=disk: _cache(disk))
            told = said(run.path)
            good = (
                code in (0, 2) and "Traceback" not in told
            )  # tokens are made again; the reference store needs its room, and says so
            ballast.unlink()
            again = attempt(spec, run.path, before=lambda disk=disk: _cache(disk))
            row.count(
                good and again == 0 and digest(run) == calm,
                f"{leave} bytes left: exit {code}, then {again}: {told}",
            )
    yield row


def _cache(disk: Path) -> None:
    models = Path(os.environ["ALIGNMENT_LAB_CACHE"]) / "models"
    os.environ["ALIGNMENT_LAB_CACHE"] = str(disk)
    if not (disk / "models").exists():
        (disk / "models").symlink_to(models)
