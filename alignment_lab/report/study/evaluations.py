"""Evaluations: of several models on the same rows, what each came to, and how they differ from the first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.errors import UserError
from ...runtime.files import read_json
from ...runtime.run_directory import EVALUATION, RunDirectory
from .paired import differences, read_scores
from .values import ordered_metrics


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation, or several of the same set as one."""

    name: str
    state: Mapping[str, Any]
    models: list[dict[str, Any]]  # as report.json has them
    differences: dict[str, dict[str, dict[str, Any]]]  # from the first: by model, by metric
    facts: dict[str, str] = field(default_factory=dict)  # what was measured on what
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Every metric that any of the models has, in the order of the table of metrics."""
        return ordered_metrics(dict.fromkeys(name for model in self.models for name in model["metrics"]))


def is_evaluation(run: RunDirectory) -> bool:
    """Whether the directory is one of action=evaluate."""
    try:
        return run.state().get("kind") == EVALUATION
    except (OSError, ValueError):
        return False


def load_evaluation(run: RunDirectory) -> EvaluationRecord:
    """One evaluation, in any state. Raises UserError where its files cannot be read."""
    report = _report(run)
    provenance = read_json(run.provenance_file) or {}
    return EvaluationRecord(
        run.path.name,
        run.state(),
        report.get("models", []),
        report.get("differences", {}),
        _facts(report, run.state()),
        provenance,
    )


def _report(run: RunDirectory) -> dict[str, Any]:
    try:
        return run.report() or {}
    except (OSError, ValueError) as error:
        raise UserError(f"{run.report_file}: cannot be read ({error}); evaluate again.") from None


def _facts(report: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, str]:
    facts = {
        "evaluation": state.get("id"),
        "measures": ", ".join(report.get("measures", [])),
        "data": report.get("data"),
        "host": state.get("host"),
        "ended": state.get("ended"),
    }
    return {name: str(value) for name, value in facts.items() if value}


def join_evaluations(runs: Sequence[RunDirectory]) -> EvaluationRecord:
    """Several evaluations of the same set as one, every model compared with the first of the first.

    Raises UserError where they were measured on other rows, or with other settings: such figures cannot be
    compared.
    """
    reports = [_report(run) for run in runs]
    for run, report in zip(runs, reports, strict=True):
        if not report:
            raise UserError(f"{run.path}: this evaluation is not finished; give the same command again.")
        _require_same_set(runs[0], reports[0], run, report)
    models: list[dict[str, Any]] = []
    scores = []
    for run, report in zip(runs, reports, strict=True):
        of_run = run.row_scores().get("models") or {}
        for model in report["models"]:
            taken = any(model["name"] == other["name"] for other in models)
            models.append({**model, "name": f"{model['name']} ({run.path.name})" if taken else model["name"]})
            scores.append(read_scores(of_run[model["name"]]))
    found = {
        model["name"]: differences(own, scores[0]) for model, own in zip(models[1:], scores[1:], strict=True)
    }
    facts = {"evaluations": str(len(runs)), "data": str(reports[0].get("data") or "none")}
    return EvaluationRecord("comparison", {"state": "finished"}, models, found, facts)


def _require_same_set(
    first: RunDirectory, theirs: Mapping[str, Any], run: RunDirectory, ours: Mapping[str, Any]
) -> None:
    """Compare what both were measured on: the rows that both read, the settings that both have."""
    for there, here in _both(theirs, ours, "rows_digest").values():
        if there != here:
            raise UserError(
                f"{run.path}: was measured on other rows than {first.path}: such figures are no measure for "
                "each other; evaluate both with one command, or with the same data."
            )
    for key, (there, here) in _both(theirs, ours, "settings").items():
        if there != here:
            raise UserError(
                f"{run.path}: was measured with eval.{key}={json.dumps(here)}, and {first.path} with "
                f"{json.dumps(there)}; evaluate both with the same settings."
            )


def _both(theirs: Mapping[str, Any], ours: Mapping[str, Any], name: str) -> dict[str, tuple[object, object]]:
    """What both reports have under a name, side by side."""
    there, here = theirs.get(name) or {}, ours.get(name) or {}
    return {key: (there[key], here[key]) for key in sorted(there.keys() & here.keys())}


def evaluations_of(run: RunDirectory) -> list[dict[str, Any]]:
    """What was evaluated of a training run since, the newest first; none where that cannot be read."""
    found = []
    for file in sorted(run.evaluations.glob("*.json")):
        try:
            content = read_json(file)
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            found.append(content)
    return sorted(found, key=lambda each: str(each.get("ended")), reverse=True)


def page_of(entry: Mapping[str, Any]) -> Path:
    """The page of the evaluation that an entry comes from."""
    return Path(str(entry.get("path", ""))) / "report.html"
