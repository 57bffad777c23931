"""Actions on a sweep: read a log, cancel cells, submit cells again. Each returns text for the user."""

from __future__ import annotations

from collections.abc import Sequence

from ..runtime.errors import UserError
from . import manifest, shared_work, snapshot
from .cell_status import cell_statuses
from .launchers import pool, sbatch, slurm_queue, submit
from .manifest import Cell, Sweep

RETRIED_STATES = ("failed", "interrupted", "missing")


def read_log(sweep: Sweep, cell: Cell) -> str:
    """The output of the cell's process, or of its newest job that wrote any."""
    if sweep.is_local:
        logs = [pool.cell_log(cell.run_directory(sweep.path))]
    else:
        logs = [sbatch.job_log(sweep, job_id) for job_id in reversed(cell.jobs)]
    for log in logs:
        if log.exists():
            return log.read_text(errors="replace")
    raise UserError(
        f"{cell.name}: it has written nothing yet; "
        f"`python -m alignment_lab.sweep status {sweep.path}` says why."
    )


def cancel(sweep: Sweep, cells: Sequence[Cell]) -> str:
    """Cancel the cells that wait or run; without `cells`, all of them, and the jobs that they depend on."""
    _require_slurm(sweep)
    statuses = cell_statuses(sweep)
    active = [
        cell
        for cell in cells or sweep.cells
        if statuses[cell.name].is_active and statuses[cell.name].state != "finished"
    ]
    job_ids = [cell.jobs[-1] for cell in active]
    if not cells:
        job_ids += _active_auxiliary_jobs(sweep)
    slurm_queue.cancel(job_ids)
    return (
        f"{len(active)} of {len(cells or sweep.cells)} cells were pending or running, and are cancelled; "
        "`retry` resumes them"
    )


def _active_auxiliary_jobs(sweep: Sweep) -> list[str]:
    """The prewarm and canary jobs that wait or run."""
    job_ids = {
        f"{submission.job_id}_0": submission.job_id  # the only task of its array
        for submission in sweep.submissions
        if submission.kind != "cells" and submission.job_id
    }
    return [job_ids[task] for task, job in slurm_queue.query_jobs(job_ids).items() if job.is_active]


def retry(sweep: Sweep, cells: Sequence[Cell]) -> str:
    """Submit cells that failed, were interrupted or never started, with the sweep's newest code."""
    _require_slurm(sweep)
    with manifest.sweep_lock(sweep.path) as lock:
        submit.recover_job_ids(sweep)
        statuses = cell_statuses(sweep)
        due = [
            cell
            for cell in cells or sweep.cells
            if statuses[cell.name].state in RETRIED_STATES and not statuses[cell.name].is_active
        ]
        if not due:
            return "nothing to submit: no cell has failed, was interrupted or is missing"
        _require_specs(sweep, due)
        code_digest = _newest_snapshot(sweep)
        for cell in due:
            run = cell.run_directory(sweep.path)
            run.mark_queued(run_id=cell.id, spec=run.spec_file.read_text())
        passes = shared_work.shared_passes([(cell.name, *cell.shared_keys) for cell in due])  # type: ignore[misc]
        submissions = submit.submit_cells(sweep, due, passes, code_digest, lock)
        sweep.write()
    return f"{len(due)} cells submitted: jobs {', '.join(str(each.job_id) for each in submissions)}"


def _require_specs(sweep: Sweep, cells: Sequence[Cell]) -> None:
    missing = [cell.name for cell in cells if not cell.run_directory(sweep.path).spec_file.exists()]
    if missing:
        raise UserError(f"{', '.join(missing)}: spec.yaml is missing; give the sweep's own command again.")


def _newest_snapshot(sweep: Sweep) -> str:
    """The digest of the code that was submitted last; of the present code where that copy is gone."""
    digest = next((submission.code_digest for submission in reversed(sweep.submissions)), None)
    if digest is None or not snapshot.snapshot_folder(sweep.path, digest).is_dir():
        return snapshot.snapshot_code(sweep.path)
    return digest


def _require_slurm(sweep: Sweep) -> None:
    if sweep.is_local:
        raise UserError(
            f"{sweep.path}: its cells are local processes of a command: Ctrl-C interrupts them, "
            "and the same command resumes them."
        )
