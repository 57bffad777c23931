"""A run's checkpoints: room before a save, a name when all of it is there, and no more of them than the user
wants.
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
    notice: Callable[[str], None]  # prints a line
    last_saved_step: int | None = None
    size: int = field(default=0, repr=False)  # bytes of a checkpoint, as soon as there is one

    def find_latest(self) -> Path | None:
        """The checkpoint to continue from, the same for every process; each one that is passed over is named.

        Metrics that were logged after it are dropped: the steps are taken again.
        """
        checkpoint: Path | None = None
        if ranks.is_main_process():
            checkpoint, skipped = manifest.newest_valid(self.run.checkpoints, self.run_id)
            for sentence in skipped:
                self.notice(sentence)
            if checkpoint is None and skipped:
                self.notice("no checkpoint is whole: starting from the first step")
            if checkpoint is not None:
                self.notice(f"resuming from {checkpoint}")
            self.run.truncate_metrics(manifest.step_of(checkpoint) if checkpoint else 0)
        checkpoint = collectives.broadcast(checkpoint)
        self.last_saved_step = manifest.step_of(checkpoint) if checkpoint else None
        return checkpoint

    @contextmanager
    def saving(self, step: int, trained: int) -> Iterator[Path]:
        """The folder to write a checkpoint of `trained` weights into. Every process together.

        Raises RunError where the disk has no room, before the first byte or in between; nothing of it is left
        then.
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
        """Declare complete what all processes wrote, then delete the oldest. By the main process, when all
        are done.
        """
        name = f"checkpoint-{step}"
        final = self.run.checkpoints / name
        manifest.commit(
            self.run.partial / name, final, run_id=self.run_id, step=step, world=ranks.world_size()
        )
        self.size = sum(file.stat().st_size for file in final.rglob("*") if file.is_file())
        manifest.rotate(self.run.checkpoints, self.limit, self.run_id)

    def continue_hint(self, step: int) -> str:
        """The end of a sentence: how to continue from a step's checkpoint."""
        command = f"the same command with hydra.run.dir={self.run.path}"
        return f" at step {step}; {command} goes on from checkpoint-{step}"

    def _no_room(self, needed: int, step: int) -> str:
        kept = (
            f"checkpoint-{self.last_saved_step} stays good"
            if self.last_saved_step
            else "there is no checkpoint yet"
        )
        what = f"step {step} wants a checkpoint of about {needed / 1e6:,.0f} MB ({kept}), and "
        return disk_full_message(self.run.path, what)
