"""python -m alignment_lab.sweep status|logs|cancel|retry|collect SWEEP [CELL...]: what becomes of a sweep."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console

from ..runtime.command_line import path_argument
from ..runtime.errors import UserError
from ..runtime.output import keep_output_writable
from . import commands, manifest, status_table
from .cell_status import cell_statuses
from .manifest import Sweep

STATUS_POLL_SECONDS = 5.0
MAX_ROWS = 100  # of the table on a terminal, without --all

Command = Callable[[Sweep, argparse.Namespace, Console], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Exit code 2 and one sentence on stderr for a mistake, 1 where `collect` finds cells that did not finish.
    """
    keep_output_writable()
    arguments = _parser().parse_args(argv)
    try:
        sweep = manifest.read_sweep(arguments.sweep)
        if not sweep.cells:
            raise UserError(
                f"{arguments.sweep}: no sweep.json there; give the directory that the sweep printed."
            )
        return COMMANDS[arguments.command](sweep, arguments, Console())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alignment_lab.sweep",
        description="A sweep, on Slurm (hydra/launcher=slurm) or on this machine (hydra/launcher=pool).",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(HELP))
    for name, description in HELP.items():
        command = commands.add_parser(name, help=description, description=description)
        command.add_argument("sweep", type=path_argument, metavar="SWEEP", help="its directory")
        if name in CELL_COUNTS:
            command.add_argument(
                "cells", nargs=CELL_COUNTS[name], metavar="CELL", help="a name, an id or a number of `status`"
            )
        if name == "status":
            command.add_argument("--watch", action="store_true", help="stay until all cells have ended")
            command.add_argument("--all", action="store_true", help="show all rows, however many")
    return parser


def status(sweep: Sweep, arguments: argparse.Namespace, console: Console) -> int:
    """Print the table."""
    if arguments.watch:
        status_table.wait(sweep, console, STATUS_POLL_SECONDS)
        return 0
    max_rows = None if arguments.all or not console.is_terminal else MAX_ROWS
    console.print(status_table.status_table(sweep, cell_statuses(sweep), max_rows=max_rows))
    for line in status_table.auxiliary_job_lines(sweep):
        console.print(line, highlight=False, soft_wrap=True)
    return 0


def logs(sweep: Sweep, arguments: argparse.Namespace, console: Console) -> int:
    """Write a cell's log to stdout, unchanged."""
    sys.stdout.write(commands.read_log(sweep, sweep.cell(arguments.cells[0])))
    return 0


def cancel(sweep: Sweep, arguments: argparse.Namespace, console: Console) -> int:
    """Cancel cells that wait or run."""
    cells = [sweep.cell(name) for name in arguments.cells]
    console.print(commands.cancel(sweep, cells), highlight=False, soft_wrap=True)
    return 0


def retry(sweep: Sweep, arguments: argparse.Namespace, console: Console) -> int:
    """Submit cells again."""
    cells = [sweep.cell(name) for name in arguments.cells]
    console.print(commands.retry(sweep, cells), highlight=False, soft_wrap=True)
    return 0


def collect(sweep: Sweep, arguments: argparse.Namespace, console: Console) -> int:
    """Wait until all cells have ended, then write the report."""
    from ..report.__main__ import main as report

    while True:
        statuses = cell_statuses(sweep)
        if not any(status.is_active for status in statuses.values()):
            break
        console.print(f"{time.strftime('%H:%M:%S')}  {status_table.summary(statuses)}", highlight=False)
        time.sleep(STATUS_POLL_SECONDS if console.is_terminal else 6 * STATUS_POLL_SECONDS)
    console.print(status_table.summary(statuses), highlight=False)
    finished = [status.state == "finished" for status in statuses.values()]
    exit_code = report([str(sweep.path)]) if any(finished) else 0
    return exit_code or int(not all(finished))


COMMANDS: dict[str, Command] = {
    "status": status,
    "logs": logs,
    "cancel": cancel,
    "retry": retry,
    "collect": collect,
}
HELP = {
    "status": "print the state of each cell: step, loss, speed, time left, node, why it failed",
    "logs": "print what a cell's newest job wrote",
    "cancel": "cancel cells, all of them where none is named",
    "retry": "submit cells again that failed, were interrupted or cancelled, with the code that they had",
    "collect": "wait until all cells have ended, then compare them",
}
CELL_COUNTS: dict[str, int | str] = {
    "logs": 1,
    "cancel": "*",
    "retry": "*",
}  # argparse's nargs of the cells that a command takes

if __name__ == "__main__":
    sys.exit(main())
