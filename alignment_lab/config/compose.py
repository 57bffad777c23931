"""The lab as a Hydra application: where options are, what cells are called, how a mistake ends the command.

Imports neither torch nor transformers, so that a mistake is answered within a second.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..runtime.command_line import typed_command
from ..runtime.disk import disk_is_full
from ..runtime.errors import Interrupted, RunError, UserError
from ..runtime.files import write_atomic
from ..runtime.library_internals import let_hydra_errors_propagate, save_multirun_config_with
from ..runtime.paths import CONF
from ..runtime.redaction import redact, redact_data, redacting_excepthook
from ..runtime.run_directory import RunDirectory
from . import Experiment, parse, register_schemas, settle_rows
from .hydra_errors import describe_hydra_error, is_flag_error, is_group_error, is_part_of_null
from .option_files import check_option_files, describe_yaml_error

_NO_SEARCHPATH = "provider=hydra.searchpath"
TRACEBACK_WANTED = os.environ.get("HYDRA_FULL_ERROR") == "1"
FOLDER_NAME_LIMIT = 120  # characters; most file systems take 255 bytes
USER_ERRORS = (UserError, HydraException, OmegaConfBaseException)
# what Hydra and OmegaConf raise besides: see hydra_errors
UNTYPED_ERRORS = (
    ValueError,
    AssertionError,
    AttributeError,
    UserWarning,
)


class ConfSearchPath(SearchPathPlugin):
    """Lets a run's own spec.yaml (`--config-path RUN --config-name spec`) find the options in conf/ too."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append conf/, behind whatever the command line named."""
        search_path.append(provider="alignment_lab", path=f"file://{CONF}")


class RedactedOmegaConf(OmegaConf):
    """OmegaConf, but what it saves holds no secret."""

    @staticmethod
    def save(config: Any, f: Any, resolve: bool = False) -> None:
        """Write a configuration as YAML; nothing of a plan, which leaves the record of a sweep as it is."""
        if getattr(config.get("action"), "name", config.get("action")) == "plan":
            return
        plain = redact_data(OmegaConf.to_container(config, resolve=resolve))
        write_atomic(Path(f), OmegaConf.to_yaml(OmegaConf.create(plain)))


def register_with_hydra() -> None:
    """Tell Hydra of the schemas, of conf/ and of how cells are named. Safe to call twice."""
    let_hydra_errors_propagate()  # to errors_as_sentences
    register_schemas()
    check_option_files()
    Plugins.instance().register(ConfSearchPath)
    OmegaConf.register_new_resolver("cell", folder_name, replace=True)
    OmegaConf.register_new_resolver("command", typed_command, replace=True)  # for --help
    OmegaConf.register_new_resolver("unsecret", run_folder_name, replace=True)
    save_multirun_config_with(RedactedOmegaConf)
    sys.excepthook = redacting_excepthook
    # Without _self_ in its `defaults`, a file's own values come last, as everybody expects
    warnings.filterwarnings("ignore", "In '.*': Defaults list is missing `_self_`", UserWarning)
    warnings.filterwarnings("error", f"{_NO_SEARCHPATH}.*", UserWarning)


def folder_name(overrides: str) -> str:
    """A cell's overrides as a folder name: no separators, short, and distinct where they are distinct."""
    overrides = redact(overrides) or "defaults"
    name = re.sub(r"[^\w.,=+-]+", "_", overrides, flags=re.ASCII)
    if name == overrides and len(name) <= FOLDER_NAME_LIMIT:
        return name
    return f"{name[:FOLDER_NAME_LIMIT]}-{hashlib.sha256(overrides.encode()).hexdigest()[:6]}"


def run_folder_name(name: str, action: Any = "train") -> str:
    """A run's name as a folder name; unchanged, unless it holds a secret; of an evaluation what it is."""
    if getattr(action, "name", action) == "evaluate":
        return "evaluation"
    return name if redact(name) == name else folder_name(name)


def compose_experiment(overrides: list[str], config_name: str = "config") -> Experiment:
    """Compose and check one experiment; needs an initialized Hydra, as inside `@hydra.main`."""
    return settle_rows(parse(compose(config_name, overrides)), overrides)


def load_experiment(overrides: Sequence[str] = (), *, config_dir: str | Path | None = None) -> Experiment:
    """The experiment of a command line, in a process of the user's own, such as a notebook.

    `config_dir` is --config-dir. Raises UserError for a mistake, as a sentence.
    """
    register_with_hydra()
    options = [f"hydra.searchpath=['file://{Path(config_dir).absolute()}']"] if config_dir else []
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose_experiment([*options, *overrides])
    except (*USER_ERRORS, *UNTYPED_ERRORS) as error:
        if not _is_mistake(error):
            raise
        raise UserError(describe_hydra_error(error)) from error


def _is_mistake(error: Exception) -> bool:
    return isinstance(error, USER_ERRORS) or any(
        is_mistake(error) for is_mistake in (is_group_error, is_part_of_null, is_flag_error)
    )


@contextmanager
def errors_as_sentences(discard: RunDirectory | None = None) -> Iterator[None]:
    """Turn a user's mistake into one sentence and exit code 2, and remove `discard` if nothing came of it.

    HYDRA_FULL_ERROR=1 gives the traceback instead. A run that failed ends with 1, one that a signal ended
    with 128 plus its number.
    """
    try:
        yield
    except (*USER_ERRORS, *UNTYPED_ERRORS) as error:
        if not _is_mistake(error):
            raise
        if discard:
            discard.discard_if_unused()
        if TRACEBACK_WANTED:
            raise
        _exit(f"error: {describe_hydra_error(error)}", 2)
    except yaml.YAMLError as error:
        if TRACEBACK_WANTED:
            raise
        _exit(f"error: {describe_yaml_error(error)}", 2)
    except RunError as error:
        _exit(f"{getattr(error, 'details', '')}error: {error}", error.code)
    except Interrupted as error:
        _exit(str(error), error.code)
    except KeyboardInterrupt:
        _exit("interrupted", 130)
    except (OSError, RuntimeError) as error:
        sentence = _describe_system_error(error)
        if sentence is None or TRACEBACK_WANTED:
            raise
        _exit(f"error: {sentence}", 1)


def _exit(message: str, code: int) -> None:
    print(redact(message), file=sys.stderr)
    sys.exit(code)


def _describe_system_error(error: Exception) -> str | None:
    """A sentence for a full disk or a job of submitit without a result; None for any other error."""
    if isinstance(error, OSError) and disk_is_full(error):
        file = error.filename or "nothing can be written"
        return f"the disk is full: {file}; make room, and give the command again"
    submitit = sys.modules.get("submitit.core.utils")  # imported only where it is used
    if submitit is not None and isinstance(error, submitit.UncompletedJobError):
        return (
            "hydra/launcher=submitit_local hydra.launcher.timeout_min: a cell was cut off; its run.json says "
            "why, and the same command with this hydra.sweep.dir goes on."
        )
    return None
