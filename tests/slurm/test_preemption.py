"""Preemption: cells lose their node to a job of a higher partition, resume and end with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sweeps import Sweep

pytestmark = pytest.mark.slurm

CELL = ["method=dpo", "beta=0.1", "training.max_steps=40", "training.save_steps=5"]


def launch_cell(here: Path, partition: str, environment: dict[str, str]) -> Sweep:
    """The cell on one of a node's two accelerators, in a folder of its own."""
    (here / partition).mkdir()
    sweep = Sweep(
        here / partition, *CELL, f"hydra.launcher.partition={partition}", "hydra.launcher.gpus_per_node=1"
    )
    sweep.environment = environment
    launched = sweep.launch()
    assert launched.returncode == 0, launched.stderr
    return sweep


def test_a_preempted_cell_ends_as_an_uninterrupted_one(cluster, here):
    """With a grace time a cell saves and requeues itself; preempted at once, Slurm requeues it.

    Neither is requeued twice.
    """
    alone = Sweep(here, *CELL)  # with the same cache
    sweeps = [launch_cell(here, partition, alone.environment) for partition in ("spare", "atonce")]
    (name,) = {cell.name for sweep in sweeps for cell in sweep.manifest.cells}
    for sweep in sweeps:
        sweep.wait_until(lambda sweep=sweep: sweep.has_taken(name, 3))
    urgent = cluster.submit("squeue -ho '%P %T' > others", "--partition=urgent", "--gres=gpu:2")
    local = alone.run_locally()
    assert local.returncode == 0, local.stderr
    assert cluster.wait(urgent) == {urgent: "COMPLETED 0:0"}
    partitions = set((here / "others").read_text().splitlines())
    assert {"spare PENDING", "atonce PENDING", "urgent RUNNING"} <= partitions
    for sweep, requeues_itself, state in zip(sweeps, (True, False), ("REQUEUED", "PREEMPTED"), strict=True):
        (status,) = sweep.wait().values()
        assert status.state == "finished" and sweep.run(name).state()["attempts"] == 2
        log = sweep.log(name)
        assert log.splitlines().count("requeued") == requeues_itself and log.count("resuming from") == 1
        (job,) = sweep.manifest.cell(name).jobs
        cluster.wait(job)  # accounting lags behind the run's own state
        assert cluster.run("sacct", "-nXPD", "-o", "State", "-j", job).split() == [state, "COMPLETED"]
        assert [row["step"] for row in sweep.run(name).metrics() if "loss" in row] == list(range(1, 41))
        assert sweep.weights(name) == alone.weights(name)
