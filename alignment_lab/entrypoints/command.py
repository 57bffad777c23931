"""The command: `python train.py` in a clone, `alignment-lab` where the package is installed."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ..config import parse
from ..config.compose import errors_as_sentences, register_with_hydra
from ..runtime.files import relative_to_cwd
from ..runtime.paths import CONF
from ..runtime.run_directory import RunDirectory

CONFIG_PATH_FLAGS = ("--config-path", "-cp")
VALUE_FLAGS = (
    *CONFIG_PATH_FLAGS,
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
    "--package",
    "-p",
    "--experimental-rerun",
)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run_experiment(config: DictConfig) -> float | None:
    """One run, or a cell of a sweep; returns its objective. A cell that fails leaves a record of it."""
    hydra_config = HydraConfig.get()
    run = RunDirectory(relative_to_cwd(Path(hydra_config.runtime.output_dir)))
    with nullcontext() if hydra_config.mode is RunMode.MULTIRUN else errors_as_sentences(discard=run):
        spec = parse(config)
        from ..actions import run_action  # not needed to answer a mistake

        return run_action(spec, run)


def main() -> None:
    """Register the lab with Hydra and let it call `run_experiment`."""
    register_with_hydra()
    sys.argv[1:] = overrides_last(absolute_config_path(sys.argv[1:]))
    with errors_as_sentences():
        run_experiment()


def overrides_last(arguments: list[str]) -> list[str]:
    """The arguments with KEY=VALUE words behind the flags: argparse takes them in one place only."""
    flags: list[str] = []
    overrides: list[str] = []
    for word, before in zip(arguments, ["", *arguments[:-1]], strict=True):
        is_override = word[0:1] != "-" and ("=" in word or word[0:1] in "+~") and before not in VALUE_FLAGS
        (overrides if is_override else flags).append(word)
    return [*flags, *overrides]


def absolute_config_path(arguments: list[str]) -> list[str]:
    """The arguments with an absolute --config-path: Hydra takes a relative one from this module's folder."""
    absolute = list(arguments)
    for index, argument in enumerate(arguments):
        flag, equals, folder = argument.partition("=")
        if argument in CONFIG_PATH_FLAGS and index + 1 < len(arguments):
            absolute[index + 1] = _absolute(arguments[index + 1])
        elif equals and flag in CONFIG_PATH_FLAGS:
            absolute[index] = f"{flag}={_absolute(folder)}"
    return absolute


def _absolute(folder: str) -> str:
    return folder if folder.startswith("pkg://") else str(Path(folder).absolute())


if __name__ == "__main__":
    main()
