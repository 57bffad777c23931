"""Manages a run's checkpoints: checks the disk before a save, commits it, and deletes the oldest.

Knows folders and steps. Refuses to know what is in a checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..distributed import collectives, ranks
from ..runtime.disk import disk_full_message, disk_is_full, free_bytes
from ..runtime.errors import RunError
from ..runtime.run_directory import RunDirectory
from . import manifest

BYTES_PER_WEIGHT = 12  # float32, with Adam's two moments


@dataclass
class CheckpointManager:
    """The checkpoints of one run."""

    run: RunDirectory
    run_id: str
    limit: int
    notify: Callable[[str], None]  # prints a line
    last_saved_step: int | None = None
    size: int = field(default=0, repr=False)  # bytes of a checkpoint, once there is one

    def find_latest(self) -> Path | None:
        """The checkpoint to resume from, the same for every process; a line is printed for each skipped one.

        Metrics that were logged after it are dropped: the steps are taken again.
        """
        checkpoint: Path | None = None
        if ranks.is_main_process():
            manifest.finish_deletions(self.run.checkpoints)
            checkpoint, skipped = manifest.newest_valid(self.run.checkpoints, self.run_id)
            for sentence in skipped:
                self.notify(sentence)
            if checkpoint is None and skipped:
                self.notify("no checkpoint is valid: starting from the first step")
            if checkpoint is not None:
                self.notify(f"resuming from {checkpoint}")
            self.run.truncate_metrics(manifest.step_of(checkpoint) if checkpoint else 0)
        checkpoint = collectives.broadcast(checkpoint)
        self.last_saved_step = manifest.step_of(checkpoint) if checkpoint else None
        return checkpoint

    @contextmanager
    def saving(self, step: int, trained: int) -> Iterator[Path]:
        """The folder to write a checkpoint with `trained` weights into. All processes must enter it together.

        Raises RunError where the disk is full, before or during the save; then the partial folder is deleted.
        """
        folder = self.run.partial / f"checkpoint-{step}"
        needed = self.size or BYTES_PER_WEIGHT * trained
        problem = None
        if ranks.is_main_process() and free_bytes(self.run.path) < needed:
            problem = self._no_room(needed, step)
        if problem := collectives.broadcast(problem):
            raise RunError(problem)
        try:
            yield folder
        except Exception as error:
            if not disk_is_full(error):
                raise
            raise RunError(self._no_room(needed, step)) from None
        finally:
            if ranks.is_main_process():
                shutil.rmtree(folder, ignore_errors=True)
        self.last_saved_step = step

    def commit(self, step: int) -> None:
        """Commit what all processes wrote, then delete the oldest. For rank 0 alone, when all are done."""
        name = f"checkpoint-{step}"
        final = self.run.checkpoints / name
        kept = manifest.commit(
            self.run.partial / name, final, run_id=self.run_id, step=step, world_size=ranks.world_size()
        )
        if kept is not None:
            self.notify(f"{kept}: was {name}, which this run did not write: set aside")
        self.size = sum(file.stat().st_size for file in final.rglob("*") if file.is_file())
        manifest.rotate(self.run.checkpoints, self.limit, self.run_id)

    def continue_hint(self, step: int) -> str:
        """The end of a sentence: how to resume from a step's checkpoint."""
        command = f"the same command with hydra.run.dir={self.run.path}"
        return f" at step {step}; {command} resumes from checkpoint-{step}"

    def _no_room(self, needed: int, step: int) -> str:
        last = self.last_saved_step
        kept = f"checkpoint-{last} stays valid" if last else "there is no checkpoint yet"
        needs = f"the checkpoint of step {step} needs about {needed / 1e6:,.0f} MB ({kept}), and "
        return disk_full_message(self.run.path, needs)
