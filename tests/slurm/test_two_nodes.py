"""Cells of several machines: Slurm starts a task on each of two nodes, and the lab a process in each task."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from small_sweeps import Sweep

pytestmark = pytest.mark.slurm

CELLS = ["method=dpo", "beta=0.1,0.2", "training.max_steps=40", "training.save_steps=5", "parallel=ddp"]
TWO = ["hydra.launcher.partition=both", "parallel.nodes=2", "parallel.processes=1"]
ADDRESS = "hydra.launcher.setup=['export MASTER_ADDR=127.0.0.1']"


def on_second(sweep: Sweep, name: str, module: str) -> psutil.Process:
    """A cell's task on the second node, `job`, or its process, `worker`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if f"alignment_lab.{module}" in words and str(sweep.folder) in " ".join(words):
            said = process.environ()
            array = f"{said.get('SLURM_ARRAY_JOB_ID')}_{said.get('SLURM_ARRAY_TASK_ID')}"
            if said.get("SLURMD_NODENAME") == "lab2" and array == sweep.known.cell(name).jobs[-1]:
                found.append(process)
    (process,) = found
    return process


def test_a_cell_on_two_machines_is_what_it_is_on_one(cluster, here):
    """One cell's second machine is warned, and the first queues both again; of the other the process on the second is killed. The
    weights are, bit for bit, those of two processes on one machine that nobody disturbed.
    """
    sweep = Sweep(here, *CELLS, *TWO, ADDRESS)
    given = sweep.give()
    assert given.returncode == 0, given.stderr
    warned, killed = names = [cell.name for cell in sweep.known.cells]
    sweep.until(lambda: sweep.stepping(warned, 3))
    os.kill(on_second(sweep, warned, "job").pid, signal.SIGUSR2)
    sweep.until(lambda: sweep.stepping(killed, 8))
    os.kill(on_second(sweep, killed, "worker").pid, signal.SIGKILL)
    alone = Sweep(here, *CELLS, "parallel.processes=2")
    given = alone.here()
    assert given.returncode == 0, given.stderr
    assert {one.state for one in sweep.ended().values()} == {"finished"}
    for name in names:
        said = sweep.log(name)
        assert "processes: 1 on each of 2 machines, ddp" in said and said.count("resuming from") == 1
        assert said.splitlines().count("queued again") == 1 and sweep.run(name).state()["attempts"] == 2
        assert [row["step"] for row in sweep.run(name).metrics() if "loss" in row] == list(range(1, 41))
    assert [sweep.weights(name) for name in names] == [alone.weights(name) for name in names]


def test_a_name_that_no_machine_knows_is_a_sentence(cluster, here):
    """These nodes' names are Slurm's alone."""
    sweep = Sweep(here, "method=dpo", "training.max_steps=2", "parallel=ddp", *TWO)
    given = sweep.give("hydra.launcher.max_attempts=1")
    assert given.returncode == 0, given.stderr
    (found,) = sweep.ended().values()
    assert found.state == "failed" and found.why.startswith("MASTER_ADDR=lab1: "), found
