"""python -m alignment_lab.report PATH [PATH...]: a run's page, or the comparison of all runs in the paths.

PATH is a run directory, or a directory that holds runs. A comparison is printed, and written as report.html,
.md, .csv and .json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..runtime.command_line import path_argument
from ..runtime.errors import UserError
from ..runtime.files import file_digest, read_json, relative_to_cwd, write_atomic, write_json
from ..runtime.folders import is_foreign_page, refuse_new_at_root
from ..runtime.output import keep_output_writable
from ..runtime.run_directory import RunDirectory
from .render import files, terminal, terminal_comparison
from .study.comparison import Comparison, compare
from .study.evaluations import is_evaluation, join_evaluations, load_evaluation
from .study.runs import find_runs, load_records

TABLES = ("report.csv", "report.md")  # report.json has their digests
DEFAULT_OUT = Path("comparison")  # where the comparison of several paths goes


def main(arguments: Sequence[str] | None = None) -> int:
    """Report on the paths; 2 where that is impossible, with one sentence on stderr.

    What forbids comparing the runs is a warning, not an error.
    """
    keep_output_writable()
    options = _parser().parse_args(arguments)
    try:
        runs = [run for path in options.paths for run in _runs_in(path)]
        evaluations = [run for run in runs if is_evaluation(run)]
        named = [run for run in evaluations if run.path in options.paths]
        if evaluations and (len(evaluations) == len(runs) or named):
            _report_evaluations(options, runs, Console())
            return 0
        if evaluations:  # below a folder of runs
            count = f"{len(evaluations)} evaluations" if len(evaluations) > 1 else "an evaluation"
            print(f"{count} there left out: give evaluations alone to compare them", file=sys.stderr)
            runs = [run for run in runs if run not in evaluations]
        if len(options.paths) == 1 and runs[0].path == options.paths[0]:
            _refuse_options_of_comparisons(options, runs[0])
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
        type=path_argument,
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
        type=path_argument,
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


def _refuse_options_of_comparisons(options: argparse.Namespace, run: RunDirectory) -> None:
    """What says how runs are compared, or where that goes, means nothing for one run."""
    for name in ("baseline", "metric", "out"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name}: {run.path} is one run, whose page lies in its own directory; leave it out, "
                "or give several runs."
            )


def _report_run(run: RunDirectory, console: Console) -> None:
    from .render import run_page  # after the paths were checked: matplotlib and jinja2 are slow to import

    if is_foreign_page(run.page_file):
        raise UserError(
            f"{run.page_file}: would be written over, and is no page of the lab; move it, or rename it."
        )

    try:
        run_page.write_run_page(run)
    except OSError as error:
        raise _write_error(run.path, error) from None
    terminal.show_run(run, console)


def _report_evaluations(options: argparse.Namespace, runs: Sequence[RunDirectory], console: Console) -> None:
    """The page of one evaluation, or several of the same set as one."""
    from .render.evaluation import show_evaluation, write_evaluation_page

    trained = next((run for run in runs if not is_evaluation(run)), None)
    if trained:
        raise UserError(
            f"{trained.path}: is a training run, and the others are evaluations; give evaluations alone: "
            "python train.py action=evaluate makes one of a run."
        )
    for name in ("baseline", "metric"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name}: evaluations are compared with the first model of the first, on every metric; "
                "leave it out, or give that evaluation first."
            )
    if len(runs) == 1:
        record, folder = load_evaluation(runs[0]), options.out or runs[0].path
    else:
        record, folder = join_evaluations(runs), options.out or DEFAULT_OUT
    folder = folder.expanduser()
    refuse_new_at_root(folder, f"--out={folder}")
    if is_foreign_page(folder / "report.html"):
        raise UserError(
            f"{folder / 'report.html'}: would be written over, and is no page of the lab; move it, or give "
            "another directory with --out DIR."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = write_evaluation_page(folder / "report.html", record)
    except OSError as error:
        raise _write_error(folder, error) from None
    show_evaluation(record, console, page)


def _report_comparison(options: argparse.Namespace, runs: Sequence[RunDirectory], console: Console) -> None:
    from .render import comparison_page

    unique_runs = {run.path.resolve(): run for run in runs}  # paths may contain each other
    comparison = compare(load_records(unique_runs.values()), options.baseline, options.metric)
    folder = options.out or (options.paths[0] if len(options.paths) == 1 else DEFAULT_OUT)
    folder = folder.expanduser()
    refuse_new_at_root(folder, f"--out={folder}")
    _require_own(folder)
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
    write_atomic(folder / "report.csv", files.to_csv(comparison))
    write_atomic(folder / "report.md", files.to_markdown(comparison, folder.resolve().name))
    written = {name: file_digest(folder / name) for name in TABLES}
    write_json(folder / "report.json", {**files.to_json(comparison), "written": written})


def _require_own(folder: Path) -> None:
    """Raise UserError where a file that the report would replace is a run's, or was not written by it."""
    if (folder / "run.json").exists():
        raise UserError(
            f"--out {folder}: is a run, whose own report would be overwritten; give another directory."
        )
    earlier = _earlier_report(folder)
    digests = {name: file_digest(folder / name) for name in TABLES if (folder / name).is_file()}
    # the lab's older reports have no digests
    written = {} if earlier is None else earlier.get("written", digests)
    foreign = [name for name, digest in digests.items() if written.get(name) != digest]
    foreign += ["report.json"] if earlier is None and (folder / "report.json").exists() else []
    foreign += ["report.html"] if is_foreign_page(folder / "report.html") else []
    if foreign:
        raise UserError(
            f"{folder}: {' and '.join(foreign)} there would be written over, and is not what the report "
            "wrote; move it, or give another directory with --out DIR."
        )


def _earlier_report(folder: Path) -> dict[str, Any] | None:
    """report.json of an earlier comparison there; None where it is none."""
    try:
        content = read_json(folder / "report.json")
    except (OSError, ValueError):
        return None
    is_comparison = isinstance(content, dict) and {"configurations", "cells", "headline"} <= content.keys()
    return content if is_comparison else None


def _write_error(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: no report could be written ({error}); free space or fix the permissions.")


if __name__ == "__main__":
    sys.exit(main())
