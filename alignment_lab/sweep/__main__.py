"""python -m alignment_lab.sweep status|logs|cancel|retry|collect SWEEP [CELL...]: a sweep, on Slurm or on this machine."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from ..runtime.errors import UserError
from . import commands, manifest, status_table
from .cell_status import cell_statuses
from .manifest import Sweep

POLL = 5.0  # seconds between two looks


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked; 2 where it cannot be, with one sentence on stderr, 1 where cells have failed."""
    given = _parser().parse_args(arguments)
    console = Console()
    doings: dict[str, Callable[[Sweep, argparse.Namespace, Console], int]] = {
        "status": status,
        "logs": logs,
        "cancel": cancel,
        "retry": retry,
        "collect": collect,
    }
    try:
        sweep = manifest.read_sweep(given.sweep)
        if not sweep.cells:
            raise UserError(
                f"{given.sweep}: no sweep.json there; give the directory that the sweep's command printed."
            )
        return doings[given.action](sweep, given, console)
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
    actions = parser.add_subparsers(dest="action", required=True, metavar="status|logs|cancel|retry|collect")
    for name, what in {
        "status": "where each cell stands: step, loss, speed, time left, node, why it failed",
        "logs": "what a cell's newest job wrote",
        "cancel": "end cells, all of them where none is named",
        "retry": "submit those again that failed, were cut off or cancelled, with the code that they had",
        "collect": "wait until all cells have ended, then compare them",
    }.items():
        action = actions.add_parser(name, help=what, description=what)
        action.add_argument("sweep", type=Path, metavar="SWEEP", help="its directory")
        if name == "logs":
            action.add_argument(
                "cells", nargs=1, metavar="CELL", help="a name, an id or a number of `status`"
            )
        elif name in ("cancel", "retry"):
            action.add_argument(
                "cells", nargs="*", metavar="CELL", help="a name, an id or a number of `status`"
            )
        if name == "status":
            action.add_argument("--watch", action="store_true", help="stay until all cells have ended")
            action.add_argument("--all", action="store_true", help="all rows, however many")
    return parser


def status(sweep: Sweep, given: argparse.Namespace, console: Console) -> int:
    """The table."""
    if given.watch:
        found = status_table.wait(sweep, console, POLL)
    else:
        found = cell_statuses(sweep)
        console.print(
            status_table.status_table(
                sweep, found, rows=None if given.all or not console.is_terminal else 100
            )
        )
        for line in status_table.other_jobs(sweep):
            console.print(line, highlight=False, soft_wrap=True)
    return 0


def logs(sweep: Sweep, given: argparse.Namespace, console: Console) -> int:
    """What was written, as it was."""
    sys.stdout.write(commands.log(sweep, sweep.cell(given.cells[0])))
    return 0


def cancel(sweep: Sweep, given: argparse.Namespace, console: Console) -> int:
    """End what waits or runs."""
    console.print(
        commands.cancel(sweep, [sweep.cell(name) for name in given.cells]), highlight=False, soft_wrap=True
    )
    return 0


def retry(sweep: Sweep, given: argparse.Namespace, console: Console) -> int:
    """Submit again."""
    console.print(
        commands.retry(sweep, [sweep.cell(name) for name in given.cells]), highlight=False, soft_wrap=True
    )
    return 0


def collect(sweep: Sweep, given: argparse.Namespace, console: Console) -> int:
    """Wait, then the report."""
    from ..report.__main__ import main as report

    while True:
        found = cell_statuses(sweep)
        going = [one for one in found.values() if one.alive]
        if not going:
            break
        console.print(f"{time.strftime('%H:%M:%S')}  {status_table.summary(found)}", highlight=False)
        time.sleep(POLL if console.is_terminal else 6 * POLL)
    console.print(status_table.summary(found), highlight=False)
    code = report([str(sweep.path)]) if any(one.state == "finished" for one in found.values()) else 0
    return code or int(any(one.state != "finished" for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
