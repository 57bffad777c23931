"""A cluster of two nodes that tests may submit to. What makes it is cluster.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("cluster.sh")
ALIVE = {
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "REQUEUED",
    "RESIZING",
    "SUSPENDED",
}  # anything else is an end
PATIENCE = 300  # seconds: other work may have the machine


class Slurm:
    """Slurm's commands, with SLURM_CONF set for this process and its children."""

    def run(self, *command: str, within: float = 60) -> str:
        """What a command printed; where it failed, its complaint is the test's."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=within)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
        return done.stdout

    def submit(self, script: str, *options: str) -> str:
        """`submit("exit 3", "--time=1")`: the number of a job that runs these lines of bash here; they print to job.out."""
        return self.run("sbatch", "--parsable", "--output=job.out", *options, f"--wrap={script}").strip()

    def states(self, job: str) -> dict[str, str]:
        """What accounting says of a job or an array's jobs, such as {"7_0": "COMPLETED 0:0", "7_1": "FAILED 3:0"}."""
        lines = self.run("sacct", "-nXP", "-o", "JobID,State,ExitCode", "-j", job).splitlines()
        return {
            name: f"{state.split()[0]} {code}" for name, state, code in (line.split("|") for line in lines)
        }  # "CANCELLED by 0"

    def ended(self, job: str, within: float = PATIENCE) -> dict[str, str]:
        """The states of a job or an array once all of it has ended: the queue says which jobs there are, accounting is behind at times."""

        def done() -> bool:
            queued = dict(
                line.split()
                for line in self.run("squeue", "-hr", "-t", "all", "-o", "%i %T", "-j", job).splitlines()
            )
            states = self.states(job)
            over = [*queued.values(), *(state.split()[0] for state in states.values())]
            return queued.keys() == states.keys() and not ALIVE.intersection(over)

        self.until(done, job, within)
        return self.states(job)

    def written(self, path: Path, job: str, within: float = PATIENCE) -> str:
        """The text of a file, once a job has written a whole line to it."""
        self.until(lambda: path.exists() and path.read_text().endswith("\n"), job, within)
        return path.read_text()

    def until(self, true: Callable[[], bool], job: str, within: float) -> None:
        """Wait; where it takes too long, fail with what Slurm knows of the job."""
        end = time.monotonic() + within
        while not true():
            assert time.monotonic() < end, (
                f"not within {within} s: {self.run('scontrol', 'show', 'job', job)}"
            )
            time.sleep(0.5)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """The cluster, started and stopped here unless it runs. Under several workers start it first, as `make test-slurm` does."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("Slurm is not installed: `make test-slurm` does it, with root or sudo")
    runs = subprocess.run([SCRIPT, "status"], capture_output=True).returncode == 0
    started = subprocess.run([SCRIPT, "start"], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", started.stdout.strip().removeprefix("SLURM_CONF="))
        yield Slurm()
    if not runs:
        subprocess.run([SCRIPT, "stop"], check=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder: jobs run where they were submitted."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
