"""Every cell of a sweep is composed and checked before the first one runs."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ..compose import experiment, one_sentence


class Preflight(Callback):
    """Ends the command with one sentence where a cell cannot run; Hydra calls it, see conf/hydra/lab.yaml."""

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        """Check every cell of a grid; other sweepers choose their cells as they go, each checked when it starts."""
        sweeper = config.hydra.sweeper
        if sweeper.get("_target_", "").endswith("BasicSweeper"):
            grid = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
            with one_sentence():
                for cell in cells(grid + list(config.hydra.overrides.task)):
                    experiment(cell, config_name or "config")


def cells(overrides: list[str]) -> list[list[str]]:
    """The overrides of every cell of a grid: ["a=1,2", "b=3"] -> [["a=1", "b=3"], ["a=2", "b=3"]]."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
