"""What a run cost over all of its attempts, those included that were killed.

An attempt writes into run.json what it has cost so far (`cost`), whenever it commits a checkpoint and when it
ends. One that was killed could not say its end: it counts up to the last thing that it wrote.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

RESOLUTION = 2.0  # seconds: run.json's times are whole ones
Attempt = dict[str, Any]  # attempt, host, started, ended, from_step, step, devices, seconds, peak_memory_gb


def cost_so_far(
    seconds: Mapping[str, float], step: int | None, devices: int, peak_memory_gb: float
) -> dict[str, Any]:
    """An attempt's `cost`: seconds by phase, the last step that was taken, processes, memory in GB."""
    return {
        "at": round(time.time(), 2),
        "step": step,
        "devices": devices,
        "seconds": dict(seconds),
        "peak_memory_gb": round(peak_memory_gb, 2),
    }


def closed_attempt(state: Mapping[str, Any], last_logged: int, last_write: float) -> Attempt:
    """The attempt that a run.json describes, once it has ended.

    `last_logged`: the last step of metrics.jsonl; `last_write`: seconds since the epoch, of the run's newest
    file. They say how far an attempt came that was killed.
    """
    cost, training = state.get("cost") or {}, state.get("training") or {}
    started, was_killed = _timestamp(state["started"]), not state.get("ended")
    trained_from = _timestamp(training["since"]) if training else started
    ended = max(started, trained_from, last_write) if was_killed else _timestamp(state["ended"])
    seconds = dict(cost.get("seconds") or {"total": 0.0})
    unsaid = ended - cost.get("at", started)
    if unsaid > RESOLUTION:
        seconds["total"] += unsaid
        if training:
            seconds["train"] = seconds.get("train", 0.0) + min(unsaid, ended - trained_from)
    from_step = training.get("from_step")
    step = cost.get("step")
    if from_step is not None:
        step = max(from_step, step or 0, last_logged if was_killed else 0)
    return {
        "attempt": state.get("attempts", 1),
        "host": state.get("host"),
        "started": state["started"],
        "ended": state.get("ended"),
        "error": state.get("error"),
        "from_step": from_step,
        "step": step,
        "devices": cost.get("devices", 1),
        "seconds": {phase: round(max(0.0, value), 2) for phase, value in seconds.items()},
        "peak_memory_gb": cost.get("peak_memory_gb"),
    }


def total_cost(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """The sum over attempts, for report.json.

    `seconds` by phase; `device_hours`, hours times processes; `repeated_steps`, steps that were taken again
    because an attempt was ended behind its last checkpoint; the highest `peak_memory_gb`.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    for attempt in attempts:
        for phase, value in attempt["seconds"].items():
            seconds[phase] += value
    taken = sum((attempt["step"] or 0) - (attempt["from_step"] or 0) for attempt in attempts)
    hours = sum(attempt["seconds"]["total"] * attempt["devices"] for attempt in attempts) / 3600
    return {
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "device_hours": round(hours, 4),
        "repeated_steps": taken - (attempts[-1]["step"] or 0),
        "peak_memory_gb": max((attempt["peak_memory_gb"] or 0.0 for attempt in attempts), default=0.0),
    }


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
