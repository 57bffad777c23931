"""The objective of a search: a metric of held-out rows or generated answers, and which way is better."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .methods import Format, Method
from .metrics import ANSWERS, EVAL, METRICS, Direction, Scale, metric
from .validation import SpecError, require

if TYPE_CHECKING:
    from .experiment import Experiment


def measured_metrics(method: Method) -> list[str]:
    """The metrics that a run of this method measures before and after training."""
    answers = [name for name in METRICS if name.startswith(ANSWERS)]
    has_answers = method.generates and method.format is not Format.text
    return [*(f"{EVAL}{name}" for name in method.heldout_metrics), *(answers if has_answers else [])]


def objective_of(spec: Experiment) -> tuple[str, Direction]:
    """The objective as set, or the default one, and which way is better."""
    name = spec.eval.objective or default_objective(spec.method)
    return name, spec.eval.direction or metric(name).direction


def default_objective(method: Method) -> str:
    """A share that means the same for every method, beta and loss; `eval_loss` where there is none."""
    rows = (METRICS[name] for name in method.heldout_metrics)
    shares = (row.name for row in rows if row.is_share and row.scale is Scale.common)
    return f"{EVAL}{next(shares, 'loss')}"


def objective_value(spec: Experiment, report: Mapping[str, Any] | None) -> float | None:
    """The objective in a run's report.json, after training; None where it was not measured."""
    metrics = (report or {}).get("metrics") or {}
    after = (metrics.get(objective_of(spec)[0]) or {}).get("after") or {}
    value = after.get("value")
    return None if value is None else float(value)


def check_objective(spec: Experiment, *, searching: bool = False) -> None:
    """Raise where the method does not compute the objective, or it would not be measured.

    The default objective is checked for a search alone.
    """
    if spec.eval.objective is None and not searching:
        return
    name, measured = objective_of(spec)[0], measured_metrics(spec.method)
    if name not in measured:
        nearest = difflib.get_close_matches(name, measured, 1)
        hint = f"; did you mean {nearest[0]}?" if nearest else "."
        message = f"eval.objective={name}: method={spec.method.name} measures {', '.join(measured)}{hint}"
        raise SpecError(message)
    from_answers = name.startswith(ANSWERS)
    key = "eval.generations" if from_answers else "eval.rows"
    count = spec.eval.generations if from_answers else spec.eval.rows
    require(count > 0, "eval.objective", name, f"it is not measured while {key}=0; set {key}.")
