"""Where caches go when the user's own place for them cannot be written: a temporary folder, told in a line.

A container without a home, a read-only home or a read-only cache of a site would otherwise end in an error of
a library about a file of the user's that is fine. Nothing is written to find out. Imports no library, since
they read these variables when they are imported.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from .disk import nearest_existing

LAB_CACHE = "ALIGNMENT_LAB_CACHE"
# what each library reads, and where below its parent it looks without it
HF_CACHES = {"HF_DATASETS_CACHE": "datasets", "HF_MODULES_CACHE": "modules"}


def redirect_unwritable_caches() -> str | None:
    """Set the variables of caches that cannot be written to folders of a temporary one, removed at the end.

    Returns a line that says so, None where all can be written. Processes that this one starts inherit them.
    """
    reason, scratch = "", None
    if not _home_exists():
        reason, scratch = f"HOME={os.environ.get('HOME', '')} is no directory", temporary_folder("cache")
        os.environ["HOME"] = str(scratch)
    unwritable = {name: folder for name, folder in cache_folders().items() if not is_writable(folder)}
    if not unwritable and scratch is None:
        return None
    scratch = scratch or temporary_folder("cache")
    reasons = [reason, *(f"{folder} cannot be written" for folder in unwritable.values())]
    for name in unwritable:
        os.environ[name] = str(scratch / name.lower())
    return (
        f"{', '.join(filter(None, reasons))}: caches are in {scratch} and end with this command; "
        f"let {LAB_CACHE} and HF_HOME name folders that can be written."
    )


def _home_exists() -> bool:
    try:
        return Path.home().is_dir()
    except RuntimeError:  # no HOME, and no such user
        return False


def cache_folders() -> dict[str, Path]:
    """The folder of each cache that is written, by the variable that names another one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hugging_face = Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folders = {LAB_CACHE: cache / "alignment_lab", "MPLCONFIGDIR": settings / "matplotlib"}
    folders |= {name: hugging_face / below for name, below in HF_CACHES.items()}
    if not hugging_face.exists():  # what is there can be read: models that were fetched before
        folders["HF_HOME"] = hugging_face
    return {name: Path(os.environ.get(name) or folder) for name, folder in folders.items()}


def temporary_folder(purpose: str) -> Path:
    """A new folder that ends with this process. Raises OSError."""
    folder = tempfile.mkdtemp(prefix=f"alignment_lab-{purpose}-")
    owner = os.getpid()  # a process that is forked must not remove it

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)


def is_writable(folder: Path) -> bool:
    """Whether files can be made in the folder, or where it would be. By trial: root may not everywhere."""
    try:
        with tempfile.TemporaryFile(dir=nearest_existing(folder)):
            return True
    except OSError:
        return False
