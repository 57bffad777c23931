"""Every cell of a sweep is composed and checked before the first one runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from ..config import DataSource, Experiment, to_plain
from ..config.compose import errors_as_sentences
from ..estimate import problems
from ..runtime.errors import UserError
from ..runtime.redaction import redacted
from .grid import compose_grid
from .search import sweeper

if TYPE_CHECKING:
    from .launcher import SweepLauncher


class Preflight(Callback):
    """Ends the command with one sentence where a cell cannot run; Hydra calls it, see conf/hydra/lab.yaml."""

    def __init__(self) -> None:
        OmegaConf.register_new_resolver("sweep_name", _sweep_name, replace=True)

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """The run directory must be one that can be made; a launcher starts sweeps alone, and Hydra would not say so."""
        with errors_as_sentences():
            if own_launcher(config):
                raise UserError(
                    f"hydra/launcher={_option(config)}: give --multirun as well; one experiment is a sweep of one cell."
                )
            make_directory("hydra.run.dir", config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        """Check every cell of a grid; other sweepers choose their cells as they go, each checked when it starts."""
        sweeper = config.hydra.sweeper
        if sweeper.is_search(sweeper):
            self._prepare_search(config, config_name or "config")
            return
        if not sweeper.get("_target_", "").endswith("BasicSweeper"):
            return
        params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        ours = own_launcher(config)
        with errors_as_sentences():
            grid = grid_cells([*params, *config.hydra.overrides.task], GlobalHydra.instance().config_loader())
            found = compose_grid(
                grid, config_name or "config", Checked(ours, config.hydra.launcher) if ours else _anything
            )
            if ours and (said := problems.disk_problems(found, Path(config.hydra.sweep.dir))):
                raise UserError(said[0])
            make_sweep_directory(config.hydra)
        if ours:
            ours.register()
            ours.composed.update(zip(map(tuple, grid), found, strict=True))
            BasicSweeper.validate_batch_is_legal = lambda self, batch: (
                None
            )  # it was, and to compose all again takes minutes
        unswept = ",".join(constant_keys(grid))
        with read_write(
            config
        ):  # Hydra composes each cell with these: a folder is named by what is swept alone
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{unswept}]")

    def _prepare_search(self, config: DictConfig, config_name: str) -> None:
        """Its cells are not known yet; the ends of what is searched are."""
        ours = own_launcher(config)
        with errors_as_sentences():
            sweeper.prepare_search(
                config, config_name, Checked(ours, config.hydra.launcher) if ours else _anything
            )
            make_sweep_directory(config.hydra)
        if ours:
            ours.register()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Hydra prints the overrides of a job that failed; nothing else reads them."""
        job_return.overrides = redacted(job_return.overrides)


class Checked:
    """What is wrong with a cell that the lab's own launchers take; its data are read once for all cells that have the same."""

    def __init__(self, launcher: type[SweepLauncher], settings: Any) -> None:
        self.launcher, self.settings = launcher, settings
        self._data: dict[str, list[str]] = {}

    def __call__(self, spec: Experiment) -> list[str]:
        """Sentences."""
        plain = to_plain(spec)
        key = f"{plain['data']} {spec.method.format}"
        if key not in self._data:
            self._data[key] = self._read(spec)
        return [*self.launcher.wrong(spec, self.settings), *self._data[key]]

    def _read(self, spec: Experiment) -> list[str]:
        """What is wrong with its data, where they are here."""
        from .. import data

        try:
            if spec.data.source is not DataSource.hub:
                data.load(spec)
        except UserError as error:
            return [str(error)]
        return []


def own_launcher(config: DictConfig) -> type[SweepLauncher] | None:
    """The one of the lab's own launchers that was chosen, if any; a command that needs none does not pay for its import."""
    target = str(config.hydra.launcher.get("_target_", ""))
    if not target.startswith(f"{__package__}."):
        return None
    from .launchers.pool import PoolLauncher
    from .launchers.slurm import SlurmLauncher

    return {one.target(): one for one in (PoolLauncher, SlurmLauncher)}[target]


def _option(config: DictConfig) -> str:
    return str(config.hydra.launcher._target_).split(".")[-2]


def _sweep_name(overrides: Any, params: Any) -> str:
    from .launcher import sweep_name

    return sweep_name(overrides, params)


def _anything(spec: Experiment) -> list[str]:
    return []


def make_directory(key: str, folder: str) -> None:
    """Make the directory that Hydra would make; raises UserError where it cannot be made."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{key}={folder}: no directory can be made there ({error.strerror}); give another."
        ) from error


def make_sweep_directory(settings: Any) -> None:
    """The sweep's folder; in it submitit pickles every cell with its settings, secrets and all: that one is for the user alone."""
    make_directory("hydra.sweep.dir", settings.sweep.dir)
    if folder := settings.launcher.get("submitit_folder"):
        Path(folder.partition("%")[0]).mkdir(mode=0o700, parents=True, exist_ok=True)


def grid_cells(overrides: list[str], loader: Any = None) -> list[list[str]]:
    """The overrides of every cell of a grid: ["a=1,2", "b=3"] -> [["a=1", "b=3"], ["a=2", "b=3"]]."""
    parsed = OverridesParser.create(loader).parse_overrides(overrides)
    return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]


def constant_keys(grid: list[list[str]]) -> list[str]:
    """The keys that have the same value in every cell."""
    shared = set(grid[0]).intersection(*grid[1:])
    return sorted(override.partition("=")[0].lstrip("+~") for override in shared)
