"""python -m alignment_lab.report PATH [PATH...]: a run's page, or the comparison of all runs in the paths.

PATH is a run directory, or a directory that holds runs. A comparison is printed, and written as report.html, .md, .csv and .json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..runtime.errors import UserError
from ..runtime.files import relative_to_cwd, write_atomic, write_json
from ..runtime.run_directory import RunDirectory
from .render import sidebyside, tables, terminal
from .study.runs import records_of, runs_in
from .study.study import Study, study

TOGETHER = Path("comparison")  # where the comparison of several paths goes


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on the paths; 2 where that cannot be, with one sentence on stderr. What forbids comparing is said, and no error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" instead of a traceback
    asked = _parser().parse_args(arguments)
    try:
        found = [(path, _runs(path)) for path in asked.paths]
        if len(found) == 1 and found[0][1][0].path == found[0][0]:
            _one(found[0][1][0], Console())
        else:
            _all(asked, [run for _, runs in found for run in runs], Console())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alignment_lab.report", description="Compare runs: tables here, a page there."
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="a run directory, or a directory of runs (a sweep)",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="compare with this configuration (its label, or a cell's name), not with the best",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="the metric to judge by, as report.json has it; default: answers, then accuracy",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"where the files go; default: PATH, or {TOGETHER}/ for several paths",
    )
    return parser


def _runs(path: Path) -> list[RunDirectory]:
    if not path.exists():
        raise UserError(
            f"{path}: no such directory; give a run (outputs/DATE/TIME-NAME) or a sweep (outputs/SWEEP)."
        )
    if not path.is_dir():
        raise UserError(f"{path} is a file; give the directory it lies in: {path.parent}.")
    runs = runs_in(path)
    if not runs:
        raise UserError(
            f"{path} holds no run (no run.json in it or below); give what train.py printed as its output directory."
        )
    return runs


def _one(run: RunDirectory, console: Console) -> None:
    from .render import page  # after the paths were checked: it draws, and drawing is slow to import

    try:
        page.write_page(run)
    except OSError as error:
        raise _unwritten(run.path, error) from None
    terminal.show_run(run, console)


def _all(asked: argparse.Namespace, runs: Sequence[RunDirectory], console: Console) -> None:
    from .render import comparison

    once = {run.path.resolve(): run for run in runs}  # paths may hold each other
    found = study(records_of(once.values()), asked.baseline, asked.metric)
    folder = asked.out or (asked.paths[0] if len(asked.paths) == 1 else TOGETHER)
    if (folder / "run.json").exists():
        raise UserError(f"--out {folder}: is a run, whose own report would be lost; give another directory.")
    terminal.show(sidebyside.comparison(found, console.width), console)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        comparison.write_comparison(folder, found)
        _write_tables(folder, found)
    except OSError as error:
        raise _unwritten(folder, error) from None
    terminal.show(
        f"Page: {relative_to_cwd(folder / 'report.html')} (beside it report.md, report.csv, report.json)",
        console,
        soft_wrap=True,
    )


def _write_tables(folder: Path, found: Study) -> None:
    write_json(folder / "report.json", tables.summary(found))
    write_atomic(folder / "report.csv", tables.as_csv(found))
    write_atomic(folder / "report.md", tables.as_markdown(found, folder.resolve().name))


def _unwritten(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: no report could be written ({error}); make room or mend the permissions.")


if __name__ == "__main__":
    sys.exit(main())
