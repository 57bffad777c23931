"""What an evaluation writes: its report, and a summary with the runs that were evaluated."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..config import Experiment, Measure, to_plain
from ..evaluation.candidates import Candidate
from ..evaluation.intervals import Scores
from ..evaluation.measures import MEASURES
from ..evaluation.prompts import row_scores
from ..evaluation.results import MeasureResult
from ..evaluation.rows import HeldoutRows
from ..report.study.paired import differences
from ..runtime import folders
from ..runtime.files import json_digest, utc_now, write_atomic, write_json
from ..runtime.run_directory import EVALUATION, RunDirectory
from ..tracking import conclude_tracking, end_tracking, open_forwarder

SETTINGS = ("rows", "generations", "max_new_tokens")  # of `eval`, that every measure's figures depend on


class Measured:
    """All that was measured of one model."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.results: dict[Measure, MeasureResult] = {}
        self.reference: str | None = None
        self.seconds: dict[str, float] = {}

    @property
    def scores(self) -> dict[str, Scores]:
        """Of all measures."""
        return {name: each for result in self.results.values() for name, each in result.scores.items()}

    def report(self) -> dict[str, Any]:
        """An entry of report.json's `models`."""
        found, results = self.candidate, self.results.values()
        return {
            "name": found.name,
            "kind": found.kind.name,
            "run": str(found.run.path.absolute()) if found.run else None,
            "run_id": found.run.state().get("id") if found.run else None,
            "step": found.step,
            "is_initial": found.is_initial,
            "method": found.spec.method.name if found.run else None,
            "reference": self.reference,
            "metrics": {name: scores.estimate() for name, scores in self.scores.items()},
            "tables": {title: list(rows) for result in results for title, rows in result.tables.items()},
            "notes": [line for result in results for line in result.lines],
            "files": sorted(
                name
                for result in results
                for name in (*(file_name(found, each) for each in result.files), *result.named_files)
            ),
            "seconds": self.seconds,
        }


def file_name(candidate: Candidate, name: str) -> str:
    """The name of a file of one model: distinct for distinct models, and no path."""
    label = "-".join(part for part in Path(candidate.name).parts[-3:] if part.strip("/."))
    kept = "".join(each if each.isalnum() or each in "-._" else "_" for each in label) or "model"
    return f"{kept}-{json_digest(candidate.name)[:4]}-{name}"


def write_results(
    spec: Experiment,
    run: RunDirectory,
    evaluation_id: str,
    measured: Sequence[Measured],
    rows: HeldoutRows,
) -> None:
    """report.json, the scores of single rows, and the measures' files."""
    for each in measured:
        for result in each.results.values():
            for name, text in result.files.items():
                write_atomic(run.path / file_name(each.candidate, name), text)
            for path, text in result.named_files.items():
                (run.path / path).parent.mkdir(parents=True, exist_ok=True)
                write_atomic(run.path / path, text)
    rows_of_models = [
        {
            "step": place,
            **{name: found.mean for name, found in each.scores.items() if math.isfinite(found.mean)},
        }
        for place, each in enumerate(measured)
    ]
    write_atomic(run.metrics_file, "".join(json.dumps(row) + "\n" for row in rows_of_models))
    run.write_row_scores({"models": {each.candidate.name: row_scores(each.scores) for each in measured}})
    first = measured[0]
    settings = to_plain(spec)["eval"]
    write_json(
        run.report_file,
        {
            "kind": EVALUATION,
            "id": evaluation_id,
            "ended": utc_now(),
            "data": rows.spec.data.name if rows.known else None,
            "rows_digest": {format.name: splits.digest for format, splits in rows.known.items()},
            "measures": [measure.name for measure in spec.eval.measures],
            "settings": {
                **{name: settings[name] for name in SETTINGS},
                **{measure.name: _shared_settings(settings, measure) for measure in spec.eval.measures},
            },
            "models": [each.report() for each in measured],
            "differences": {
                each.candidate.name: differences(each.scores, first.scores) for each in measured[1:]
            },
        },
    )


def _shared_settings(settings: dict[str, Any], measure: Measure) -> dict[str, Any]:
    """A measure's settings, which evaluations that are compared must share."""
    own = settings.get(measure.name) or {}
    return {name: value for name, value in own.items() if name != MEASURES[measure].verdicts}


def tell_runs(run: RunDirectory, measured: Sequence[Measured]) -> None:
    """Leave a summary with each training run that a model comes from, and draw its page anew. What the run
    itself reported stays as it is.
    """
    from ..report.render.run_page import write_run_page  # imports matplotlib

    report = run.report() or {}
    shared = {name: report[name] for name in ("id", "ended", "data", "rows_digest", "measures", "settings")}
    owners: dict[Path, RunDirectory] = {}
    for each in measured:
        owner = each.candidate.run
        if owner is None:
            continue
        owners[owner.path] = owner
        which = "before" if each.candidate.is_initial else each.candidate.step
        name = f"{report['id']}.json" if which is None else f"{report['id']}-{which}.json"
        entry = {**shared, "path": str(run.path.absolute()), "model": each.report()}
        try:
            folders.make_folder(owner.evaluations)
            write_json(owner.evaluations / name, entry)
            if not folders.is_foreign_page(owner.page_file):
                write_run_page(owner)
        except OSError as error:
            print(f"{owner.path}: its page does not say so: it cannot be written ({error})", file=sys.stderr)


def track(spec: Experiment, run: RunDirectory, console: Console) -> None:
    """Send the figures to the trackers, a step for each model in the order of eval.models. A tracker that
    fails does not fail the evaluation.
    """
    try:
        if forwarder := open_forwarder(spec, run, console):
            forwarder.start()
            conclude_tracking(spec, run, console)
    except Exception as error:
        end_tracking(run, failed=True)
        console.print(
            f"tracking: this evaluation was not sent ({type(error).__name__}: {error}); everything is in "
            f"{run.path}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
