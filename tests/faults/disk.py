"""Full disks: one error message, earlier checkpoints stay valid, the same command resumes with free space."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from harness import Row, attempt, digest, last_output, list_save_events, remove_run, run_at_event

from alignment_lab.config import Experiment
from alignment_lab.runtime.run_directory import RunDirectory

# by exit code: 2 is a run that cannot fit, which does not start
MESSAGES = {1: "the disk is full", 2: "are free in"}
DISK_SIZE = "400m"  # enough for three tiny checkpoints and the model


def can_mount() -> bool:
    """Whether this user may mount a small file system."""
    return (
        os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    )


@contextmanager
def mounted_tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of this size at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, free_bytes: int) -> Path:
    """Use up all but about `free_bytes` bytes; returns the file to delete."""
    stats = os.statvfs(folder)
    size = stats.f_bavail * stats.f_frsize - free_bytes
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        for _ in range(max(0, size) // 2**12):
            file.write(bytes(2**12))
    return ballast


def fill_before_step(disk: Path, step: int, free_bytes: int) -> None:
    """Fill the disk before a step, so that the check before the next save finds it full."""
    from alignment_lab.training.callbacks import MetricsLog

    def on_step_begin(self, state):
        if state.step == step:
            fill(disk, free_bytes)

    MetricsLog.on_step_begin = on_step_begin


def fill_at_event(disk: Path, index: int, free_bytes: int) -> None:
    """Fill the disk in the middle of a save, so that a write fails."""
    run_at_event(index, lambda: fill(disk, free_bytes))


def campaign(spec: Experiment, folder: Path, quick: bool) -> Iterator[Row]:
    """Full before a save, at every few file events of the first two saves, and under the caches."""
    undisturbed_folder = folder / "calm"
    save_events = list_save_events(spec, undisturbed_folder)
    expected_digest = digest(RunDirectory(undisturbed_folder))
    points = range(1, 2 * len(save_events) // 3, len(save_events) // 3 if quick else 2)
    before_save, during_write = Row("full disk, seen before a save"), Row("full disk, found by a write")
    tries = [
        (before_save, partial(fill_before_step, step=step)) for step in ((0, 3) if quick else (0, 1, 3))
    ] + [(during_write, partial(fill_at_event, index=index)) for index in points]
    for row, fill_disk in tries:
        for free_bytes in (0,) if quick else (0, 3 * 2**20):
            with mounted_tmpfs(folder / "disk", DISK_SIZE) as disk:
                run = RunDirectory(disk / "run")
                code = attempt(spec, run.path, before=partial(fill_disk, disk, free_bytes=free_bytes))
                output = last_output(run.path)
                has_message = code == 0 or MESSAGES.get(code, output + ".") in output
                is_clear = has_message and "Traceback" not in output
                (disk / "ballast").unlink()
                second_code = attempt(spec, run.path)
                row.count(
                    is_clear and second_code == 0 and digest(run) == expected_digest,
                    f"{fill_disk}: exit {code}, then {second_code}: {output}",
                )
    yield from (before_save, during_write)
    row = Row("full disk under the caches")
    for free_bytes in (0, 65536) if quick else (0, 4096, 65536):
        with mounted_tmpfs(folder / "disk", "16m") as disk:
            ballast = fill(disk, free_bytes)
            run = RunDirectory(folder / "cached")
            remove_run(run.path)
            code = attempt(spec, run.path, before=lambda disk=disk: _use_cache(disk))
            output = last_output(run.path)
            # 0: tokens are computed again. 2: the reference cache does not fit, and the message says so.
            is_clear = code in (0, 2) and "Traceback" not in output
            ballast.unlink()
            second_code = attempt(spec, run.path, before=lambda disk=disk: _use_cache(disk))
            row.count(
                is_clear and second_code == 0 and digest(run) == expected_digest,
                f"{free_bytes} bytes left: exit {code}, then {second_code}: {output}",
            )
    yield row


def _use_cache(disk: Path) -> None:
    models = Path(os.environ["ALIGNMENT_LAB_CACHE"]) / "models"
    os.environ["ALIGNMENT_LAB_CACHE"] = str(disk)
    if not (disk / "models").exists():
        (disk / "models").symlink_to(models)
