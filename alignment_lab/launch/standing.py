"""Where the cells of a sweep stand, from what their folders say and what Slurm says of their jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..artifacts import RunDirectory, held
from . import queue
from .manifest import Cell, Sweep
from .queue import Job


@dataclass(frozen=True)
class Standing:
    """Where a cell stands."""

    state: str  # finished, running, queued, interrupted (was cut off), failed, missing (never began, and nothing waits)
    why: str = ""
    job: Job | None = None
    here: bool = False  # it runs or waits, and no job is needed for that

    @property
    def alive(self) -> bool:
        """Whether it waits or runs, or a job of it does."""
        return self.job.alive if self.job is not None else self.here


def standings(sweep: Sweep) -> dict[str, Standing]:
    """Where every cell stands. Raises UserError where Slurm does not answer."""
    if sweep.here:
        return on_this_machine(sweep, waiting=held(sweep.lock))
    jobs = queue.states(cell.jobs[-1] for cell in sweep.cells if cell.jobs)
    return {cell.name: in_queue(cell.run(sweep.path), cell, jobs) for cell in sweep.cells}


def on_this_machine(sweep: Sweep, *, waiting: bool) -> dict[str, Standing]:
    """Of a sweep whose cells are processes; `waiting`: a command is there that will start the others."""
    return {cell.name: _as_process(cell.run(sweep.path), cell, waiting) for cell in sweep.cells}


def in_queue(run: RunDirectory, cell: Cell, jobs: dict[str, Job]) -> Standing:
    """Of a cell whose jobs are Slurm's."""
    known = run.state()
    job = jobs.get(cell.jobs[-1]) if cell.jobs else None
    state, error = known.get("state", "queued"), known.get("error") or ""
    if _finished(known, cell):
        return Standing("finished", job=job)
    if job and job.alive:
        running = job.state not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING")
        reason = f"{error}; waits for another attempt" if error else "" if job.reason in ("None", "") else job.reason
        return Standing("running" if running else "queued", "" if running else reason, job)
    ended = f"Slurm: {job.state}{f' ({job.reason})' if job.reason not in ('', 'None') else ''}" if job else "no job of it is known to Slurm"
    if state in ("failed", "interrupted"):
        return Standing(state, error or ended, job)
    if state == "running":
        return Standing("interrupted", f"cut off without a word; {ended}", job)
    return Standing("missing", ended if cell.jobs else "", job)


def _as_process(run: RunDirectory, cell: Cell, waiting: bool) -> Standing:
    known = run.state()
    state, error = known.get("state", "queued"), known.get("error") or ""
    if _finished(known, cell):
        return Standing("finished")
    if held(run.lock):
        return Standing("running", here=True)
    if state in ("failed", "interrupted"):
        return Standing(state, error)
    if state == "running":
        return Standing("interrupted", "cut off without a word")
    return Standing("queued", here=True) if waiting else Standing("missing")


def _finished(known: dict[str, Any], cell: Cell) -> bool:
    return known.get("state") == "finished" and known.get("id") == cell.id
