"""Folders that this command made, and those that it must not touch.

What this process makes is remembered, so that a mistake takes back that and nothing else. A folder is the
lab's where it holds the lab's record of a run; any other that is not empty is somebody's work. Refuses to
know what is in a run.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from .errors import UserError

RUN_STATES = (
    "queued",
    "running",
    "interrupted",  # the same command resumes it
    "finished",
    "failed",
)
STATE_FILE = "run.json"
# in each config that Hydra saves for the lab
HYDRA_MARK = "alignment_lab.sweep.preflight"
PREVIEW_FILE = "preview.html"
# in the footers of the lab's pages
PAGE_MARKS = (b"by <code>python -m alignment_lab.report</code>", b"by <code>action=preview</code>")
HYDRA_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")
# what a run that was killed at its very start leaves, and what file systems put into folders themselves
LEFTOVERS = re.compile(r"\.job\.json|\.(run|\.job)\.json\.\d+\.partial|\.nfs[0-9a-f]+|lost\+found")
MAX_NAMED = 3  # files that a sentence names
MAX_RETRIES = 100  # of making a folder whose parents another command takes back

_made: set[Path] = set()  # absolute paths of the folders that this process made
_claimed: set[Path] = set()  # run directories that were checked before Hydra wrote into them


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; those that were not there are remembered. Raises OSError."""
    for attempt in range(MAX_RETRIES):
        try:
            for each in reversed([folder, *folder.parents]):
                _make_one(each.absolute())
            return
        except FileNotFoundError:  # another command took an empty parent back
            if attempt == MAX_RETRIES - 1:
                raise


def _make_one(folder: Path) -> None:
    if folder.is_dir():
        return
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        _made.add(folder)
        return
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:  # a link to nowhere; or another command has just taken it back
        is_folder = not folder.is_symlink()
    if not is_folder:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def make_new_folder(folder: Path) -> Path:
    """Make a folder that was not there: `folder`, or the first free of `folder-2`, `folder-3`, ...

    Of several commands that ask at once, on any machine, each gets one of its own. Raises OSError.
    """
    for number in count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        for _ in range(MAX_RETRIES):
            make_folder(candidate.parent)
            try:
                candidate.mkdir()
            except FileExistsError:
                break
            except FileNotFoundError:  # another command took the empty parent back
                continue
            _made.add(candidate.absolute())
            return candidate
    raise AssertionError("a free number is always found")


def refuse_new_at_root(folder: Path, label: str) -> None:
    """Raise UserError where making the folder would make a new one directly under `/`.

    That is what is left of `$SCRATCH/run` where SCRATCH is not set. `label` begins the sentence.
    """
    if not folder.is_absolute() or len(folder.parts) < 2:
        return
    top = Path(*folder.parts[:2])
    if not os.path.lexists(top):
        raise UserError(
            f"{label}: {top} would be a new directory at the root of the file system, as where a variable in "
            "front of the path is not set; give another directory, or make it first if it is meant: "
            f"mkdir {top}"
        )


def was_made(folder: Path) -> bool:
    """Whether this process made the folder, or one that it lies in."""
    return not _made.isdisjoint((folder.absolute(), *folder.absolute().parents))


def take_back(folder: Path) -> None:
    """Remove an empty folder, and parents that are empty then, as far as this process made them."""
    folder = folder.absolute()
    while was_made(folder) and folder != Path.cwd():
        try:
            folder.rmdir()
        except OSError:  # not empty, gone already, or a mount point
            if folder.exists():
                return
        _made.discard(folder)
        folder = folder.parent


def take_back_hydra(folder: Path) -> None:
    """Remove what Hydra itself wrote into a run directory that this process made (hydra.output_subdir)."""
    written = folder / ".hydra"
    if was_made(folder) and saved_by_the_lab(written / "hydra.yaml"):
        for name in HYDRA_FILES:
            (written / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            written.rmdir()


def is_state_of_a_run(state: Any) -> bool:
    """Whether this is what the lab writes into run.json, and not another tool's."""
    return (
        isinstance(state, dict)
        and state.get("state") in RUN_STATES
        and isinstance(state.get("id"), str)
        and "error" in state
    )


def holds_run(folder: Path) -> bool:
    """Whether the folder has the lab's record of a run."""
    try:
        return is_state_of_a_run(json.loads((folder / STATE_FILE).read_bytes()))
    except (OSError, ValueError):
        return False


def claim_run_directory(folder: Path, label: str) -> None:
    """Raise UserError where the folder is neither new, nor empty, nor the lab's. `label` begins it."""
    require_own(folder, label)
    _claimed.add(folder.absolute())


def require_own(folder: Path, label: str) -> None:
    """Raise UserError where writing a run into the folder would mix it with, or replace, somebody's files."""
    if folder.absolute() in _claimed:  # Hydra may have written into it meanwhile
        _claimed.discard(folder.absolute())
        return
    if folder.is_dir() and not holds_run(folder):
        refuse_foreign(foreign_entries(folder), label, "no run of the lab")
    elif folder.exists() and not folder.is_dir():
        raise UserError(f"{label}: is a file; give a directory.")


def refuse_foreign(names: list[str], label: str, maker: str) -> None:
    """Raise UserError where there are names; `maker` is who would have made the folder."""
    if not names:
        return
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    contents = f"{', '.join(names[:MAX_NAMED])}{more}"
    if STATE_FILE in names:
        contents = f"a {STATE_FILE} that is not the lab's"
    raise UserError(
        f"{label}: holds {contents}, and {maker} made it: it is left alone; "
        "give a directory that is new or empty."
    )


def foreign_entries(folder: Path, known: Iterable[str] = ()) -> list[str]:
    """Names in the folder, sorted, but for `known` ones and what a start that was killed leaves there."""
    known = set(known)
    return sorted(
        path.name + "/" * path.is_dir()
        for path in folder.iterdir()
        if path.name not in known and not _is_leftover(path)
    )


def _is_leftover(path: Path) -> bool:
    if path.name == ".lock":
        return path.is_file() and not path.stat().st_size
    if path.name == PREVIEW_FILE:  # of an experiment that may be trained there now
        return _is_own_page(path)
    if path.name == ".hydra":
        return saved_by_the_lab(path / "hydra.yaml")
    return bool(LEFTOVERS.fullmatch(path.name))


def saved_by_the_lab(file: Path) -> bool:
    """Whether Hydra saved this config for the lab."""
    try:
        return HYDRA_MARK in file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def is_foreign_page(path: Path) -> bool:
    """Whether a file is there that is no report page of the lab."""
    return path.exists() and not _is_own_page(path)


def _is_own_page(path: Path) -> bool:
    content = path.read_bytes() if path.is_file() else b""
    return any(mark in content for mark in PAGE_MARKS)


def set_aside(path: Path) -> Path:
    """Rename what the lab did not write and whose name it needs; returns the new path beside it."""
    kept = free_name(path)
    path.replace(kept)
    return kept


def free_name(path: Path) -> Path:
    """The first of PATH.set-aside0, 1, ... that is not there."""
    names = (path.with_name(f"{path.name}.set-aside{number}") for number in count())
    return next(name for name in names if not os.path.lexists(name))
