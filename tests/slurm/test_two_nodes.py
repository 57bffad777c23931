"""Cells on several nodes: Slurm starts a task on each of two nodes, and the lab a process in each task."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from small_sweeps import Sweep

pytestmark = pytest.mark.slurm

CELLS = ["method=dpo", "beta=0.1,0.2", "training.max_steps=40", "training.save_steps=5", "parallel=ddp"]
TWO_NODES = ["hydra.launcher.partition=both", "parallel.nodes=2", "parallel.processes=1"]
ADDRESS = "hydra.launcher.setup=['export MASTER_ADDR=127.0.0.1']"


def process_on_second_node(sweep: Sweep, name: str, entrypoint: str) -> psutil.Process:
    """A cell's process on the second node: its task (`slurm_job`) or its worker (`worker`)."""
    matches = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if f"alignment_lab.entrypoints.{entrypoint}" in words and str(sweep.folder) in " ".join(words):
            environment = process.environ()
            job_id = f"{environment.get('SLURM_ARRAY_JOB_ID')}_{environment.get('SLURM_ARRAY_TASK_ID')}"
            is_cells_job = job_id == sweep.manifest.cell(name).jobs[-1]
            if environment.get("SLURMD_NODENAME") == "lab2" and is_cells_job:
                matches.append(process)
    (process,) = matches
    return process


def test_a_cell_on_two_nodes_is_what_it_is_on_one(cluster, here):
    """One cell's second node is warned, and the first requeues both; of the other one a worker is killed.

    The weights are, bit for bit, those of two processes on one machine without interruption.
    """
    sweep = Sweep(here, *CELLS, *TWO_NODES, ADDRESS)
    launched = sweep.launch()
    assert launched.returncode == 0, launched.stderr
    warned, killed = names = [cell.name for cell in sweep.manifest.cells]
    sweep.wait_until(lambda: sweep.has_taken(warned, 3))
    os.kill(process_on_second_node(sweep, warned, "slurm_job").pid, signal.SIGUSR2)
    sweep.wait_until(lambda: sweep.has_taken(killed, 8))
    os.kill(process_on_second_node(sweep, killed, "worker").pid, signal.SIGKILL)
    alone = Sweep(here, *CELLS, "parallel.processes=2")
    local = alone.run_locally()
    assert local.returncode == 0, local.stderr
    assert {status.state for status in sweep.wait().values()} == {"finished"}
    for name in names:
        log = sweep.log(name)
        assert "processes: 1 on each of 2 nodes, ddp" in log and log.count("resuming from") == 1
        assert log.splitlines().count("requeued") == 1 and sweep.run(name).state()["attempts"] == 2
        assert [row["step"] for row in sweep.run(name).metrics() if "loss" in row] == list(range(1, 41))
    assert [sweep.weights(name) for name in names] == [alone.weights(name) for name in names]


def test_an_address_that_cannot_be_resolved_is_reported(cluster, here):
    """These nodes' names are known to Slurm alone."""
    sweep = Sweep(here, "method=dpo", "training.max_steps=2", "parallel=ddp", *TWO_NODES)
    launched = sweep.launch("hydra.launcher.max_attempts=1")
    assert launched.returncode == 0, launched.stderr
    (status,) = sweep.wait().values()
    assert status.state == "failed" and status.reason.startswith("MASTER_ADDR=lab1: "), status
