"""python -m alignment_lab.report PATH [PATH...]: the comparison in the terminal, report.html beside the runs.

PATH is a run directory, or a sweep directory that holds runs. A sweep gets report.json as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..artifacts import RunDirectory, write_json
from ..errors import UserError
from . import compare, terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on every path; 2 where one cannot be, with one sentence on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" instead of a traceback
    console = Console()
    try:
        found = [(path, _runs(path)) for path in _parser().parse_args(arguments).paths]
        for path, runs in found:
            _report(path, runs, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m alignment_lab.report", description="Compare runs: tables here, a page there.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a run directory, or a sweep directory of runs")
    return parser


def _runs(path: Path) -> list[RunDirectory]:
    if not path.exists():
        raise UserError(f"{path}: no such directory; give a run (outputs/DATE/TIME-NAME) or a sweep (outputs/SWEEP).")
    if not path.is_dir():
        raise UserError(f"{path} is a file; give the directory it lies in: {path.parent}.")
    runs = compare.runs_in(path)
    if not runs:
        raise UserError(f"{path} holds no run (no run.json in it or below); give what train.py printed as its output directory.")
    return runs


def _report(path: Path, runs: Sequence[RunDirectory], console: Console) -> None:
    from . import page  # after the paths were checked: it draws, and drawing is slow to import

    try:
        if runs[0].path == path:
            page.write_page(runs[0])
            terminal.show_run(runs[0], console)
            return
        cells = compare.cells_of(runs)
        terminal.show(terminal.comparison(cells, console.width), console)
        write_json(path / "report.json", compare.summary(cells))
        terminal.show(f"Page: {page.write_comparison(path, cells)}", console, soft_wrap=True)
    except OSError as error:
        raise UserError(f"{path}: no report could be written ({error}); make room or mend the permissions.") from None


if __name__ == "__main__":
    sys.exit(main())
