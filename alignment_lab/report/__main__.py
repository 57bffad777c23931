"""python -m alignment_lab.report PATH [PATH...]: a run's page, or the comparison of all runs in the paths.

PATH is a run directory, or a directory that holds runs. A comparison is printed, and written as report.html,
.md, .csv and .json.
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
from .render import files, terminal, terminal_comparison
from .study.comparison import Comparison, compare
from .study.runs import find_runs, load_records

DEFAULT_OUT = Path("comparison")  # where the comparison of several paths goes


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on the paths; 2 where that is impossible, with one sentence on stderr.

    What forbids comparing the runs is a warning, not an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" instead of a traceback
    options = _parser().parse_args(arguments)
    try:
        runs = [run for path in options.paths for run in _runs_in(path)]
        if len(options.paths) == 1 and runs[0].path == options.paths[0]:
            _report_run(runs[0], Console())
        else:
            _report_comparison(options, runs, Console())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alignment_lab.report", description="Compare runs: tables in the terminal, and a page."
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
        help="compare with this configuration (its label, or a run's folder), not with the best",
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
        help=f"where the files go; default: PATH, or {DEFAULT_OUT}/ for several paths",
    )
    return parser


def _runs_in(path: Path) -> list[RunDirectory]:
    if not path.exists():
        raise UserError(
            f"{path}: no such directory; give a run (outputs/DATE/TIME-NAME) or a sweep (outputs/SWEEP)."
        )
    if not path.is_dir():
        raise UserError(f"{path} is a file; give its directory: {path.parent}.")
    runs = find_runs(path)
    if not runs:
        raise UserError(
            f"{path} holds no run (no run.json in it or below); give the directory that train.py printed."
        )
    return runs


def _report_run(run: RunDirectory, console: Console) -> None:
    from .render import run_page  # after the paths were checked: matplotlib and jinja2 are slow to import

    try:
        run_page.write_run_page(run)
    except OSError as error:
        raise _write_error(run.path, error) from None
    terminal.show_run(run, console)


def _report_comparison(options: argparse.Namespace, runs: Sequence[RunDirectory], console: Console) -> None:
    from .render import comparison_page

    unique_runs = {run.path.resolve(): run for run in runs}  # paths may contain each other
    comparison = compare(load_records(unique_runs.values()), options.baseline, options.metric)
    folder = options.out or (options.paths[0] if len(options.paths) == 1 else DEFAULT_OUT)
    if (folder / "run.json").exists():
        raise UserError(
            f"--out {folder}: is a run, whose own report would be overwritten; give another directory."
        )
    terminal.show(terminal_comparison.render_comparison(comparison, console.width), console)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        comparison_page.write_comparison_page(folder, comparison)
        _write_tables(folder, comparison)
    except OSError as error:
        raise _write_error(folder, error) from None
    page = relative_to_cwd(folder / "report.html")
    terminal.show(f"Page: {page} (beside it report.md, report.csv, report.json)", console, soft_wrap=True)


def _write_tables(folder: Path, comparison: Comparison) -> None:
    write_json(folder / "report.json", files.to_json(comparison))
    write_atomic(folder / "report.csv", files.to_csv(comparison))
    write_atomic(folder / "report.md", files.to_markdown(comparison, folder.resolve().name))


def _write_error(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: no report could be written ({error}); free space or fix the permissions.")


if __name__ == "__main__":
    sys.exit(main())
