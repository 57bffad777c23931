"""A sweep's command in a folder of its own, given to a real Slurm, and what becomes of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment_lab.runtime.files import file_digest
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.sweep import manifest
from alignment_lab.sweep.cell_status import CellStatus, cell_statuses

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "model=tiny",
    "parallel.device=cpu",
    "data.max_length=96",
    "training.global_batch=4",
    "eval.rows=4",
    "eval.generations=0",
]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.timeout_min=30", "hydra.launcher.cpus_per_task=1"]
PATIENCE = 900  # seconds for a sweep to end: other work may have the machine


class Sweep:
    """A sweep's command in a folder of its own, and what becomes of it."""

    def __init__(self, folder: Path, *words: str, lab: Path = ROOT) -> None:
        self.folder, self.lab, self.path = folder, lab, folder / "sweep"
        self.words = [*TINY, *SLURM, "hydra.sweep.dir=sweep", *words]
        self.environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "ALIGNMENT_LAB_CACHE": str(own_cache(folder)),
        }

    def python(self, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
        environment = self.environment | {
            "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
        }
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )

    def give(self, *more: str, path: str = "") -> subprocess.CompletedProcess[str]:
        """The command."""
        return self.python(str(self.lab / "train.py"), "--multirun", *self.words, *more, path=path)

    def here(self, *more: str) -> subprocess.CompletedProcess[str]:
        """The same cells without Slurm and without checkpoints, one after the other, in a folder beside."""
        words = [word for word in self.words if "launcher" not in word and "sweep.dir" not in word]
        self.path = self.folder / "alone"
        return self.python(
            str(self.lab / "train.py"),
            "--multirun",
            *words,
            "training.save_steps=null",
            "hydra.sweep.dir=alone",
            *more,
        )

    def ask(self, *words: str) -> str:
        done = self.python("-m", "alignment_lab.sweep", words[0], "sweep", *words[1:])
        assert done.returncode != 2, done.stderr
        return done.stdout

    @property
    def known(self) -> manifest.Sweep:
        return manifest.read_sweep(self.path)

    def run(self, name: str) -> RunDirectory:
        return RunDirectory(self.path / name)

    @property
    def runs(self) -> list[RunDirectory]:
        return [self.run(cell.name) for cell in self.known.cells]

    def until(self, true: Callable[[], Any], within: float = PATIENCE) -> Any:
        """Wait, and fail with the table where it takes too long."""
        end = time.monotonic() + within
        while not (found := true()):
            assert time.monotonic() < end, f"not within {within} s:\n{self.ask('status')}"
            time.sleep(0.2)
        return found

    def ended(self) -> dict[str, CellStatus]:
        """Where cells stand when no job waits or runs."""

        def over() -> Any:
            found = cell_statuses(self.known)
            return found if not any(one.alive for one in found.values()) else None

        found = self.until(over)
        assert isinstance(found, dict)
        return found

    def log(self, name: str) -> str:
        """All that its jobs wrote."""
        jobs = self.known.cell(name).jobs
        return "".join(
            path.read_text() for job in jobs for path in (self.path / ".submitit").glob(f"{job}_*.out")
        )

    def weights(self, name: str) -> str:
        return file_digest(self.run(name).model / "model.safetensors")

    def stepping(self, name: str, steps: int) -> bool:
        """Whether so many steps were taken, and a job of it runs."""
        run = self.run(name)
        return run.state().get("state") == "running" and len(run.metrics()) >= steps


def own_cache(folder: Path) -> Path:
    """A cache without references and tokens, with the weights that tests have."""
    found = folder / "cache"
    if not found.exists():
        found.mkdir()
        (found / "models").symlink_to(Path(os.environ["ALIGNMENT_LAB_CACHE"]) / "models")
    return found
