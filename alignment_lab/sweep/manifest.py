"""sweep.json: the cells of a sweep on a cluster, and what was submitted for them. Knows files and refuses to ask Slurm.

A submission is written down before it is made: who is killed in between finds it again by the name of its jobs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from ..runtime.errors import UserError
from ..runtime.files import exclusive_lock, read_json, utc_now, write_json
from ..runtime.run_directory import RunDirectory

LOCK = "lock"
ORDERS = ".submitit"  # scripts, logs, and what each job is to do: for the user alone


@dataclass
class Cell:
    """One experiment of the sweep."""

    name: str  # its folder
    overrides: list[str]
    id: str
    nodes: int = 1
    share: list[str] = field(default_factory=list)  # see shared.keys
    jobs: list[str] = field(default_factory=list)  # by submission, the newest last
    attempts: int = 0  # when this was written; run.json knows better

    def run(self, sweep: Path) -> RunDirectory:
        """Its directory."""
        return RunDirectory(sweep / self.name)


@dataclass
class Submission:
    """One call of sbatch, an array of these cells; `job` is null until Slurm has said its number."""

    mark: str
    kind: str  # cells, share or canary
    cells: list[str]
    code: str
    nodes: int = 1
    job: str | None = None
    when: str = field(default_factory=utc_now)


@dataclass
class Sweep:
    """All that is known of a sweep."""

    path: Path
    command: list[str] = field(default_factory=list)
    cwd: str = ""
    cache: str = ""
    launcher: dict[str, Any] = field(default_factory=dict)
    here: bool = False  # its cells are processes of this machine, no jobs
    cells: list[Cell] = field(default_factory=list)
    submissions: list[Submission] = field(default_factory=list)

    @property
    def orders(self) -> Path:
        """Where scripts and logs lie."""
        return self.path / ORDERS

    @property
    def lock(self) -> Path:
        """Held by the command that submits its cells, or runs them."""
        return self.orders / LOCK

    def cell(self, name: str) -> Cell:
        """The cell of that name, or id, or number."""
        by_id = [one for one in self.cells if name in (one.name, one.id)]
        if by_id:
            return by_id[0]
        if name.isdigit() and int(name) < len(self.cells):
            return self.cells[int(name)]
        raise UserError(
            f"{name}: no such cell of {self.path}; give a name, an id or a number of `python -m alignment_lab.sweep status`."
        )

    def told(self, submission: Submission, job: str) -> None:
        """Slurm has said the number of its jobs."""
        submission.job = job
        if submission.kind == "cells":
            cells = {cell.name: cell for cell in self.cells}
            for place, name in enumerate(submission.cells):
                cells[name].jobs.append(f"{job}_{place}")
        self.write()

    def write(self) -> None:
        """Write sweep.json."""
        for cell in self.cells:
            cell.attempts = (
                cell.run(self.path).state().get("attempts", 0) if len(self.cells) < 100 else cell.attempts
            )
        plain = {key: value for key, value in asdict(self).items() if key != "path"}
        write_json(
            self.path / "sweep.json",
            {"name": self.path.name, "directory": str(self.path.absolute()), **plain},
        )


def read_sweep(path: Path) -> Sweep:
    """The sweep in a directory; an empty one where there is no sweep.json."""
    plain = read_json(path / "sweep.json") or {}
    return Sweep(
        path,
        command=plain.get("command", []),
        cwd=plain.get("cwd", ""),
        cache=plain.get("cache", ""),
        launcher=plain.get("launcher", {}),
        here=plain.get("here", False),
        cells=[Cell(**one) for one in plain.get("cells", [])],
        submissions=[Submission(**one) for one in plain.get("submissions", [])],
    )


@contextmanager
def sweep_lock(path: Path) -> Iterator[IO[str]]:
    """Nobody else submits to this sweep meanwhile. An sbatch that is on its way holds it too, though we be killed."""
    (path / ORDERS).mkdir(parents=True, exist_ok=True)
    os.chmod(path / ORDERS, 0o700)
    with exclusive_lock(
        path / ORDERS / LOCK, lambda: f"{path}: another command has this sweep now; wait for it."
    ) as lock:
        os.set_inheritable(lock.fileno(), True)
        yield lock
