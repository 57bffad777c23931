"""The directory of a run or of a sweep, as Hydra composed it: checked, made, and put back into the config.

One that is named by the time of day is always new; one that the user names must be new, empty or the lab's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, read_write

from ..distributed import ranks
from ..runtime import folders
from ..runtime.errors import UserError
from .manifest import SUBMITIT_DIR

CLOCK = "${now:"  # in the name of a directory that is to be new
SWEEP_RECORDS = ("sweep.json", "search.json", "study.jsonl")


def make_run_directory(config: DictConfig) -> None:
    """Check and make the directory of one run. Raises UserError where it cannot be, or is not the lab's."""
    settings, key = config.hydra, "hydra.run.dir"
    folder = _expand(key, settings.run.dir)
    is_new = CLOCK in str(OmegaConf.to_container(settings.run, resolve=False)["dir"])  # type: ignore[index, call-overload]
    action = getattr(config.action, "name", config.action)
    if is_new and ranks.is_launched() and not ranks.is_main_process():
        folder = Path()  # rank 0's is used
    elif is_new:
        _require_one_clock(config, action)
        folder = _make(key, folder, is_new=True)
    else:
        if action != "plan":  # which writes nothing
            folders.claim_run_directory(folder, f"{key}={folder}")
        _make(key, folder)
    with read_write(config):
        config.hydra.run.dir = str(folder)


def _require_one_clock(config: DictConfig, action: str) -> None:
    nodes = config.parallel.get("nodes", 1)
    if nodes != 1 and action == "train" and not ranks.is_launched():
        raise UserError(
            f"parallel.nodes={nodes}: each machine would name the run's directory by its own clock; "
            "give all of them the same: hydra.run.dir=DIRECTORY."
        )


def make_sweep_directory(config: DictConfig) -> bool:
    """Check and make the directory of a sweep, and fix its name for the cells; returns whether it is new.

    submitit pickles every cell with all of its settings, secrets included: its folder is readable by the user
    alone. Raises UserError where the directory cannot be made, or holds what no sweep of the lab wrote.
    """
    settings, key = config.hydra, "hydra.sweep.dir"
    folder = _expand(key, settings.sweep.dir)
    derived = settings.launcher.get("sweep_dir") or settings.sweeper.get("sweep_dir")
    raw = str(OmegaConf.to_container(settings.sweep, resolve=False)["dir"])  # type: ignore[index, call-overload]
    by_clock = CLOCK in raw and not derived
    if folders.holds_run(folder):
        raise UserError(f"{key}={folder}: is one run and no sweep; give a directory that is new or empty.")
    if not by_clock and folder.is_dir() and not _holds_sweep(folder):
        entries = folders.foreign_entries(folder, [SUBMITIT_DIR])
        foreign = [name for name in entries if not _is_run(folder / name)]
        folders.refuse_foreign(foreign, f"{key}={folder}", "no sweep of the lab")
    is_new = by_clock or not folder.exists()
    folder = _make(key, folder, is_new=by_clock)
    quoted = QuotedString(str(folder), Quote.single).with_quotes()
    with read_write(config):
        config.hydra.sweep.dir = str(folder)
        # a cell is composed from the overrides, and would name it by its own, or by its own time
        config.hydra.overrides.hydra.append(f"{key}={quoted}")
    if submitit := config.hydra.launcher.get("submitit_folder"):
        Path(submitit.partition("%")[0]).mkdir(mode=0o700, parents=True, exist_ok=True)
    return is_new


def require_own_cells(sweep: Path, names: Iterable[str]) -> None:
    """Raise UserError where the folder of a cell is another's too, or holds what no run of the lab wrote.

    A sweep's folder that this command made is taken back then.
    """
    try:
        _require_own_cells(Counter(sweep / name for name in names))
    except UserError:
        folders.take_back(sweep)
        raise


def _require_own_cells(cells: Counter[Path]) -> None:
    for folder, count in cells.items():
        if count > 1:
            raise UserError(
                f"hydra.sweep.subdir: {count} cells would share {folder}; let it name what is "
                "swept, or leave it out."
            )
        folders.require_own(folder, str(folder))


def _is_run(path: Path) -> bool:
    return path.is_dir() and (folders.holds_run(path) or not any(path.iterdir()))


def _holds_sweep(folder: Path) -> bool:
    """Whether a sweep of the lab was started there."""
    return folders.saved_by_the_lab(folder / "multirun.yaml") or any(
        _is_record(folder / name) for name in SWEEP_RECORDS
    )


def _is_record(file: Path) -> bool:
    try:
        text = file.read_text()
        first = json.loads(text.partition("\n")[0] if file.suffix == ".jsonl" else text)
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and (
        {"launcher_settings", "cells"} <= first.keys()
        or {"objective", "trials"} <= first.keys()
        or {"op_code", "study_name"} <= first.keys()
    )


def _expand(key: str, value: Any) -> Path:
    if value is None or not str(value).strip():
        raise UserError(
            f"{key} is empty, as a shell leaves it where a variable is not set; give a directory, "
            "or leave it out: there is a new one for each command."
        )
    try:
        folder = Path(str(value)).expanduser()
        folders.refuse_new_at_root(folder, f"{key}={value}")
        if folder.is_symlink() and not folder.exists():
            raise UserError(f"{key}={value}: is a link to what does not exist; give another.")
    except RuntimeError as error:  # ~nobody
        raise UserError(f"{key}={value}: {error}; give another.") from None
    except OSError as error:  # a name that is too long, say
        raise UserError(f"{key}={value}: cannot be a directory ({error.strerror}); give another.") from None
    return folder


def _make(key: str, folder: Path, *, is_new: bool = False) -> Path:
    """Make a directory before Hydra does; raises UserError, naming the key, where it cannot be made."""
    try:
        if is_new:
            return folders.make_new_folder(folder)
        folders.make_folder(folder)
        return folder
    except OSError as error:
        raise UserError(
            f"{key}={folder}: the directory cannot be made ({error.strerror}); give another."
        ) from error
