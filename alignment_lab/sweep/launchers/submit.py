"""What of a sweep is to be submitted, and its submission: only what is missing, was cut off or has failed, and nothing twice."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO

from ...runtime.errors import UserError
from ...runtime.files import write_json
from ..manifest import Cell, Submission, Sweep
from ..shared_work import SharedPass
from . import sbatch, slurm_queue


def find_lost(sweep: Sweep) -> None:
    """Look up what a command submitted that was killed before it could write the number down. Under the sweep's lock."""
    for one in [one for one in sweep.submissions if one.job is None]:
        if number := slurm_queue.find_job(sbatch.job_name(sweep, one), one.when):
            sweep.told(one, number)
        else:
            sweep.submissions.remove(one)
            sweep.write()


def submit(
    sweep: Sweep,
    cells: Sequence[Cell],
    work: Sequence[SharedPass],
    code: str,
    lock: IO[str],
    *,
    canary: bool = False,
) -> list[Submission]:
    """Submit these cells behind what they share, and behind a canary if asked. Under the sweep's lock."""
    made = []
    after: str | None = None
    if work:
        first = next(cell for cell in cells if cell.name == work[0].cell)
        made.append(
            _submit(
                sweep, "share", [[asdict(one) for one in work]], ["shared"], code, first.nodes, lock, None
            )
        )
        after = made[-1].job
    if canary:
        made.append(_submit(sweep, "canary", [cells[0].name], ["canary"], code, cells[0].nodes, lock, after))
        after = made[-1].job
    for nodes in sorted({cell.nodes for cell in cells}):
        for names in sbatch.chunks([cell.name for cell in cells if cell.nodes == nodes]):
            made.append(_submit(sweep, "cells", names, names, code, nodes, lock, after))
    return made


def _submit(
    sweep: Sweep,
    kind: str,
    tasks: Sequence[object],
    names: list[str],
    code: str,
    nodes: int,
    lock: IO[str],
    after: str | None,
) -> Submission:
    one = Submission(uuid.uuid4().hex[:6], kind, names, code, nodes)
    write_json(
        sweep.orders / f"{one.mark}.json",
        {"kind": kind, "tasks": list(tasks), "max_attempts": sweep.launcher["max_attempts"]},
    )
    sweep.submissions.append(one)
    sweep.write()
    try:
        number = sbatch.submit(sweep, one, lock, after=after)
    except UserError:
        sweep.submissions.remove(one)
        sweep.write()
        if after:
            slurm_queue.cancel([after])
        raise
    sweep.told(one, number)
    return one
