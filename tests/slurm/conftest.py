"""A Slurm cluster of two nodes for tests, set up by cluster.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("cluster.sh")
ACTIVE_STATES = {
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "REQUEUED",
    "RESIZING",
    "SUSPENDED",
}  # in any other state a job has ended
TIMEOUT = 300  # seconds: other work may have the machine


class Slurm:
    """Slurm's commands, with SLURM_CONF set for this process and its children."""

    def run(self, *command: str, timeout: float = 60) -> str:
        """The output of a command, which must succeed."""
        process = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        assert process.returncode == 0, f"{' '.join(command)}: {process.stderr}{process.stdout}"
        return process.stdout

    def submit(self, script: str, *options: str) -> str:
        """`submit("exit 3", "--time=1")`: the number of a job that runs this bash; output in job.out."""
        return self.run("sbatch", "--parsable", "--output=job.out", *options, f"--wrap={script}").strip()

    def states(self, job: str) -> dict[str, str]:
        """A job or an array's tasks by accounting, such as {"7_0": "COMPLETED 0:0", "7_1": "FAILED 3:0"}."""
        lines = self.run("sacct", "-nXP", "-o", "JobID,State,ExitCode", "-j", job).splitlines()
        return {
            name: f"{state.split()[0]} {code}" for name, state, code in (line.split("|") for line in lines)
        }  # "CANCELLED by 0"

    def wait(self, job: str, timeout: float = TIMEOUT) -> dict[str, str]:
        """The states of a job or an array once it has ended in the queue and in accounting, which may lag."""

        def has_ended() -> bool:
            queued = dict(
                line.split()
                for line in self.run("squeue", "-hr", "-t", "all", "-o", "%i %T", "-j", job).splitlines()
            )
            states = self.states(job)
            names = [*queued.values(), *(state.split()[0] for state in states.values())]
            return queued.keys() == states.keys() and not ACTIVE_STATES.intersection(names)

        self.wait_until(has_ended, job, timeout)
        return self.states(job)

    def wait_for_line(self, path: Path, job: str, timeout: float = TIMEOUT) -> str:
        """The text of a file, once a job has written a whole line to it."""
        self.wait_until(lambda: path.exists() and path.read_text().endswith("\n"), job, timeout)
        return path.read_text()

    def wait_until(self, condition: Callable[[], bool], job: str, timeout: float) -> None:
        """Wait; where it takes too long, fail with what Slurm knows of the job."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, (
                f"not within {timeout} s: {self.run('scontrol', 'show', 'job', job)}"
            )
            time.sleep(0.5)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """The cluster, started and stopped here unless it runs.

    With several pytest workers start it before them, as `make test-slurm` does.
    """
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("Slurm is not installed: `make test-slurm` installs it, with root or sudo")
    was_running = subprocess.run([SCRIPT, "status"], capture_output=True).returncode == 0
    started = subprocess.run([SCRIPT, "start"], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", started.stdout.strip().removeprefix("SLURM_CONF="))
        yield Slurm()
    if not was_running:
        subprocess.run([SCRIPT, "stop"], check=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder: jobs run where they were submitted."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
