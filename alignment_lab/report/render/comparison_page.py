"""report.html of a comparison: one self-contained page with its data and its script. Nothing is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from ..study import comparability
from ..study.comparison import Comparison
from ..study.runs import all_varied_keys
from ..study.settings import short_names
from ..study.values import summary_metrics
from . import words
from .frontier import frontier_chart
from .page_data import PHASES, page_data
from .template import write_page

BROWSER = Path(__file__).parent / "browser"
SCRIPTS = ("state.js", "chart.js", "charts.js", "table.js", "samples.js", "page.js")  # in order of use
DRIFT_CAPTION = (
    "Across: the mean of log π(answer) − log π_ref(answer) over held-out chosen and rejected answers "
    "alike, in nats per answer; 0 is the reference, left of it both kinds of answers became less "
    "likely. Up: that difference for chosen less that for rejected answers, the implicit reward margin "
    "(without beta). The reference is the model before training. This is not the KL divergence from the "
    "reference, which needs answers sampled from the trained model (action=evaluate eval=generate); it is "
    "the drift on answers of the data."
)


def write_comparison_page(folder: Path, comparison: Comparison) -> Path:
    """Write report.html of the comparison into `folder` and return its path."""
    links = [_link(record.run.page_file, folder) for record in comparison.records]
    context = {
        "name": folder.resolve().name,
        "lead": _lead(comparison),
        "warnings": comparison.warnings,
        "findings": words.findings(comparison),
        "frontier": frontier_chart(comparison.frontier) if comparison.frontier else None,
        "left_out": words.left_out(comparison.records),
        "notes": comparability.notes(comparison.records),
        "configurations": comparison.configurations,
        "summary": summary_metrics(comparison.metrics) or comparison.metrics[:6],
        "drift_caption": DRIFT_CAPTION,
        "phases": PHASES,
        "data": page_data(comparison, links),
        "script": "\n".join((BROWSER / name).read_text() for name in SCRIPTS),
        "style": (BROWSER / "comparison.css").read_text(),
    }
    return write_page(folder / "report.html", "comparison.html.jinja", context)


def _link(page: Path, folder: Path) -> str | None:
    return os.path.relpath(page, folder) if page.exists() else None


def _lead(comparison: Comparison) -> str:
    """`13 runs of 7 configurations, which differ in method, beta.`"""
    names = short_names(all_varied_keys(comparison.records)).values()
    count = len(comparison.records)
    runs = f"{count} {'run' if count == 1 else 'runs'}"
    if comparison.most_seeds > 1:
        runs += f" of {len(comparison.configurations)} configurations"
    return f"{runs}, which differ in {', '.join(names)}." if names else f"{runs}."
