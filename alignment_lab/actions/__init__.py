"""What `action=` does with an experiment, one module for each; refuses to know how it was composed."""

from __future__ import annotations

from collections.abc import Callable

from ..config import Action, Experiment
from ..runtime.run_directory import RunDirectory
from .evaluate import check_after, evaluate_after, run_evaluation
from .plan import run_plan
from .preview import run_preview
from .train import run_training

ACTIONS: dict[Action, Callable[[Experiment, RunDirectory], float | None]] = {
    Action.train: run_training,
    Action.plan: run_plan,
    Action.preview: run_preview,
    Action.evaluate: run_evaluation,
}


def run_action(spec: Experiment, run: RunDirectory) -> float | None:
    """Do what spec.action says, in the run directory; returns the objective, where it was measured.

    Raises UserError for a mistake, RunError for a failure, Interrupted after a signal.
    """
    check_after(spec)
    objective = ACTIONS[spec.action](spec, run)
    evaluate_after(spec, run)
    return objective
