"""A node that Slurm takes from cells, for a job of a higher partition: they go on when it is free, and end as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_sweeps import Sweep

pytestmark = pytest.mark.slurm

CELL = ["method=dpo", "beta=0.1", "training.max_steps=40", "training.save_steps=5"]


def cell(here: Path, partition: str, environment: dict[str, str]) -> Sweep:
    """The cell with one of the two accelerators of a node, in a folder of its own."""
    (here / partition).mkdir()
    made = Sweep(
        here / partition, *CELL, f"hydra.launcher.partition={partition}", "hydra.launcher.gpus_per_node=1"
    )
    made.environment = environment
    given = made.give()
    assert given.returncode == 0, given.stderr
    return made


def test_a_preempted_cell_ends_as_one_that_was_left_alone(cluster, here):
    """Given a while, a cell saves and queues itself again; preempted at once, Slurm queues it. Neither is queued twice."""
    alone = Sweep(here, *CELL)  # with the same cache
    sweeps = [cell(here, partition, alone.environment) for partition in ("spare", "atonce")]
    (name,) = {cell.name for sweep in sweeps for cell in sweep.known.cells}
    for sweep in sweeps:
        sweep.until(lambda sweep=sweep: sweep.stepping(name, 3))
    urgent = cluster.submit("squeue -ho '%P %T' > others", "--partition=urgent", "--gres=gpu:2")
    given = alone.here()
    assert given.returncode == 0, given.stderr
    assert cluster.ended(urgent) == {urgent: "COMPLETED 0:0"}
    assert {"spare PENDING", "atonce PENDING", "urgent RUNNING"} <= set(
        (here / "others").read_text().splitlines()
    )
    for sweep, itself, state in zip(sweeps, (True, False), ("REQUEUED", "PREEMPTED"), strict=True):
        (found,) = sweep.ended().values()
        assert found.state == "finished" and sweep.run(name).state()["attempts"] == 2
        said = sweep.log(name)
        assert said.splitlines().count("queued again") == itself and said.count("resuming from") == 1
        (job,) = sweep.known.cell(name).jobs
        assert cluster.run("sacct", "-nXPD", "-o", "State", "-j", job).split() == [state, "COMPLETED"]
        assert [row["step"] for row in sweep.run(name).metrics() if "loss" in row] == list(range(1, 41))
        assert sweep.weights(name) == alone.weights(name)
