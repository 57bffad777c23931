"""Hydra's door: where the options lie, how a sweep's cells are named, and how a mistake ends the command.

Imports neither torch nor transformers, so that a mistake is answered within a second.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal import utils
from hydra._internal.core_plugins import basic_sweeper
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..runtime.errors import Interrupted, RunError, UserError, disk_is_full
from ..runtime.files import write_atomic
from ..runtime.paths import CONF
from ..runtime.redaction import redact, redacted, redacting_excepthook
from ..runtime.run_directory import RunDirectory
from . import Experiment, parse, register_schemas
from .hydra_errors import describe_hydra_error, is_group_error, is_part_of_null

TRACEBACK_WANTED = os.environ.get("HYDRA_FULL_ERROR") == "1"
FOLDER_NAME_LIMIT = 120  # characters; most file systems take 255 bytes


class ConfSearchPath(SearchPathPlugin):
    """Lets a run's own spec.yaml (`--config-path RUN --config-name spec`) find the options in conf/ as well."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append conf/, behind whatever the command line named."""
        search_path.append(provider="alignment_lab", path=f"file://{CONF}")


class RedactedOmegaConf(OmegaConf):
    """OmegaConf, but what it saves holds no secret."""

    @staticmethod
    def save(config: Any, f: Any, resolve: bool = False) -> None:
        """Write a configuration as YAML."""
        write_atomic(
            Path(f),
            OmegaConf.to_yaml(OmegaConf.create(redacted(OmegaConf.to_container(config, resolve=resolve)))),
        )


def register_with_hydra() -> None:
    """Tell Hydra of the schemas, of conf/ and of how cells are named. Safe to call twice."""
    utils.run_and_report = lambda function: (
        function()
    )  # it would print a paragraph and exit with 1; one_sentence has our way
    register_schemas()
    Plugins.instance().register(ConfSearchPath)
    OmegaConf.register_new_resolver("cell", folder_name, replace=True)
    OmegaConf.register_new_resolver("unsecret", run_folder_name, replace=True)
    basic_sweeper.OmegaConf = RedactedOmegaConf  # it writes multirun.yaml
    sys.excepthook = redacting_excepthook


def folder_name(overrides: str) -> str:
    """A sweep cell's overrides as a folder name: no separators, short, and distinct where they are distinct."""
    overrides = redact(overrides) or "defaults"
    name = re.sub(r"[^\w.,=+-]+", "_", overrides, flags=re.ASCII)
    if name == overrides and len(name) <= FOLDER_NAME_LIMIT:
        return name
    return f"{name[:FOLDER_NAME_LIMIT]}-{hashlib.sha256(overrides.encode()).hexdigest()[:6]}"


def run_folder_name(name: str) -> str:
    """A run's name in the name of its folder: as it is, or without the secret that somebody put into it."""
    return name if redact(name) == name else folder_name(name)


def compose_experiment(overrides: list[str], config_name: str = "config") -> Experiment:
    """Compose and check one experiment; needs an initialized Hydra, as inside `@hydra.main`."""
    return parse(compose(config_name, overrides))


@contextmanager
def errors_as_sentences(discard: RunDirectory | None = None) -> Iterator[None]:
    """Turn a user's mistake into one sentence and exit code 2, and take back the run directory in which nothing came about.

    HYDRA_FULL_ERROR=1 gives the traceback instead. A run that failed ends with 1, one that a signal ended with 128 and its number.
    """
    try:
        yield
    except (
        UserError,
        HydraException,
        OmegaConfBaseException,
        ValueError,
        AssertionError,
        AttributeError,
    ) as error:
        known = isinstance(error, UserError | HydraException | OmegaConfBaseException)
        if not known and not is_group_error(error) and not is_part_of_null(error):
            raise
        if discard:
            discard.discard()
        if TRACEBACK_WANTED:
            raise
        print(redact(f"error: {describe_hydra_error(error)}"), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not disk_is_full(error) or TRACEBACK_WANTED:
            raise
        print(
            f"error: the disk is full: {error.filename or 'nothing can be written'}; make room, and give the command again",
            file=sys.stderr,
        )
        sys.exit(1)
    except RunError as error:
        print(redact(f"{getattr(error, 'details', '')}error: {error}"), file=sys.stderr)
        sys.exit(error.code)
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        if not _of_submitit(error) or TRACEBACK_WANTED:
            raise
        said = "a cell was cut off; its run.json says why, and the same command with this hydra.sweep.dir goes on"
        print(f"error: hydra/launcher=submitit_local hydra.launcher.timeout_min: {said}.", file=sys.stderr)
        sys.exit(1)


def _of_submitit(error: RuntimeError) -> bool:
    """Whether submitit says that a job left no result; it is imported where it is used alone."""
    module = sys.modules.get("submitit.core.utils")
    return module is not None and isinstance(error, module.UncompletedJobError)
