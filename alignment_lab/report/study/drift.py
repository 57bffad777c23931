"""How far a run moved from the model before training on held-out answers, in nats: its implicit rewards.

They are not multiplied by beta: unlike a method's own rewards they are on one scale for every method and
beta.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...config.metrics import EVAL, IMPLICIT
from .runs import RunRecord
from .values import is_number, value_of

CHOSEN, REJECTED = f"{EVAL}{IMPLICIT}chosen", f"{EVAL}{IMPLICIT}rejected"
Gains = tuple[float, float]  # of chosen and of rejected answers, in nats


def drift_path(record: RunRecord) -> list[tuple[float, float]]:
    """(drift, margin) in nats at every logged evaluation and at the end.

    Drift is the mean change of both log-probabilities, margin the change of chosen less that of rejected
    answers. Empty where they were not measured. Repeated points are left out.
    """
    end = _gains({name: value_of(record.after(name)) for name in (CHOSEN, REJECTED)})
    if end is None:
        return []
    logged = [gains for row in record.logged_steps if (gains := _gains(row)) is not None]
    points = [((chosen + rejected) / 2, chosen - rejected) for chosen, rejected in [(0.0, 0.0), *logged, end]]
    return [point for point, previous in zip(points, [None, *points], strict=False) if point != previous]


def _gains(values: Mapping[str, object]) -> Gains | None:
    chosen, rejected = values.get(CHOSEN), values.get(REJECTED)
    return (float(chosen), float(rejected)) if is_number(chosen) and is_number(rejected) else None
