"""The base of the lab's Hydra launchers: cells, their folders, which of them must run, results for Hydra.

Hydra's own launchers compose each cell again when it starts, from files that may have changed by then, and
keep no record of what they started. Here a cell's spec is fixed when the command is given, and the same
command resumes the sweep.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from rich.console import Console

from ..config import Experiment, describe_difference, identity, objective_value, to_plain, to_yaml
from ..content import finished_elsewhere
from ..runtime.errors import RunError, UserError
from ..runtime.files import cache_directory, relative_to_cwd
from ..runtime.redaction import redact_data
from ..runtime.run_directory import RunDirectory
from . import grid, shared_work
from .cell_names import cell_folder
from .cell_status import CellStatus
from .hydra_plugin import FailedJobReturn, HydraPlugin
from .manifest import Cell, Sweep

MAX_REASON_LENGTH = 120
MAX_REASONS = 3
ANOTHER_EXPERIMENT = "this is another experiment; give another hydra.sweep.dir=DIRECTORY."


class SweepLauncher(HydraPlugin, Launcher):
    """A Hydra launcher: made by the sweeper, called with the overrides of every cell.

    Subclasses define `problems`, `launch` and STATE_LABELS.
    """

    composed_specs: ClassVar[dict[tuple[str, ...], Experiment]] = {}  # by overrides; the preflight fills it
    STATE_LABELS: ClassVar[dict[str, str]] = {}  # what the command does with a cell in this state

    @staticmethod
    def problems(spec: Experiment, settings: Any) -> list[str]:
        """What keeps a cell from running there, a sentence each; `settings` are those of hydra.launcher."""
        raise NotImplementedError

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Hydra calls it before `launch`."""
        self.config, self.loader = config, hydra_context.config_loader
        self.path, self.console = Path(str(config.hydra.sweep.dir)), Console()

    def print_line(self, text: str) -> None:
        """Print one line, unwrapped."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def record_command(self, sweep: Sweep, settings: dict[str, Any]) -> None:
        """Write into the sweep which command this is, and its launcher's settings."""
        sweep.command, sweep.cwd = redact_data([sys.executable, *sys.argv]), str(Path.cwd())
        sweep.cache, sweep.launcher_settings = str(cache_directory().absolute()), settings

    def compose_cell(self, overrides: Sequence[str]) -> Experiment:
        """The experiment of a cell."""
        spec = self.composed_specs.get(tuple(overrides))
        return spec or grid.Composer(self.config.hydra.job.config_name)(list(overrides))

    def register_cells(
        self, sweep: Sweep, specs: Sequence[Experiment], overrides: Sequence[Sequence[str]]
    ) -> list[Cell]:
        """Add the cells of these experiments to the sweep and return them; equal ids share one cell.

        Raises UserError where the folder of a cell belongs to another experiment.
        """
        by_id = {cell.id: cell for cell in sweep.cells}
        ids = {cell.name: cell.id for cell in sweep.cells}
        cells: list[Cell] = []
        conflicts: dict[str, int] = {}
        for spec, cell_overrides in zip(specs, overrides, strict=True):
            plain = to_plain(spec)
            run_id = identity(plain)
            if run_id not in by_id:
                folder = cell_folder(self.config, self.loader, cell_overrides)
                cell = Cell(folder, redact_data(list(cell_overrides)), run_id)
                run = cell.run_directory(sweep.path)
                try:
                    run.require_own()
                except UserError as error:
                    conflicts[str(error)] = 1
                    continue
                if ids.get(cell.name, run.state().get("id", run_id)) != run_id:
                    difference = describe_difference(run.spec(), plain)
                    conflicts[f"{run.path}: {difference}: {ANOTHER_EXPERIMENT}"] = 1
                    continue
                by_id[run_id], ids[cell.name] = cell, run_id
                sweep.cells.append(cell)
            by_id[run_id].nodes = spec.parallel.nodes
            by_id[run_id].shared_keys = list(shared_work.shared_keys(spec, plain))
            cells.append(by_id[run_id])
        grid.raise_problems(conflicts, len(specs))
        return cells

    def queue_due_cells(
        self,
        sweep: Sweep,
        specs: Sequence[Experiment],
        cells: Sequence[Cell],
        statuses: Mapping[str, CellStatus],
    ) -> list[Cell]:
        """Queue and return the cells that are neither finished nor active; prints a summary of all.

        Raises UserError where a finished cell was trained on other rows or weights than there are now.
        """
        distinct = list({cell.id: cell for cell in cells}.values())
        spec_by_id = dict(zip((cell.id for cell in cells), specs, strict=True))
        changes = (
            finished_elsewhere(cell.run_directory(sweep.path), spec_by_id[cell.id], "hydra.sweep.dir")
            for cell in distinct
            if statuses[cell.name].state == "finished"
        )
        grid.raise_problems({sentence: 1 for sentence in changes if sentence}, len(specs))
        self._print_summary(sweep, len(cells), distinct, statuses)
        due = [
            cell
            for cell in distinct
            if not statuses[cell.name].is_active and statuses[cell.name].state != "finished"
        ]
        for cell in due:
            cell.run_directory(sweep.path).mark_queued(run_id=cell.id, spec=to_yaml(spec_by_id[cell.id]))
        return due

    def _print_summary(
        self, sweep: Sweep, requested: int, cells: list[Cell], statuses: Mapping[str, CellStatus]
    ) -> None:
        """The number of cells, and a line for each state that any of them has."""
        path = relative_to_cwd(sweep.path.absolute())
        duplicates = f" ({requested} were requested; those with the same id are one)"
        self.print_line(
            f"{path}: {len(cells)} cell{'s' if len(cells) != 1 else ''}"
            f"{duplicates if requested != len(cells) else ''}"
        )
        for state, label in self.STATE_LABELS.items():
            in_state = [cell for cell in cells if statuses[cell.name].state == state]
            if in_state:
                self.print_line(f"  {len(in_state)} {label}{_first_failures(in_state, statuses)}")

    def job_returns(
        self,
        overrides: Sequence[Sequence[str]],
        specs: Sequence[Experiment],
        cells: Sequence[Cell],
        statuses: Mapping[str, CellStatus],
    ) -> list[JobReturn]:
        """Hydra's result of each cell: its objective, or the error.

        A cell without a status was submitted and not waited for.
        """
        return [
            _job_return(each, spec, cell, cell.run_directory(self.path), statuses.get(cell.name))
            for each, spec, cell in zip(overrides, specs, cells, strict=True)
        ]


def _first_failures(cells: list[Cell], statuses: Mapping[str, CellStatus]) -> str:
    """The first reasons, shortened, of the cells that failed."""
    reasons = [
        f"{cell.name}: {shorten(statuses[cell.name].reason, MAX_REASON_LENGTH)}"
        for cell in cells
        if statuses[cell.name].state == "failed"
    ]
    more = "; ..." if len(reasons) > MAX_REASONS else ""
    return f" ({'; '.join(reasons[:MAX_REASONS])}{more})" if reasons else ""


def _job_return(
    overrides: Sequence[str], spec: Experiment, cell: Cell, run: RunDirectory, status: CellStatus | None
) -> JobReturn:
    printed = redact_data(list(overrides))  # Hydra prints them
    if status is not None and status.state != "finished":
        failed = FailedJobReturn(overrides=printed, status=JobStatus.FAILED)
        failed.return_value = RunError(f"{cell.name}: {status.state}: {status.reason}")
        return failed
    completed = JobReturn(overrides=printed, status=JobStatus.COMPLETED)
    if status is not None:
        completed.return_value = objective_value(spec, run.report())
    return completed
