"""The data that the comparison's page carries for its script: rounded, thinned, and of bounded size. Draws and judges nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..study import comparability, drift, runs
from ..study.configurations import Configuration, counted, prompt_key
from ..study.runs import MISSING, SEED, RunRecord, canonical
from ..study.study import Study, Verdict
from . import curves, text, words
from .curves import Panel

POINTS = 24_000  # of curves on a page, shared by its cells
PROMPTS = 40
ANSWERS = 1_200_000  # characters of answers on a page
ANSWER_LIMIT = 2_000
PHASES = ("load", "reference", "train", "evaluate", "generate", "save")


def payload(study: Study, links: Sequence[str | None]) -> dict[str, Any]:
    """Everything that the script shows. `links`: the page of each cell, relative to the page."""
    places = {id(cell): place for place, one in enumerate(study.configurations) for cell in one.cells}
    logged = [curves.columns(cell.logged) for cell in study.cells]
    panels = curves.panels_of(name for found in logged for name in found)
    keys = [
        key for key in next((list(cell.differs) for cell in study.cells if cell.differs), []) if key != SEED
    ]
    names = runs.short_names(keys)
    return {
        "headline": study.headline,
        "reference": study.configurations.index(study.reference) if study.reference else None,
        "picked": study.picked,
        "metrics": [_metric(name) for name in study.metrics],
        "keys": [{"name": names[key], "values": _values(study, key)} for key in keys],
        "panels": [{"title": panel.title, "axis": panel.axis, "bounded": panel.bounded} for panel in panels],
        "configurations": [_configuration(study, place, keys) for place in range(len(study.configurations))],
        "cells": [
            _cell(cell, places[id(cell)], link) | _curves(cell, found, panels, len(study.cells))
            for cell, link, found in zip(study.cells, links, logged, strict=True)
        ],
        "prompts": _prompts(study.cells),
    }


def _metric(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "first": name in text.FIRST_METRICS,
        "share": text.is_share(name),
        "scaled": comparability.scaled(name),
    }


def _values(study: Study, key: str) -> list[Any]:
    """The values of a setting that some cell has, in order, as a person would type them."""
    found = {
        canonical(value): value
        for one in study.configurations
        if (value := one.settings.get(key, MISSING)) != MISSING
    }
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found.values())
    return [runs.shown(value) for value in (sorted(found.values()) if numeric else found.values())]


def _configuration(study: Study, place: int, keys: Sequence[str]) -> dict[str, Any]:
    one = study.configurations[place]
    colour, dash = curves.place(place)
    settings = [one.settings.get(key, MISSING) for key in keys]
    return {
        "label": one.label,
        "colour": colour,
        "dash": dash,
        "settings": [None if value == MISSING else runs.shown(value) for value in settings],
        "seeds": [runs.shown(seed) for seed in one.seeds],
        "metrics": {name: shown for name in study.metrics if (shown := _shown(one, name))},
        "verdicts": {
            name: _verdict(found[one.label]) for name, found in study.verdicts.items() if one.label in found
        },
    }


def _shown(one: Configuration, name: str) -> dict[str, Any] | None:
    estimate = one.shown(name)
    if estimate is None:
        return None
    before = one.mean(name, "before")
    said = {
        "text": text.point(estimate),
        "range": text.interval(estimate),
        "n": estimate["n"],
        "of": estimate["of"],
    }
    return {
        **said,
        "value": rounded(estimate["value"]),
        "ends": _ends(estimate),
        "before": before and rounded(before.value),
    }


def _ends(estimate: Any) -> list[float | None] | None:
    bounds = text.interval_of(estimate)
    return [rounded(bound) for bound in bounds] if bounds else None


def _verdict(one: Verdict) -> dict[str, Any]:
    return {
        "word": one.word,
        "said": words.verdict(one),
        "how": one.how,
        "p": words.p_value(one.p),
        "difference": words.difference(one.difference),
        "value": one.difference and rounded(one.difference.value),
        "rows": one.rows_word
        and {
            "word": one.rows_word,
            "difference": words.difference(one.rows),
            "p": words.p_value(one.rows_p),
            "n": one.rows.n if one.rows else None,
        },
    }


def _curves(
    cell: RunRecord, logged: Mapping[str, Sequence[curves.Point]], panels: Sequence[Panel], cells: int
) -> dict[str, Any]:
    """Lines for each panel, of training and of held-out rows, and the way from the reference: a share of the page's points."""
    limit = max(12, min(200, POINTS // (cells * max(1, len(panels)))))
    return {
        "curves": [_lines(logged.get(panel.keys[0], []), limit) for panel in panels],
        "heldout": [_lines(logged.get(f"eval_{panel.keys[0]}", []), max(12, limit // 4)) for panel in panels],
        "drift": _lines(drift.path_of(cell), limit),
    }


def _cell(cell: RunRecord, place: int, link: str | None) -> dict[str, Any]:
    costs = {
        "total": cell.seconds.get("total"),
        "speed": cell.report.get("tokens_per_second"),
        "memory": cell.report.get("peak_memory_gb"),
    }
    return {
        "label": cell.label,
        "name": cell.run.path.name,
        "configuration": place,
        "seed": runs.shown((cell.spec.get("training") or {}).get("seed")),
        "state": cell.status,
        "counted": counted(cell),
        "link": link,
        "metrics": {name: estimate for name in cell.metrics if (estimate := _estimate(cell, name))},
        "costs": {name: rounded(value) for name, value in costs.items() if isinstance(value, int | float)},
        "phases": [rounded(cell.seconds.get(phase, 0.0)) for phase in PHASES],
        "time": text.duration(cell.seconds.get("total")),
        "hardware": drift.hardware(cell),
    }


def _lines(points: Sequence[tuple[float, float]], limit: int) -> list[list[float | None]]:
    return [[rounded(x), rounded(y)] for x, y in curves.thin(points, limit)]


def _estimate(cell: RunRecord, name: str) -> dict[str, Any] | None:
    after = cell.after(name)
    value = text.value_of(after)
    if not isinstance(value, int | float):
        return None
    said = {"text": text.point(after), "range": text.interval(after), "n": text.n_of(after), "of": "rows"}
    before = text.value_of(cell.before(name))
    return {
        **said,
        "value": rounded(value),
        "ends": _ends(after),
        "before": None if before is None else rounded(before),
    }


def rounded(value: float) -> float | None:
    """A number with six significant digits; JSON has no word for one that is not finite."""
    number = float(f"{value:.6g}")
    return number if abs(number) < float("inf") else None


def _prompts(cells: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The first prompts of any cell, each with what every cell answered before and after."""
    found: dict[str, dict[str, Any]] = {}
    for place, cell in enumerate(cells):
        for row in cell.samples:
            key = prompt_key(row)
            if key in found or len(found) < PROMPTS:
                answers = found.setdefault(key, _prompt(row))["answers"]
                answers.setdefault(place, row)  # of repeated prompts the first counts
    limit = max(120, min(ANSWER_LIMIT, ANSWERS // max(1, sum(len(one["answers"]) for one in found.values()))))
    return [
        one | {"answers": [_answer(place, row, limit) for place, row in one["answers"].items()]}
        for one in found.values()
    ]


def _prompt(row: Mapping[str, Any]) -> dict[str, Any]:
    expected = row.get("expected")
    said = text.conversation(row.get("prompt"), ANSWER_LIMIT)
    return {
        "prompt": said,
        "expected": None if expected is None else text.clip(expected, ANSWER_LIMIT),
        "answers": {},
    }


def _answer(place: int, row: Mapping[str, Any], limit: int) -> list[Any]:
    """[cell, before, after, whether each is correct]; null where it was not generated or is not known."""
    said = [
        None if (answer := row.get(when)) is None else text.clip(answer, limit)
        for when in ("before", "after")
    ]
    return [place, *said, row.get("before_correct"), row.get("after_correct")]
