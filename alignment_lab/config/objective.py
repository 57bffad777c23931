"""The number that a search looks at: one of what is measured on held-out rows after training, and which way is better."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .groups import Direction
from .methods import Format, Method, Pairwise, Reward, Unpaired
from .validation import SpecError, require

if TYPE_CHECKING:
    from .experiment import Experiment

PAIRS = (
    "loss",
    *(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")),
    "logps/chosen",
    "logps/rejected",
)
ANSWERS = ("answers/correct", "answers/one_sentence", "answers/words")
COMPARABLE = (
    "eval_rewards/accuracies",
    "eval_accuracy",
)  # means the same whatever the method, its beta or its loss
LOWER = (
    "eval_loss",
    "eval_nll_loss",
    "eval_rewards/rejected",
    "eval_logps/rejected",
    "answers/words",
)  # is better; of all others, higher


def measured_metrics(method: Method) -> list[str]:
    """What a run of this method measures."""
    if isinstance(method, Pairwise):
        names = (*PAIRS, *(["nll_loss"] if method.sft_weight else []))
    elif isinstance(method, Unpaired):
        names = PAIRS
    elif isinstance(method, Reward):
        names = ("loss", "accuracy", "margin", "mean_reward")
    else:
        names = ("loss", "mean_token_accuracy")
    answered = ANSWERS if method.generates and method.format is not Format.text else ()
    return [*(f"eval_{name}" for name in names), *answered]


def objective_of(spec: Experiment) -> tuple[str, Direction]:
    """The objective and which way is better: what was set, else how often the better answer is preferred, else the loss."""
    known = measured_metrics(spec.method)
    name = spec.eval.objective or next((name for name in COMPARABLE if name in known), "eval_loss")
    return name, spec.eval.direction or (Direction.minimize if name in LOWER else Direction.maximize)


def objective_value(spec: Experiment, report: Mapping[str, Any] | None) -> float | None:
    """The objective in a run's report.json, after training; None where it was not measured."""
    found = (((report or {}).get("metrics") or {}).get(objective_of(spec)[0]) or {}).get("after") or {}
    value = found.get("value")
    return None if value is None else float(value)


def check_objective(spec: Experiment, *, searching: bool = False) -> None:
    """Raise where the objective is none of this method's, or would not be measured. One that nobody named matters to a search alone."""
    name, known = objective_of(spec)[0], measured_metrics(spec.method)
    if spec.eval.objective is None and not searching:
        return
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise SpecError(
            f"eval.objective={name}: method={spec.method.name} measures {', '.join(known)}{meant}"
        )
    measured, key = (
        (spec.eval.generations, "eval.generations")
        if name.startswith("answers/")
        else (spec.eval.rows, "eval.rows")
    )
    require(measured > 0, "eval.objective", name, f"it is not measured while {key}=0; set {key}.")
