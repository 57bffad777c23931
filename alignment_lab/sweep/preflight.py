"""Every cell of a sweep is composed and checked before the first one runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ..config import Action, Experiment, to_plain
from ..config.compose import errors_as_sentences
from ..estimate import problems
from ..runtime import folders
from ..runtime.errors import Interrupted, RunError, UserError
from ..runtime.library_internals import job_error, skip_batch_validation, split_sweep
from ..runtime.redaction import redact_data
from .cell_names import cell_folder, exclude_from_names, sweep_name
from .directories import make_run_directory, make_sweep_directory, require_own_cells
from .grid import Check, compose_grid, no_check
from .hydra_plugin import FailedJobReturn
from .search.sweeper import is_search, prepare_search

if TYPE_CHECKING:
    from .launcher import SweepLauncher


class Preflight(Callback):
    """A Hydra callback, named in conf/hydra/lab.yaml: ends the command where a cell cannot run."""

    def __init__(self) -> None:
        OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Make the run directory; refuse what Hydra would ignore without --multirun."""
        with errors_as_sentences():
            _refuse_output_settings(config)
            if ignored := _ignored_without_multirun(config):
                raise UserError(ignored)
            make_run_directory(config)

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        """Check every cell of a grid.

        Other sweepers choose their cells as they go: each is checked when it starts.
        """
        with errors_as_sentences():
            _refuse_output_settings(config)
            for override in config.hydra.overrides.hydra:
                if override.startswith("hydra.run.dir="):
                    raise UserError(f"{override}: a sweep lies in hydra.sweep.dir; set that instead.")
        sweeper = config.hydra.sweeper
        if is_search(sweeper):
            self._prepare_search(config, config_name or "config")
        elif sweeper.get("_target_", "").endswith("BasicSweeper"):
            self._check_grid(config, config_name or "config")
        else:
            with errors_as_sentences():
                make_sweep_directory(config)

    def _check_grid(self, config: DictConfig, config_name: str) -> None:
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        launcher = own_launcher(config)
        with errors_as_sentences():
            grid = grid_cells([*params, *config.hydra.overrides.task], GlobalHydra.instance().config_loader())
            specs = compose_grid(grid, config_name, _cell_check(launcher, config))
            if launcher and (sentences := problems.sweep_disk_problems(specs, Path(config.hydra.sweep.dir))):
                raise UserError(sentences[0])
            # a folder is named by what is swept
            exclude_from_names(config, constant_keys(grid))
            is_new = make_sweep_directory(config)
            names_given = any(each.startswith("hydra.sweep.subdir=") for each in config.hydra.overrides.hydra)
            is_plan = not launcher and any(spec.action is Action.plan for spec in specs)
            if names_given or not is_new or is_plan:
                loader, sweep = GlobalHydra.instance().config_loader(), Path(config.hydra.sweep.dir)
                cells = [cell_folder(config, loader, overrides) for overrides in grid]
                require_own_cells(sweep, cells)
                for name, spec in zip(cells, specs, strict=True):
                    if is_plan and spec.action is Action.plan:
                        folders.make_folder(sweep / name)  # before Hydra does: a plan takes it back
        if launcher:
            launcher.register()
            launcher.composed_specs.update(zip(map(tuple, grid), specs, strict=True))
            # the cells are valid, and Hydra would take minutes to compose all of them again
            skip_batch_validation()

    def _prepare_search(self, config: DictConfig, config_name: str) -> None:
        """The cells of a search are not known yet; the bounds of its space are."""
        launcher = own_launcher(config)
        with errors_as_sentences():
            prepare_search(config, config_name, _cell_check(launcher, config))
            make_sweep_directory(config)
        if launcher:
            launcher.register()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Redact the overrides of a job: Hydra prints them when it failed, and nothing else reads them."""
        job_return.overrides = redact_data(job_return.overrides)
        if isinstance(job_error(job_return), UserError | RunError | Interrupted):
            job_return.__class__ = FailedJobReturn  # its sentence says all


class CellCheck:
    """The problems of a cell with its launcher and its data; data that cells share are read once."""

    def __init__(self, launcher: type[SweepLauncher], settings: Any) -> None:
        self.launcher, self.settings = launcher, settings
        self._data_problems: dict[str, list[str]] = {}

    def __call__(self, spec: Experiment) -> list[str]:
        """One sentence for each problem."""
        if spec.action is not Action.train:
            return [
                f"action={spec.action.name}: a launcher of the lab runs cells that train; leave "
                "hydra/launcher out."
            ]
        key = f"{to_plain(spec)['data']} {spec.method.format}"
        if key not in self._data_problems:
            self._data_problems[key] = _data_problems(spec)
        return [*self.launcher.problems(spec, self.settings), *self._data_problems[key]]


def _data_problems(spec: Experiment) -> list[str]:
    """The problem of its data, where they are on this machine."""
    from .. import data

    if spec.data.is_on_hub():
        return []
    try:
        data.load_rows(spec)
    except UserError as error:
        return [str(error)]
    return []


def _cell_check(launcher: type[SweepLauncher] | None, config: DictConfig) -> Check:
    return CellCheck(launcher, config.hydra.launcher) if launcher else no_check


def own_launcher(config: DictConfig) -> type[SweepLauncher] | None:
    """The lab's launcher that the config chooses, None for another one; imported only where it is chosen."""
    target = str(config.hydra.launcher.get("_target_", ""))
    if not target.startswith(f"{__package__}.launchers."):
        return None
    from .launchers.pool import PoolLauncher
    from .launchers.slurm import SlurmLauncher

    return {launcher.target(): launcher for launcher in (PoolLauncher, SlurmLauncher)}[target]


def _refuse_output_settings(config: DictConfig) -> None:
    """Hydra would write into the directory, or go there, before the lab has checked the experiment."""
    for override in config.hydra.overrides.hydra:
        key, _, value = override.partition("=")
        if key == "hydra.output_subdir" and value not in (".hydra", "null"):
            raise UserError(
                f"{override}: Hydra's own files go to .hydra, or nowhere; give one of .hydra, null."
            )
        if key == "hydra.job.chdir" and value.lower() == "true":
            raise UserError(f"{override}: paths count from where the command is given; leave it out.")


def _ignored_without_multirun(config: DictConfig) -> str | None:
    """Why this is a sweep, given without --multirun: one experiment is trained, and it would be another."""
    choices, hydra = config.hydra.runtime.choices, config.hydra
    if params := hydra.sweeper.get("params"):
        swept = ", ".join(params)
        return f"recipe={choices.get('recipe')}: it is a sweep over {swept}; give --multirun as well."
    for key, usual in (("launcher", "basic"), ("sweeper", "basic")):
        if (option := choices.get(f"hydra/{key}", usual)) != usual:
            return f"hydra/{key}={option}: give --multirun as well; one experiment is a sweep of one cell."
    for override in hydra.overrides.hydra:
        if override.startswith("hydra.sweep."):
            return (
                f"{override}: it is of sweeps, which need --multirun; one experiment lies in hydra.run.dir."
            )
    return None


def grid_cells(overrides: list[str], loader: Any = None) -> list[list[str]]:
    """The overrides of every cell of a grid: ["a=1,2", "b=3"] -> [["a=1", "b=3"], ["a=2", "b=3"]]."""
    parsed = OverridesParser.create(loader).parse_overrides(overrides)
    return split_sweep(parsed)


def constant_keys(grid: Sequence[Sequence[str]]) -> list[str]:
    """The keys that have the same value in every cell."""
    shared = set(grid[0]).intersection(*grid[1:])
    return sorted(override.partition("=")[0].lstrip("+~") for override in shared)
