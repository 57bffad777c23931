"""What the lab's two launchers of sweeps share: cells and their folders, what of them is done already, and what Hydra is told in the end.

Hydra's own launchers compose each cell again when it starts, from files that may have changed, and forget what they started. Here a cell is
what it was when the command was given, and the same command goes on with it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ..config import Experiment, describe_difference, identity, objective_value, to_plain, to_yaml
from ..config.compose import folder_name
from ..runtime.errors import RunError
from ..runtime.files import cache_directory, relative_to_cwd
from ..runtime.redaction import redacted
from ..runtime.run_directory import RunDirectory
from . import grid, shared_work
from .cell_status import CellStatus
from .hydra_plugin import HydraPlugin
from .manifest import Cell, Sweep

SUBDIR = "${cell:${hydra.job.override_dirname}}"  # as conf/hydra/lab.yaml names cells
NAMED = 60  # characters of what is swept, in the sweep's name
SAID = 120  # characters of a reason


def sweep_name(overrides: Any, params: Any = None) -> str:
    """`method=dpo,kto_beta=0.01,0.1-3f2a9c`: what is swept, and six digits of all that was typed, in whatever order."""
    words = sorted([*map(str, overrides or []), *(f"{key}={value}" for key, value in (params or {}).items())])
    parsed = OverridesParser.create().parse_overrides(words)
    swept = [word for word, one in zip(words, parsed, strict=True) if one.is_sweep_override()]
    named = folder_name("_".join(redacted(swept)) or "one")[:NAMED].rstrip("_")
    return f"{named}-{hashlib.sha256(chr(0).join(words).encode()).hexdigest()[:6]}"


class SweepLauncher(HydraPlugin, Launcher):
    """Hydra's door to an heir: made by the sweeper, given the overrides of every cell. Heirs say `wrong`, `launch` and KINDS."""

    composed: ClassVar[
        dict[tuple[str, ...], Experiment]
    ] = {}  # what the preflight has composed of this command's cells
    KINDS: ClassVar[dict[str, str]] = {}  # what is done with a cell that stands so

    @staticmethod
    def wrong(spec: Experiment, settings: Any) -> list[str]:
        """What keeps a cell from running where it would be sent, a sentence each."""
        raise NotImplementedError

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Hydra's word before `launch`."""
        self.config, self.loader = config, hydra_context.config_loader
        self.path, self.console = Path(str(config.hydra.sweep.dir)), Console()

    def say(self, text: str) -> None:
        """A line."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def described(self, sweep: Sweep, settings: dict[str, Any]) -> None:
        """Write into the sweep what this command is, and what it asks for."""
        sweep.command, sweep.cwd = redacted([sys.executable, *sys.argv]), str(Path.cwd())
        sweep.cache, sweep.launcher = str(cache_directory().absolute()), settings

    def spec(self, overrides: Sequence[str]) -> Experiment:
        """The experiment of a cell."""
        known = self.composed.get(tuple(overrides))
        return known or grid.Composer(self.config.hydra.job.config_name)(list(overrides))

    def cells(
        self, sweep: Sweep, specs: Sequence[Experiment], overrides: Sequence[Sequence[str]]
    ) -> list[Cell]:
        """The cell of each experiment; those that differ in nothing that matters are one. Raises where a folder is another experiment's."""
        known = {cell.id: cell for cell in sweep.cells}
        names = {cell.name: cell.id for cell in sweep.cells}
        cells, others = [], {}
        for spec, words in zip(specs, overrides, strict=True):
            plain = to_plain(spec)
            run_id = identity(plain)
            if run_id not in known:
                name = self._name(list(words))
                run = RunDirectory(sweep.path / name)
                if names.get(name, run.state().get("id", run_id)) != run_id:
                    others[
                        f"{run.path}: {describe_difference(run.spec(), plain)}: that is another experiment; give another hydra.sweep.dir=DIRECTORY."
                    ] = 1
                    continue
                known[run_id] = Cell(name, redacted(list(words)), run_id)
                names[name] = run_id
                sweep.cells.append(known[run_id])
            known[run_id].nodes, known[run_id].share = (
                spec.parallel.nodes,
                list(shared_work.shared_keys(spec, plain)),
            )
            cells.append(known[run_id])
        grid.raise_problems(others, len(specs))
        return cells

    def _name(self, words: list[str]) -> str:
        """The cell's folder, as hydra.sweep.subdir says."""
        raw = OmegaConf.to_container(self.config.hydra.sweep)
        if raw["subdir"] != SUBDIR:  # type: ignore[index, call-overload]
            return str(self.loader.load_sweep_config(self.config, words).hydra.sweep.subdir)
        naming = self.config.hydra.job.config.override_dirname
        unswept = [
            *naming.exclude_keys,
            *(key for line in self.config.hydra.overrides.hydra for key in _excluded(line)),
        ]
        parsed = OverridesParser.create(self.loader).parse_overrides(words)
        return folder_name(get_overrides_dirname(parsed, unswept, naming.item_sep, naming.kv_sep))

    def due(
        self,
        sweep: Sweep,
        specs: Sequence[Experiment],
        cells: Sequence[Cell],
        found: Mapping[str, CellStatus],
    ) -> list[Cell]:
        """The cells that have to run, set up to do so; how all of them stand is said, a line for each kind."""
        wanted = list({cell.id: cell for cell in cells}.values())
        self._tell_standing(sweep, len(cells), wanted, found)
        due = [cell for cell in wanted if not found[cell.name].alive and found[cell.name].state != "finished"]
        by_id = dict(zip((cell.id for cell in cells), specs, strict=True))
        for cell in due:
            cell.run(sweep.path).queue(run_id=cell.id, spec=to_yaml(by_id[cell.id]))
        return due

    def _tell_standing(
        self, sweep: Sweep, asked: int, cells: list[Cell], found: Mapping[str, CellStatus]
    ) -> None:
        counts = {state: [cell for cell in cells if found[cell.name].state == state] for state in self.KINDS}
        same = (
            f" ({asked} were asked for; those that differ in nothing that matters are one)"
            if asked != len(cells)
            else ""
        )
        self.say(
            f"{relative_to_cwd(sweep.path.absolute())}: {len(cells)} cell{'s' if len(cells) != 1 else ''}{same}"
        )
        for state, what in self.KINDS.items():
            if counts[state]:
                self.say(f"  {len(counts[state])} {what}{_few(counts[state], found)}")

    def returned(
        self,
        overrides: Sequence[Sequence[str]],
        specs: Sequence[Experiment],
        cells: Sequence[Cell],
        ended: Mapping[str, CellStatus],
    ) -> list[JobReturn]:
        """What Hydra gets of each cell: its objective, or why it has none; of one that was not waited for, that it was taken."""
        rows = zip(overrides, specs, cells, strict=True)
        return [
            _returned(words, spec, cell.run(self.path), cell, ended.get(cell.name))
            for words, spec, cell in rows
        ]


def _excluded(line: str) -> list[str]:
    """Keys of the line by which the preflight leaves what is not swept out of names."""
    key, _, value = line.partition("=")
    return value.strip("[]").split(",") if key == "hydra.job.config.override_dirname.exclude_keys" else []


def _few(cells: list[Cell], found: Mapping[str, CellStatus]) -> str:
    """The beginnings of the first reasons, of cells that failed."""
    said = [
        f"{cell.name}: {shorten(found[cell.name].why, SAID)}"
        for cell in cells
        if found[cell.name].state == "failed"
    ]
    return f" ({'; '.join(said[:3])}{'; ...' if len(said) > 3 else ''})" if said else ""


class Failed(JobReturn):
    """What Hydra gets of a cell that failed: the error alone, without the overrides that it would print before it."""

    @property
    def return_value(self) -> Any:
        """Raises it."""
        raise self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


def _returned(
    overrides: Sequence[str], spec: Experiment, run: RunDirectory, cell: Cell, ended: CellStatus | None
) -> JobReturn:
    found = JobReturn(overrides=redacted(list(overrides)), status=JobStatus.COMPLETED)
    if ended is not None and ended.state == "finished":
        found.return_value = objective_value(spec, run.report())
    elif ended is not None:
        found = Failed(overrides=found.overrides, status=JobStatus.FAILED)
        found.return_value = RunError(f"{cell.name}: {ended.state}: {ended.why}")
    return found
