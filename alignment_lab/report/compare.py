"""Cells of a sweep side by side: what each came to, what forbids comparing them, and how to read the numbers.

Pure functions over cells. Refuses to know files (cells.py) and drawing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from . import text
from .cells import (
    MISSING,
    Cell,
    canonical,
    cells_of,
    compared,
    differing,
    label_of,
    load,
    runs_in,
    short_names,
    shown,
)

__all__ = ["MISSING", "Cell", "cells_of", "differing", "load", "rows", "runs_in", "short_names", "shown", "summary"]

COSTS = ("steps", "tokens", "tokens_per_second", "peak_memory_gb")
ADVICE = "Their numbers do not answer the same question; compare only cells with the same data."


def rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The comparison as plain data, a row per cell: what differs, state, metrics before and after, cost."""
    return [
        {
            "cell": cell.run.path.name,
            "label": cell.label,
            "id": cell.state.get("id"),
            "state": cell.status,
            "error": cell.error,
            "differs": cell.differs,
            "metrics": cell.metrics,
            "cost": {"seconds": cell.seconds, **{key: cell.report.get(key) for key in COSTS}},
        }
        for cell in cells
    ]


def across_seeds(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells that differ in training.seed alone, as one: how many seeds, and per metric the mean, least and most after training.

    Empty where no setting was finished with two seeds.
    """
    settings: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.metrics and cell.spec:
            settings.setdefault(_setting(cell), []).append(cell)
    return [
        {"setting": setting or "every cell", "seeds": len(members), "metrics": _spread(members)}
        for setting, members in settings.items()
        if len(members) > 1 and "training.seed" in members[0].differs
    ]


def _setting(cell: Cell) -> str:
    settings = {key: value for key, value in cell.differs.items() if key != "training.seed"}
    return label_of(settings, short_names(list(settings)))


def _spread(cells: Sequence[Cell]) -> dict[str, dict[str, float]]:
    measured = {name: [v for cell in cells if (v := text.value_of(cell.after(name))) is not None] for name in metric_names(cells)}
    return {
        name: {"mean": sum(values) / len(values), "least": min(values), "most": max(values)} for name, values in measured.items() if values
    }


def summary(cells: Sequence[Cell]) -> dict[str, Any]:
    """report.json of a sweep."""
    return {"warnings": warnings(cells), "notes": notes(cells), "across_seeds": across_seeds(cells), "cells": rows(cells)}


def metric_names(cells: Sequence[Cell]) -> list[str]:
    """Every metric that any cell measured, those that readers ask for first in front."""
    return text.ordered_metrics({name: None for cell in cells for name in cell.metrics})


def headline(cells: Sequence[Cell]) -> str | None:
    """The metric to draw first: the first of the usual ones that most cells measured; losses of unlike objectives never."""
    names = [name for name in metric_names(cells) if name != "eval_loss" or not _unlike_losses(cells)]
    counts = [sum(text.value_of(cell.after(name)) is not None for cell in cells) for name in names]
    return names[counts.index(max(counts))] if any(counts) else None


def warnings(cells: Sequence[Cell]) -> list[str]:
    """What forbids comparing the cells: other data to train or to measure on. Each says what differs and what to do."""
    found = []
    keys = [key for key in differing([cell.spec for cell in cells]) if key.startswith("data.")]
    if keys:
        listed = "; ".join(f"{key}: {_values(cells, key)}" for key in keys)
        found.append(f"The cells were trained or evaluated on different data ({listed}). {ADVICE}")
    elif len(_distinct((cell.provenance.get("content") or {}).get("data") for cell in cells)) > 1:
        found.append(
            "The data have the same settings but not the same content (provenance.json, content.data): "
            f"the rows changed between the runs. {ADVICE}"
        )
    counts = _distinct((cell.report.get("rows") or {}).get("eval") for cell in cells)
    if len(counts) > 1:
        found.append(f"The cells were evaluated on different numbers of rows ({', '.join(sorted(counts))}). {ADVICE}")
    return found


def _values(cells: Sequence[Cell], key: str) -> str:
    return ", ".join(dict.fromkeys(shown(compared(cell.spec).get(key, MISSING)) for cell in cells if cell.spec))


def _distinct(values: Iterable[Any]) -> set[str]:
    return {json.dumps(value, sort_keys=True, default=str) for value in values if value is not None}


def notes(cells: Sequence[Cell]) -> list[str]:
    """How to read the numbers: what the brackets are, how many seeds stand behind them, what may not be compared."""
    found = ["Brackets hold the 95% interval of one number over its n held-out rows."]
    trained = [cell for cell in cells if cell.metrics] or cells
    seeds = {canonical(seed) for cell in trained if (seed := (cell.spec.get("training") or {}).get("seed")) is not None}
    if len(seeds) <= 1:
        found.append("There is one seed: a difference within the intervals may be noise. Sweep training.seed=1,2,3 to tell.")
    else:
        found.append(f"There are {len(seeds)} seeds: cells that differ in nothing else show how far chance alone carries.")
    if _unlike_losses(cells):
        found.append("Losses, rewards and margins are on each method's and beta's own scale: across them, compare shares and answers.")
    unfinished = [cell for cell in cells if cell.status != "finished"]
    if unfinished and len(cells) > 1:
        found.append(f"Not finished: {len(unfinished)} of {len(cells)} cells. They are listed without a result.")
    return found


def _unlike_losses(cells: Sequence[Cell]) -> bool:
    return any(key in ("method.name", "method.beta", "beta") for key in differing([cell.spec for cell in cells]))
