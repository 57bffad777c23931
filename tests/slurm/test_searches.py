"""A search on Slurm: cells of one round are an array, and the next round waits for what they came to."""

from __future__ import annotations

import pytest
from small_sweeps import Sweep

from alignment_lab.runtime.files import read_json

pytestmark = pytest.mark.slurm


def test_a_search_sees_what_slurm_has_run(cluster, here):
    """Two cells at once, then one: each trial's value is what its own report says. The same command then submits nothing."""
    words = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=2",
        "method=dpo",
        "training.max_steps=2",
    ]
    sweep = Sweep(here, *words, "beta=tag(log,interval(0.01,0.5))", "eval.objective=eval_loss")
    blind = sweep.give()
    assert (
        blind.returncode == 2
        and "give hydra.launcher.wait=true with it" in blind.stderr
        and not sweep.known.cells
    )
    given = sweep.give("hydra.launcher.wait=true")
    assert given.returncode == 0, given.stderr
    assert [(one.kind, len(one.cells)) for one in sweep.known.submissions] == [
        ("share", 1),
        ("cells", 2),
        ("cells", 1),
    ]
    found = read_json(sweep.path / "search.json")
    losses = {
        float(run.spec()["method"]["beta"]): run.report()["metrics"]["eval_loss"]["after"]["value"]
        for run in sweep.runs
    }
    assert {trial["params"]["beta"]: trial["value"] for trial in found["trials"]} == losses and len(
        losses
    ) == 3
    assert found["trials"][found["best"]]["value"] == min(losses.values())
    again = sweep.give("hydra.launcher.wait=true")
    assert again.returncode == 0 and "best of 3" in again.stdout and len(sweep.known.submissions) == 3
