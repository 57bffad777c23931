"""Small sweeps on a real Slurm: the command, the statuses, logs and weights of its cells."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from alignment_lab.runtime.files import file_digest
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.sweep import manifest as sweep_manifest
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
TIMEOUT = 900  # seconds for a sweep to end: other work may have the machine


class Sweep:
    """A sweep's command in a folder of its own."""

    def __init__(self, folder: Path, *overrides: str, lab: Path = ROOT) -> None:
        self.folder, self.lab, self.path = folder, lab, folder / "sweep"
        self.overrides = [*TINY, *SLURM, "hydra.sweep.dir=sweep", *overrides]
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
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )

    def launch(self, *more: str, path: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command."""
        return self.python(str(self.lab / "train.py"), "--multirun", *self.overrides, *more, path=path)

    def run_locally(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Run the same cells in the folder `alone`, one after the other, without Slurm and checkpoints."""
        overrides = [word for word in self.overrides if "launcher" not in word and "sweep.dir" not in word]
        self.path = self.folder / "alone"
        return self.python(
            str(self.lab / "train.py"),
            "--multirun",
            *overrides,
            "training.save_steps=null",
            "hydra.sweep.dir=alone",
            *more,
        )

    def sweep_command(self, name: str, *arguments: str) -> str:
        """The output of `python -m alignment_lab.sweep NAME`."""
        process = self.python("-m", "alignment_lab.sweep", name, "sweep", *arguments)
        assert process.returncode != 2, process.stderr
        return process.stdout

    @property
    def manifest(self) -> sweep_manifest.Sweep:
        return sweep_manifest.read_sweep(self.path)

    def run(self, name: str) -> RunDirectory:
        return RunDirectory(self.path / name)

    @property
    def runs(self) -> list[RunDirectory]:
        return [self.run(cell.name) for cell in self.manifest.cells]

    def wait_until(self, condition: Callable[[], object], timeout: float = TIMEOUT) -> None:
        """Wait, and fail with the table where it takes too long."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout} s:\n{self.sweep_command('status')}"
            time.sleep(0.2)

    def wait(self) -> dict[str, CellStatus]:
        """The statuses when no job waits or runs."""
        statuses: dict[str, CellStatus] = {}

        def have_ended() -> bool:
            statuses.update(cell_statuses(self.manifest))
            return not any(status.is_active for status in statuses.values())

        self.wait_until(have_ended)
        return statuses

    def log(self, name: str) -> str:
        """The output of all of its jobs."""
        logs = [
            path
            for job_id in self.manifest.cell(name).jobs
            for path in (self.path / ".submitit").glob(f"{job_id}_*.out")
        ]
        return "".join(path.read_text() for path in logs)

    def weights(self, name: str) -> str:
        return file_digest(self.run(name).model / "model.safetensors")

    def has_taken(self, name: str, steps: int) -> bool:
        """Whether the cell has taken so many steps and is running."""
        run = self.run(name)
        return run.state().get("state") == "running" and len(run.metrics()) >= steps


def own_cache(folder: Path) -> Path:
    """A cache without references and tokens, with the weights that tests have."""
    cache = folder / "cache"
    if not cache.exists():
        cache.mkdir()
        (cache / "models").symlink_to(Path(os.environ["ALIGNMENT_LAB_CACHE"]) / "models")
    return cache
