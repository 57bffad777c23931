"""The cluster provides what the lab's sweeps use of Slurm; other tests that submit jobs may rely on it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
import submitit

from alignment_lab.distributed.rendezvous import first_host

pytestmark = pytest.mark.slurm

# Writes `ready`, then the seconds at which USR2 came into `heard`, and continues.
LISTENER = """
import signal, time
begin = time.monotonic()
def heard(*_):
    with open("heard", "a") as file:
        print(time.monotonic() - begin, file=file)
signal.signal(signal.SIGUSR2, heard)
with open("ready", "w") as file:
    print("ready", file=file)
while True:
    time.sleep(1)
"""


@pytest.fixture
def listener(here: Path) -> str:
    (here / "listener.py").write_text(LISTENER)
    return f"srun {shlex.quote(sys.executable)} listener.py"


def test_an_exit_code_is_a_state(cluster, here):
    good, bad = cluster.submit("exit 0"), cluster.submit("exit 3")
    assert cluster.wait(good) == {good: "COMPLETED 0:0"}
    assert cluster.wait(bad) == {bad: "FAILED 3:0"}


def test_a_job_runs_after_an_array(cluster, here):
    """afterok runs when every task of an array has succeeded, else never; afterany runs in any case."""
    array = cluster.submit("sleep 1; touch done.$SLURM_ARRAY_TASK_ID", "--array=0-3%2")
    after = cluster.submit("ls done.* | wc -l", f"--dependency=afterok:{array}", "--output=after.out")
    assert cluster.wait(array) == {f"{array}_{number}": "COMPLETED 0:0" for number in range(4)}
    assert cluster.wait(after) == {after: "COMPLETED 0:0"} and (here / "after.out").read_text() == "4\n"

    array = cluster.submit("exit $SLURM_ARRAY_TASK_ID", "--array=0-1")
    never = cluster.submit("true", f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes")
    still = cluster.submit("true", f"--dependency=afterany:{array}")
    assert cluster.wait(array) == {f"{array}_0": "COMPLETED 0:0", f"{array}_1": "FAILED 1:0"}
    assert cluster.wait(still) == {still: "COMPLETED 0:0"}
    assert cluster.wait(never) == {never: "CANCELLED 0:0"}


def test_jobs_run_at_once(cluster, here):
    """Four jobs that each wait for the other three end, on two cores too."""
    meet = "touch here.$SLURM_ARRAY_TASK_ID; until [ $(ls here.* | wc -l) = 4 ]; do sleep 0.2; done"
    array = cluster.submit(meet, "--array=0-3", "--cpus-per-task=2", "--time=5")
    assert set(cluster.wait(array).values()) == {"COMPLETED 0:0"}


def test_a_step_is_warned_before_its_time_limit(cluster, here, listener):
    """The warning is due half a minute before the limit; Slurm checks every half minute."""
    job = cluster.submit(listener, "--time=1", "--signal=USR2@30")
    seconds = float(cluster.wait_for_line(here / "heard", job))
    assert cluster.run("squeue", "-ho", "%T", "-j", job) == "RUNNING\n" and seconds < 60
    cluster.run("scancel", job)


def test_a_step_is_sent_a_signal(cluster, here, listener):
    job = cluster.submit(listener, "--time=5")
    cluster.wait_for_line(here / "ready", job)
    cluster.run("scancel", "--signal=USR2", job)
    cluster.wait_for_line(here / "heard", job)
    cluster.run("scancel", job)
    assert cluster.wait(job)[job].startswith("CANCELLED")


@pytest.mark.parametrize("who", ["another", "itself"])
def test_a_job_is_requeued(cluster, here, who):
    """The same number, and a restart count. A job may requeue itself, as the lab's do."""
    again = {
        "another": "echo waits > ready; sleep 300",
        "itself": "scontrol requeue $SLURM_JOB_ID; sleep 300",
    }[who]
    script = (
        f'echo "run ${{SLURM_RESTART_COUNT:-0}}"; [ "${{SLURM_RESTART_COUNT:-0}}" = 0 ] || exit 0; {again}'
    )
    job = cluster.submit(script, "--requeue", "--open-mode=append")
    if who == "another":
        cluster.wait_for_line(here / "ready", job)
        cluster.run("scontrol", "requeue", job)
    assert cluster.wait(job) == {job: "COMPLETED 0:0"}
    assert [line for line in (here / "job.out").read_text().splitlines() if line.startswith("run")] == [
        "run 0",
        "run 1",
    ]


@pytest.mark.parametrize(
    "hosts", ["n1", "n1,n2", "n[1-2]", "node[03-05,09],other", "r[1-2]n[07,9]", "a-1,b[2-3]"]
)
def test_the_first_host_of_a_list_is_slurms(cluster, hosts):
    assert first_host(hosts) == cluster.run("scontrol", "show", "hostnames", hosts).split()[0]


@pytest.mark.parametrize(
    ("options", "granted"),
    [("--gres=gpu:1", {"0", "1"}), ("--gpus-per-node=2", {"0,1"}), ("--ntasks=1", {"none"})],
)
def test_accelerators_are_granted(cluster, here, options, granted):
    """Slurm sets CUDA_VISIBLE_DEVICES, and nothing where none was requested. The devices are /dev/null."""
    job = cluster.submit(
        "echo ${CUDA_VISIBLE_DEVICES-none}; srun bash -c 'echo ${CUDA_VISIBLE_DEVICES-none}'", options
    )
    assert cluster.wait(job) == {job: "COMPLETED 0:0"}
    batch, step = (here / "job.out").read_text().split()
    assert batch == step and step in granted


def test_submitit_returns_a_result(cluster, here):
    """By sbatch, srun and a pickle; a job without a result has failed, which only accounting knows."""
    executor = submitit.AutoExecutor("logs", cluster="slurm")
    executor.update_parameters(timeout_min=5, gpus_per_node=1, name="lab")
    single = executor.submit(lambda x: (2 * x, os.environ["SLURM_JOB_ID"]), 3)
    array = executor.map_array(lambda x: x * x, [2, 3])
    assert single.result() == (6, single.job_id)
    assert [job.result() for job in array] == [4, 9]
    dead = executor.submit(os._exit, 3)
    with pytest.raises(submitit.core.utils.UncompletedJobError, match="FAILED"):
        dead.result()
