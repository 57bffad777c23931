"""What is done to a sweep: a log read, cells ended, cells submitted again. Each says in a sentence what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from ..runtime.errors import UserError
from . import manifest, shared_work, snapshot
from .cell_status import cell_statuses
from .launchers import pool, sbatch, slurm_queue, submit
from .manifest import Cell, Sweep

DUE = ("failed", "interrupted", "missing")


def log(sweep: Sweep, cell: Cell) -> str:
    """What the cell, or its newest job that wrote anything, left."""
    files = (
        [pool.cell_log(cell.run(sweep.path))]
        if sweep.here
        else [sbatch.job_log(sweep, job) for job in reversed(cell.jobs)]
    )
    for file in files:
        if file.exists():
            return file.read_text(errors="replace")
    raise UserError(
        f"{cell.name}: nothing of it has been written yet; `python -m alignment_lab.sweep status {sweep.path}` says why."
    )


def cancel(sweep: Sweep, cells: Sequence[Cell]) -> str:
    """End what waits or runs of these cells, of all where none is named, and what only they wait for."""
    _on_slurm(sweep)
    found = cell_statuses(sweep)
    going = [
        cell
        for cell in cells or sweep.cells
        if found[cell.name].alive and found[cell.name].state != "finished"
    ]
    jobs = [cell.jobs[-1] for cell in going]
    if not cells:
        others = {f"{one.job}_0": one.job for one in sweep.submissions if one.kind != "cells" and one.job}
        jobs += [others[job] for job, one in slurm_queue.job_states(others).items() if one.alive]
    slurm_queue.cancel(jobs)
    return f"{len(going)} of {len(cells or sweep.cells)} cells were waiting or running, and are cancelled; `retry` goes on with them"


def retry(sweep: Sweep, cells: Sequence[Cell]) -> str:
    """Submit what failed, was cut off or never began, with the newest code that was frozen and what the sweep asked of Slurm."""
    _on_slurm(sweep)
    with manifest.sweep_lock(sweep.path) as lock:
        submit.find_lost(sweep)
        found = cell_statuses(sweep)
        due = [
            cell
            for cell in cells or sweep.cells
            if found[cell.name].state in DUE and not found[cell.name].alive
        ]
        if not due:
            return "nothing to submit: no cell has failed, was cut off or is missing"
        gone = [cell.name for cell in due if not cell.run(sweep.path).spec_file.exists()]
        if gone:
            raise UserError(f"{', '.join(gone)}: spec.yaml is gone; give the sweep's own command again.")
        code = next((one.code for one in reversed(sweep.submissions)), None)
        if code is None or not snapshot.snapshot_folder(sweep.path, code).is_dir():
            code = snapshot.snapshot_code(sweep.path)
        for cell in due:
            run = cell.run(sweep.path)
            run.mark_queued(run_id=cell.id, spec=run.spec_file.read_text())
        work = shared_work.shared_passes([(cell.name, *cell.share) for cell in due])  # type: ignore[misc]
        made = submit.submit(sweep, due, work, code, lock)
        sweep.write()
    return f"{len(due)} cells submitted: jobs {', '.join(str(one.job) for one in made)}"


def _on_slurm(sweep: Sweep) -> None:
    if sweep.here:
        raise UserError(
            f"{sweep.path}: its cells are processes of a command: Ctrl-C ends them, and the same command goes on with them."
        )
