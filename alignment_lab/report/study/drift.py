"""How far a run moved from its reference on held-out answers, in nats, from recorded log-probabilities.

The reference is the model before training. Margins are not multiplied by beta: unlike rewards they are on one
scale for every method and beta.
"""

from __future__ import annotations

from collections.abc import Mapping

from .runs import RunRecord
from .values import is_number, value_of

CHOSEN, REJECTED = "eval_logps/chosen", "eval_logps/rejected"
Logps = tuple[float, float]  # of chosen and of rejected answers


def drift_path(record: RunRecord) -> list[tuple[float, float]]:
    """(drift, margin) in nats at every logged evaluation and at the end.

    Drift is the mean change of both log-probabilities, margin the change of chosen less that of rejected
    answers. Empty where log-probabilities were not measured. Repeated points are left out.
    """
    start = _logps({name: value_of(record.before(name)) for name in (CHOSEN, REJECTED)})
    end = _logps({name: value_of(record.after(name)) for name in (CHOSEN, REJECTED)})
    if start is None or end is None:
        return []
    logged = [logps for row in record.logged_steps if (logps := _logps(row)) is not None]
    points = [_point(logps, start) for logps in [start, *logged, end]]
    return [point for point, previous in zip(points, [None, *points], strict=False) if point != previous]


def _logps(values: Mapping[str, object]) -> Logps | None:
    chosen, rejected = values.get(CHOSEN), values.get(REJECTED)
    return (float(chosen), float(rejected)) if is_number(chosen) and is_number(rejected) else None


def _point(logps: Logps, start: Logps) -> tuple[float, float]:
    chosen, rejected = logps[0] - start[0], logps[1] - start[1]
    return (chosen + rejected) / 2, chosen - rejected
