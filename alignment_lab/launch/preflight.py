"""Every cell of a sweep is composed and checked before the first one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

from ..compose import experiment, one_sentence
from ..errors import UserError
from ..secrets import redacted


class Preflight(Callback):
    """Ends the command with one sentence where a cell cannot run; Hydra calls it, see conf/hydra/lab.yaml."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """The run directory must be one that can be made."""
        with one_sentence():
            make("hydra.run.dir", config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        """Check every cell of a grid; other sweepers choose their cells as they go, each checked when it starts."""
        sweeper = config.hydra.sweeper
        if not sweeper.get("_target_", "").endswith("BasicSweeper"):
            return
        params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        with one_sentence():
            grid = cells([*params, *config.hydra.overrides.task], GlobalHydra.instance().config_loader())
            for cell in grid:
                experiment(cell, config_name or "config")
            make("hydra.sweep.dir", config.hydra.sweep.dir)
        unswept = ",".join(constant(grid))
        with read_write(config):  # Hydra composes each cell with these: a folder is named by what is swept alone
            config.hydra.overrides.hydra.append(f"hydra.job.config.override_dirname.exclude_keys=[{unswept}]")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Hydra prints the overrides of a job that failed; nothing else reads them."""
        job_return.overrides = redacted(job_return.overrides)


def make(key: str, folder: str) -> None:
    """Make the directory that Hydra would make; raises UserError where it cannot be made."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={folder}: no directory can be made there ({error.strerror}); give another.") from error


def cells(overrides: list[str], loader: Any = None) -> list[list[str]]:
    """The overrides of every cell of a grid: ["a=1,2", "b=3"] -> [["a=1", "b=3"], ["a=2", "b=3"]]."""
    parsed = OverridesParser.create(loader).parse_overrides(overrides)
    return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]


def constant(grid: list[list[str]]) -> list[str]:
    """The keys that have the same value in every cell."""
    shared = set(grid[0]).intersection(*grid[1:])
    return sorted(override.partition("=")[0].lstrip("+~") for override in shared)
