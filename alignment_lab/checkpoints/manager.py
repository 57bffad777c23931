"""Keeps a run's checkpoints: room before a save, a name after it, and no more of them than the user wants."""

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


@dataclass
class CheckpointManager:
    """The checkpoints of one run."""

    run: RunDirectory
    run_id: str
    limit: int
    notice: Callable[[str], None]
    last_saved_step: int | None = None  # the step of the newest
    size: int = field(default=0, repr=False)  # bytes of one, as soon as there is one

    def find_latest(self) -> Path | None:
        """The one to go on from, the same for every process; what had to be passed over is said."""
        found: Path | None = None
        if ranks.is_main_process():
            found, passed = manifest.newest_valid(self.run.checkpoints, self.run_id)
            for sentence in passed:
                self.notice(sentence)
            if found is None and passed:
                self.notice("no checkpoint is whole: starting from the first step")
        found = collectives.broadcast(found)
        self.last_saved_step = manifest.step_of(found) if found else None
        return found

    @contextmanager
    def saving(self, step: int, trained: int) -> Iterator[None]:
        """Around a save of `trained` weights, each with the two numbers that Adam remembers. Raises RunError where there is no room."""
        needed = self.size or 12 * trained
        wrong = self._no_room(needed, step) if ranks.is_main_process() and free_bytes(self.run.path) < needed else None
        if told := collectives.broadcast(wrong):
            raise RunError(told)
        try:
            yield
        except Exception as error:
            if not disk_is_full(error):
                raise
            raise RunError(self._no_room(needed, step)) from None
        finally:
            if ranks.is_main_process():
                shutil.rmtree(self.run.partial / f"checkpoint-{step}", ignore_errors=True)
        self.last_saved_step = step

    def commit(self, step: int) -> None:
        """Give what all processes wrote its name, then drop the oldest. The first process alone, when all are done."""
        name = f"checkpoint-{step}"
        final = self.run.checkpoints / name
        manifest.commit(
            self.run.partial / name, final, run_id=self.run_id, step=step, world=ranks.world_size()
        )
        self.size = sum(file.stat().st_size for file in final.rglob("*") if file.is_file())
        manifest.rotate(self.run.checkpoints, self.limit, self.run_id)

    def _no_room(self, needed: int, step: int) -> str:
        kept = f"checkpoint-{self.last_saved_step} stays good" if self.last_saved_step else "there is no checkpoint yet"
        return disk_full_message(
            self.run.path, f"step {step} wants a checkpoint of about {needed / 1e6:,.0f} MB ({kept}), and "
        )
