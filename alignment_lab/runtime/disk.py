"""Free disk space, and the sentence for a full disk. Knows folders and bytes, not what is written there."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

DISK_FULL_PHRASES = (  # how libraries that hide the errno word it
    "No space left",
    "Disk quota",
    "os error 28",
    "os error 122",
    "unexpected pos",
    "file write failed",
)


def nearest_existing(folder: Path) -> Path:
    """`folder`, or the nearest of its parents that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(folder)).free


def disk_is_full(error: BaseException) -> bool:
    """Whether the error means a full disk: by its errno, or by the message of a library that hides it."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
        phrase in str(error) for phrase in DISK_FULL_PHRASES
    )


def disk_full_message(folder: Path, detail: str = "") -> str:
    """One sentence for a full disk under `folder`; `detail` is inserted before the free space."""
    free = f"{free_bytes(folder) / 1e6:,.1f} MB are free"
    return (
        f"the disk is full: {detail}{free} in {folder}; make room there, "
        f"and the same command with hydra.run.dir={folder} resumes from the newest checkpoint."
    )
