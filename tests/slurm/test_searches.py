"""A search on Slurm: the cells of one round are an array, and the next round waits for their results."""

from __future__ import annotations

import pytest
from small_sweeps import Sweep

from alignment_lab.runtime.files import read_json

pytestmark = pytest.mark.slurm


def test_a_search_gets_the_results_of_slurm_jobs(cluster, here):
    """Two cells at once, then one: each trial's value is that of its own report.

    Then the command submits nothing more.
    """
    overrides = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=2",
        "method=dpo",
        "training.max_steps=2",
    ]
    sweep = Sweep(here, *overrides, "beta=tag(log,interval(0.01,0.5))", "eval.objective=eval_loss")
    refused = sweep.launch()
    assert refused.returncode == 2 and "give hydra.launcher.wait=true with it" in refused.stderr
    assert not sweep.manifest.cells
    launched = sweep.launch("hydra.launcher.wait=true")
    assert launched.returncode == 0, launched.stderr
    assert [(submission.kind, len(submission.cells)) for submission in sweep.manifest.submissions] == [
        ("prewarm", 1),
        ("cells", 2),
        ("cells", 1),
    ]
    result = read_json(sweep.path / "search.json")
    losses = {
        float(run.spec()["method"]["beta"]): run.report()["metrics"]["eval_loss"]["after"]["value"]
        for run in sweep.runs
    }
    assert {trial["params"]["beta"]: trial["value"] for trial in result["trials"]} == losses
    assert len(losses) == 3
    assert result["trials"][result["best"]]["value"] == min(losses.values())
    again = sweep.launch("hydra.launcher.wait=true")
    assert again.returncode == 0 and "best of 3" in again.stdout and len(sweep.manifest.submissions) == 3
