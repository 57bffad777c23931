"""What a library's error means to the user who asked for too much, in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path


def disk_full_message(folder: Path, what: str = "") -> str:
    """The disk under `folder` is full; `what` says more of it."""
    free = shutil.disk_usage(
        next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    ).free
    return (
        f"the disk is full: {what}{free / 1e6:,.1f} MB are free in {folder}; make room there, and the same command with "
        f"hydra.run.dir={folder} goes on from the newest checkpoint."
    )
