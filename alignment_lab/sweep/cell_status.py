"""Where the cells of a sweep stand, from what their folders say and what Slurm says of their jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..runtime.files import is_locked
from ..runtime.run_directory import RunDirectory
from .launchers import slurm_queue
from .launchers.slurm_queue import Job
from .manifest import Cell, Sweep


@dataclass(frozen=True)
class CellStatus:
    """Where a cell stands."""

    state: str  # finished, running, queued, interrupted (was cut off), failed, missing (never began, and nothing waits)
    why: str = ""
    job: Job | None = None
    here: bool = False  # it runs or waits, and no job is needed for that

    @property
    def alive(self) -> bool:
        """Whether it waits or runs, or a job of it does."""
        return self.job.alive if self.job is not None else self.here


def cell_statuses(sweep: Sweep) -> dict[str, CellStatus]:
    """Where every cell stands. Raises UserError where Slurm does not answer."""
    if sweep.here:
        return local_statuses(sweep, waiting=is_locked(sweep.lock))
    jobs = slurm_queue.job_states(cell.jobs[-1] for cell in sweep.cells if cell.jobs)
    return {cell.name: slurm_statuses(cell.run(sweep.path), cell, jobs) for cell in sweep.cells}


def local_statuses(sweep: Sweep, *, waiting: bool) -> dict[str, CellStatus]:
    """Of a sweep whose cells are processes; `waiting`: a command is there that will start the others."""
    return {cell.name: _as_process(cell.run(sweep.path), cell, waiting) for cell in sweep.cells}


def slurm_statuses(run: RunDirectory, cell: Cell, jobs: dict[str, Job]) -> CellStatus:
    """Of a cell whose jobs are Slurm's."""
    known = run.state()
    job = jobs.get(cell.jobs[-1]) if cell.jobs else None
    state, error = known.get("state", "queued"), known.get("error") or ""
    if _finished(known, cell):
        return CellStatus("finished", job=job)
    if job and job.alive:
        running = job.state not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING")
        reason = (
            f"{error}; waits for another attempt"
            if error
            else ""
            if job.reason in ("None", "")
            else job.reason
        )
        return CellStatus("running" if running else "queued", "" if running else reason, job)
    ended = (
        f"Slurm: {job.state}{f' ({job.reason})' if job.reason not in ('', 'None') else ''}"
        if job
        else "no job of it is known to Slurm"
    )
    if state in ("failed", "interrupted"):
        return CellStatus(state, error or ended, job)
    if state == "running":
        return CellStatus("interrupted", f"cut off without a word; {ended}", job)
    return CellStatus("missing", ended if cell.jobs else "", job)


def _as_process(run: RunDirectory, cell: Cell, waiting: bool) -> CellStatus:
    known = run.state()
    state, error = known.get("state", "queued"), known.get("error") or ""
    if _finished(known, cell):
        return CellStatus("finished")
    if is_locked(run.lock):
        return CellStatus("running", here=True)
    if state in ("failed", "interrupted"):
        return CellStatus(state, error)
    if state == "running":
        return CellStatus("interrupted", "cut off without a word")
    return CellStatus("queued", here=True) if waiting else CellStatus("missing")


def _finished(known: dict[str, Any], cell: Cell) -> bool:
    return known.get("state") == "finished" and known.get("id") == cell.id
