"""The status of each cell of a sweep, from its run directory and from Slurm's answer about its job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..runtime.files import is_locked
from ..runtime.run_directory import RunDirectory
from .launchers import slurm_queue
from .launchers.slurm_queue import SlurmJob
from .manifest import Cell, Sweep

LOST = "ended without writing a reason"  # its process was killed, or its node lost


@dataclass(frozen=True)
class CellStatus:
    """The status of one cell."""

    state: str  # finished, running, queued, interrupted, failed, or missing: nothing started it or will
    reason: str = ""  # why it waits or ended
    job: SlurmJob | None = None
    process_active: bool = False  # a local process runs it, or will start it

    @property
    def is_active(self) -> bool:
        """Whether it, or a job of it, waits or runs."""
        return self.job.is_active if self.job is not None else self.process_active


def cell_statuses(sweep: Sweep) -> dict[str, CellStatus]:
    """The status of every cell, by name. Raises UserError where Slurm does not answer."""
    if sweep.is_local:
        return local_statuses(sweep, launcher_running=is_locked(sweep.lock))
    jobs = slurm_queue.query_jobs(cell.jobs[-1] for cell in sweep.cells if cell.jobs)
    return {cell.name: slurm_status(cell.run_directory(sweep.path), cell, jobs) for cell in sweep.cells}


def local_statuses(sweep: Sweep, *, launcher_running: bool) -> dict[str, CellStatus]:
    """The statuses of cells that are local processes; a running launcher will start the queued ones."""
    return {
        cell.name: _local_status(cell.run_directory(sweep.path), cell, launcher_running)
        for cell in sweep.cells
    }


def slurm_status(run: RunDirectory, cell: Cell, jobs: Mapping[str, SlurmJob]) -> CellStatus:
    """The status of a cell that is a Slurm job; `jobs` by number."""
    run_state = run.state()
    job = jobs.get(cell.jobs[-1]) if cell.jobs else None
    state, error = run_state.get("state", "queued"), run_state.get("error") or ""
    if _is_finished(run_state, cell):
        return CellStatus("finished", job=job)
    if job and job.is_active:
        return _active_status(job, error)
    end = _describe_end(job)
    if state in ("failed", "interrupted"):
        return CellStatus(state, error or end, job)
    if state == "running":
        return CellStatus("interrupted", f"{LOST}; {end}", job)
    return CellStatus("missing", end if cell.jobs else "", job)


def _active_status(job: SlurmJob, error: str) -> CellStatus:
    if job.state not in slurm_queue.WAITING_STATES:
        return CellStatus("running", "", job)
    reason = f"{error}; waiting for another attempt" if error else slurm_queue.given_reason(job)
    return CellStatus("queued", reason, job)


def _describe_end(job: SlurmJob | None) -> str:
    if job is None:
        return "Slurm knows no job of it"
    reason = slurm_queue.given_reason(job)
    return f"Slurm: {job.state}{f' ({reason})' if reason else ''}"


def _local_status(run: RunDirectory, cell: Cell, launcher_running: bool) -> CellStatus:
    run_state = run.state()
    state, error = run_state.get("state", "queued"), run_state.get("error") or ""
    if _is_finished(run_state, cell):
        return CellStatus("finished")
    if is_locked(run.lock):
        return CellStatus("running", process_active=True)
    if state in ("failed", "interrupted"):
        return CellStatus(state, error)
    if state == "running":
        return CellStatus("interrupted", LOST)
    return CellStatus("queued", process_active=True) if launcher_running else CellStatus("missing")


def _is_finished(run_state: dict[str, Any], cell: Cell) -> bool:
    return run_state.get("state") == "finished" and run_state.get("id") == cell.id
