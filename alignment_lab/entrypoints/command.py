"""The command: `python train.py` in a clone, `alignment-lab` where the package is installed."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from .. import __version__
from ..config import known_keys, parse, settle_rows
from ..config.compose import errors_as_sentences, register_with_hydra
from ..config.validation import did_you_mean
from ..runtime.caches import redirect_unwritable_caches
from ..runtime.errors import UserError
from ..runtime.files import relative_to_cwd
from ..runtime.output import keep_output_writable
from ..runtime.paths import CONF
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest

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
        spec = settle_rows(parse(config), hydra_config.overrides.task)
        from ..actions import run_action  # not needed to answer a mistake

        return run_action(spec, run)


def main() -> None:
    """Register the lab with Hydra and let it call `run_experiment`."""
    keep_output_writable()
    register_with_hydra()
    sys.argv[1:] = overrides_last(absolute_config_path([expand_home(word) for word in sys.argv[1:]]))
    if "--version" in sys.argv[1:]:  # Hydra would show its own
        print(f"alignment_lab {__version__}")
        return
    if line := redirect_unwritable_caches():
        print(line, file=sys.stderr)
    # A signal that comes before the run listens itself ends it at once
    with errors_as_sentences(), StopRequest().listen():
        _check_package(sys.argv[1:])
        run_experiment()


def expand_home(argument: str) -> str:
    """KEY=~/FOLDER with the home directory in place of ~, which Hydra cannot read."""
    key, equals, value = argument.partition("=")
    return f"{key}={os.path.expanduser(value)}" if equals and value[0:2] in ("~", "~/") else argument


def _check_package(arguments: list[str]) -> None:
    """Raise UserError for a --package that shows nothing: Hydra would run the experiment, or exit with 1."""
    package, shown = _flag_value(arguments, "--package", "-p"), _flag_value(arguments, "--cfg", "-c")
    if package is None:
        return
    if shown is None:
        raise UserError(f"--package {package}: it says what --cfg shows; add --cfg job.")
    if shown == "job" and package not in ("_global_", *known_keys()):
        raise UserError(f"--package {package}: no such key{did_you_mean(package, known_keys()) or '.'}")


def _flag_value(arguments: list[str], *names: str) -> str | None:
    """What stands behind a flag, or in it: `-p training`, `--package=training`."""
    for word, after in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in names:
            return value if equals else after
    return None


def overrides_last(arguments: list[str]) -> list[str]:
    """The arguments with KEY=VALUE words behind the flags: argparse takes them in one place only."""
    flags: list[str] = []
    overrides: list[str] = []
    for word, before in zip(arguments, ["", *arguments], strict=False):
        is_override = word[0:1] != "-" and ("=" in word or word[0:1] in "+~") and before not in VALUE_FLAGS
        (overrides if is_override else flags).append(word)
    # Hydra would look for them among its own settings, which are all that it shows
    return flags if "--hydra-help" in flags else [*flags, *overrides]


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
