"""sweep.json: the cells of a sweep, and what was submitted for them.

Reads and writes files; refuses to ask Slurm.

A submission is recorded before sbatch is called: after a kill in between, its job is found again by its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from ..runtime.errors import UserError
from ..runtime.files import exclusive_lock, read_json, utc_now, write_json
from ..runtime.run_directory import RunDirectory

LOCK = "lock"
SUBMITIT_DIR = ".submitit"  # scripts, logs and task files of the jobs; readable by the user alone

SubmissionKind = Literal["prewarm", "canary", "cells"]


@dataclass
class Cell:
    """One experiment of the sweep."""

    name: str  # its folder
    overrides: list[str]
    id: str
    nodes: int = 1
    shared_keys: list[str] = field(default_factory=list)  # see shared_work.shared_keys
    jobs: list[str] = field(default_factory=list)  # one for each submission, the newest last
    attempts: int = 0  # as of the last write; run.json is current

    def run_directory(self, sweep: Path) -> RunDirectory:
        """Its run directory."""
        return RunDirectory(sweep / self.name)


@dataclass
class Submission:
    """One call of sbatch: an array with one task for each cell.

    `job_id` is None until Slurm has returned it.
    """

    id: str
    kind: SubmissionKind
    cells: list[str]
    code_digest: str
    nodes: int = 1
    job_id: str | None = None
    created_at: str = field(default_factory=utc_now)


@dataclass
class Sweep:
    """The contents of sweep.json."""

    path: Path
    command: list[str] = field(default_factory=list)
    cwd: str = ""
    cache: str = ""
    launcher_settings: dict[str, Any] = field(default_factory=dict)  # plain values of hydra.launcher
    is_local: bool = False  # cells are processes of this machine, not Slurm jobs
    cells: list[Cell] = field(default_factory=list)
    submissions: list[Submission] = field(default_factory=list)

    @property
    def submitit_dir(self) -> Path:
        """The folder of scripts, logs and task files."""
        return self.path / SUBMITIT_DIR

    @property
    def lock(self) -> Path:
        """Held by the command that submits the cells or runs them."""
        return self.submitit_dir / LOCK

    def cell(self, name: str) -> Cell:
        """The cell with this name, id or number. Raises UserError where there is none."""
        matches = [cell for cell in self.cells if name in (cell.name, cell.id)]
        if matches:
            return matches[0]
        if name.isdigit() and int(name) < len(self.cells):
            return self.cells[int(name)]
        raise UserError(
            f"{name}: no such cell of {self.path}; give a name, an id or a number from "
            "`python -m alignment_lab.sweep status`."
        )

    def record_job_id(self, submission: Submission, job_id: str) -> None:
        """Record the number that Slurm gave the array; each cell gets the number of its own task."""
        submission.job_id = job_id
        if submission.kind == "cells":
            cells = {cell.name: cell for cell in self.cells}
            for index, name in enumerate(submission.cells):
                cells[name].jobs.append(f"{job_id}_{index}")
        self.write()

    def write(self) -> None:
        """Write sweep.json."""
        if len(self.cells) < 100:  # reading run.json of a thousand cells takes too long
            for cell in self.cells:
                cell.attempts = cell.run_directory(self.path).state().get("attempts", 0)
        fields = {key: value for key, value in asdict(self).items() if key != "path"}
        write_json(
            self.path / "sweep.json",
            {"name": self.path.name, "directory": str(self.path.absolute()), **fields},
        )


def read_sweep(path: Path) -> Sweep:
    """The sweep in a directory; an empty one where there is no sweep.json."""
    content = read_json(path / "sweep.json") or {}
    return Sweep(
        path,
        command=content.get("command", []),
        cwd=content.get("cwd", ""),
        cache=content.get("cache", ""),
        launcher_settings=content.get("launcher_settings", {}),
        is_local=content.get("is_local", False),
        cells=[Cell(**cell) for cell in content.get("cells", [])],
        submissions=[Submission(**submission) for submission in content.get("submissions", [])],
    )


@contextmanager
def sweep_lock(path: Path) -> Iterator[IO[str]]:
    """Hold the sweep's lock: no other command submits to it meanwhile.

    Raises UserError where another one holds it.

    A running sbatch inherits the lock and keeps it even when this process is killed.
    """
    folder = path / SUBMITIT_DIR
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    busy = f"{path}: another command is using this sweep; wait for it to end."
    with exclusive_lock(folder / LOCK, lambda: busy) as lock:
        os.set_inheritable(lock.fileno(), True)
        yield lock
