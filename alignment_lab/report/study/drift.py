"""How far a run went from its reference on held-out answers, in nats, from the log-probabilities that it recorded. Draws nothing.

The model before training is the reference. Margins are divided by nothing and multiplied by nothing: unlike rewards they are on one
scale for every method and beta.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..render import text
from .runs import RunRecord

CHOSEN, REJECTED = "eval_logps/chosen", "eval_logps/rejected"
CAPTION = (
    "Across: the mean of log π(answer) − log π_ref(answer) over held-out chosen and rejected answers alike, in nats per answer; 0 is the "
    "reference, left of it both kinds of answers became less likely. Up: that difference for chosen less that for rejected answers, the "
    "reward margin without beta. The reference is the model as it was before training. This is not the KL divergence from the reference, "
    "which needs answers sampled from the trained model and is not recorded; it is the drift on answers of the data."
)


def path_of(cell: RunRecord) -> list[tuple[float, float]]:
    """(drift, margin) in nats: at every evaluation that was logged, and at the end. Empty where log-probabilities were not measured."""
    start = _pair({name: text.value_of(cell.before(name)) for name in (CHOSEN, REJECTED)})
    end = _pair({name: text.value_of(cell.after(name)) for name in (CHOSEN, REJECTED)})
    if start is None or end is None:
        return []
    between = [pair for row in cell.logged if (pair := _pair(row)) is not None]
    places = [_place(pair, start) for pair in [start, *between, end]]
    return [place for place, before in zip(places, [None, *places], strict=False) if place != before]


def _pair(values: Mapping[str, Any]) -> tuple[float, float] | None:
    chosen, rejected = (values.get(name) for name in (CHOSEN, REJECTED))
    numbers = isinstance(chosen, int | float) and isinstance(rejected, int | float)
    return (float(chosen), float(rejected)) if numbers else None  # type: ignore[arg-type]


def _place(pair: tuple[float, float], start: tuple[float, float]) -> tuple[float, float]:
    chosen, rejected = pair[0] - start[0], pair[1] - start[1]
    return (chosen + rejected) / 2, chosen - rejected


def hardware(cell: RunRecord) -> str:
    """The accelerator or the processor that a run used, as far as it was recorded."""
    found = cell.provenance.get("hardware") or {}
    if named := Counter(found.get("accelerators") or []):
        return ", ".join(model if count == 1 else f"{count} x {model}" for model, count in named.items())
    device = (cell.spec.get("parallel") or {}).get("device")
    machine = (
        f"{found.get('processor') or 'unknown processor'}, {found.get('cores', '?')} cores"
        if found
        else "not recorded"
    )
    return (
        machine
        if device in ("cpu", None) or not found
        else f"{machine} (parallel.device={device}; an accelerator was not recorded)"
    )
