"""report.html of a comparison: one self-contained page. Its data and its script are in it, and nothing is loaded.

Puts together what others chose (payload.py), worded (words.py) and styled. Refuses to draw: the script does, from the data.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..study import comparability, runs
from ..study.drift import CAPTION
from ..study.study import Study
from . import text, words
from .page import write
from .payload import PHASES, payload

BROWSER = Path(__file__).parent / "browser"
SCRIPTS = (
    "state.js",
    "chart.js",
    "charts.js",
    "table.js",
    "samples.js",
    "page.js",
)  # in the order in which they need each other


def write_comparison(folder: Path, study: Study) -> Path:
    """Write report.html of the comparison into `folder` and give its path."""
    links = [_link(cell.run.page_file, folder) for cell in study.cells]
    usual = [name for name in study.metrics if name in text.FIRST_METRICS] or study.metrics[:6]
    context = {
        "name": folder.resolve().name,
        "lead": _lead(study),
        "warnings": study.warnings,
        "findings": words.findings(study),
        "left_out": words.left_out(study.cells),
        "notes": comparability.notes(study.cells),
        "study": study,
        "usual": usual,
        "words": words,
        "drift_caption": CAPTION,
        "phases": PHASES,
        "data": payload(study, links),
        "script": "\n".join((BROWSER / name).read_text() for name in SCRIPTS),
        "style": (BROWSER / "comparison.css").read_text(),
    }
    return write(folder / "report.html", "comparison.html.jinja", context)


def _link(page: Path, folder: Path) -> str | None:
    return os.path.relpath(page, folder) if page.exists() else None


def _lead(study: Study) -> str:
    """`13 runs of 7 configurations, which differ in method, beta`."""
    keys = next((list(cell.differs) for cell in study.cells if cell.differs), [])
    names = list(runs.short_names(keys).values())
    counted = f"{len(study.cells)} {'run' if len(study.cells) == 1 else 'runs'}"
    some = f" of {len(study.configurations)} configurations" if study.seeds > 1 else ""
    return f"{counted}{some}" + (f", which differ in {', '.join(names)}." if names else ".")
