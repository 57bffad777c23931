"""Submits cells behind the jobs that they depend on, and recovers lost job numbers; nothing runs twice."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO

from ...runtime.errors import UserError
from ...runtime.files import write_json
from ..manifest import Cell, Submission, SubmissionKind, Sweep
from ..shared_work import SharedPass
from . import sbatch, slurm_queue


def recover_job_ids(sweep: Sweep) -> None:
    """Look up the jobs of a command that was killed before it could record their numbers.

    Needs the sweep's lock.
    """
    for submission in [submission for submission in sweep.submissions if submission.job_id is None]:
        job_id = slurm_queue.find_job_id(sbatch.job_name(sweep, submission), submission.created_at)
        if job_id:
            sweep.record_job_id(submission, job_id)
        else:
            sweep.submissions.remove(submission)
            sweep.write()


def submit_cells(
    sweep: Sweep,
    cells: Sequence[Cell],
    passes: Sequence[SharedPass],
    code_digest: str,
    lock: IO[str],
    *,
    canary: bool = False,
) -> list[Submission]:
    """Submit these cells behind the shared passes, and behind a canary if wanted. Needs the sweep's lock."""
    submissions: list[Submission] = []
    afterok: str | None = None

    def submit(kind: SubmissionKind, tasks: Sequence[object], names: list[str], nodes: int) -> str | None:
        submission = Submission(uuid.uuid4().hex[:6], kind, names, code_digest, nodes)
        _submit(sweep, submission, tasks, lock, afterok)
        submissions.append(submission)
        return submission.job_id

    if passes:
        first = next(cell for cell in cells if cell.name == passes[0].cell)
        tasks = [[asdict(shared_pass) for shared_pass in passes]]  # one task makes all of them
        afterok = submit("prewarm", tasks, ["prewarm"], first.nodes)
    if canary:
        afterok = submit("canary", [cells[0].name], ["canary"], cells[0].nodes)
    for nodes in sorted({cell.nodes for cell in cells}):
        for names in sbatch.split_into_arrays([cell.name for cell in cells if cell.nodes == nodes]):
            submit("cells", names, names, nodes)
    return submissions


def _submit(
    sweep: Sweep, submission: Submission, tasks: Sequence[object], lock: IO[str], afterok: str | None
) -> None:
    """Write the file that the job reads, record the submission, call sbatch, record the job's number."""
    write_json(
        sweep.submitit_dir / f"{submission.id}.json",
        {
            "kind": submission.kind,
            "tasks": list(tasks),
            "max_attempts": sweep.launcher_settings["max_attempts"],
        },
    )
    sweep.submissions.append(submission)
    sweep.write()
    try:
        job_id = sbatch.submit_array(sweep, submission, lock, afterok=afterok)
    except UserError:
        sweep.submissions.remove(submission)
        sweep.write()
        if afterok:
            slurm_queue.cancel([afterok])
        raise
    sweep.record_job_id(submission, job_id)
