"""A complete folder is moved into place: whole, readable by whom the umask lets, and over nobody's files.

Knows names, sizes and times of files. Refuses to know what is in them.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import UserError
from .folders import make_folder, set_aside

Stamps = Mapping[str, Any]  # of each file, by its path in the folder: its size, and when it was written


def stamps(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and time of the last change in ns of every file, by its path in the folder."""
    found = {}
    for path in files_in(folder):
        status = path.lstat()
        found[str(path.relative_to(folder))] = [status.st_size, status.st_mtime_ns]
    return found


def files_in(folder: Path) -> list[Path]:
    """Everything below the folder that is no folder, sorted; links are not followed."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def publish_directory(partial: Path, final: Path) -> None:
    """Move a complete directory into place, replacing what was there."""
    use_umask(partial)
    if final.exists():
        shutil.rmtree(final)
    make_folder(final.parent)
    partial.replace(final)


def publish_beside(partial: Path, final: Path, published: Stamps) -> list[Path]:
    """Move a complete directory into place, replacing of what is there only what `published` describes.

    Other files stay beside the new ones. Where one of them has the name of a new one, or `final` is a link or
    a file, all of it is set aside; returns the paths of what was.
    """
    if not os.path.lexists(final):
        publish_directory(partial, final)
        return []
    present = {} if final.is_symlink() or not final.is_dir() else stamps(final)
    foreign = {name for name, stamp in present.items() if published.get(name) != stamp}
    if not present or foreign & stamps(partial).keys():
        kept = [] if _is_empty_folder(final) else [set_aside(final)]
        publish_directory(partial, final)
        return kept
    if foreign:
        replace_files(partial, final, present.keys() - foreign)
    else:
        publish_directory(partial, final)
    return []


def _is_empty_folder(path: Path) -> bool:
    return not path.is_symlink() and path.is_dir() and not any(path.iterdir())


def replace_files(partial: Path, final: Path, old: Any) -> None:
    """Move every file of `partial` into `final`, one by one, and delete `old` ones that have no successor."""
    use_umask(partial)
    for path in files_in(partial):
        target = final / path.relative_to(partial)
        make_folder(target.parent)
        path.replace(target)
        old = old - {str(path.relative_to(partial))}
    for name in old:
        (final / name).unlink(missing_ok=True)
    shutil.rmtree(partial)


def build_once(final: Path, build: Callable[[Path], object], *, marker: str) -> Path:
    """A folder of the cache: made by `build(folder)` where it has no file `marker` yet; published whole.

    Of several processes that build it at once the first one's is kept: another may read it already. Raises
    UserError where other files have its place.
    """
    if (final / marker).is_file():
        return final
    if os.path.lexists(final) and not _is_empty_folder(final):
        raise UserError(
            f"{final}: has no {marker}, and is in the place of what is to be cached there; move it away, "
            "or let ALIGNMENT_LAB_CACHE name another folder."
        )
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process with this number that was killed
    make_folder(partial)
    try:
        build(partial)
        use_umask(partial)
        partial.replace(final)  # over an empty folder, never over another one
    except OSError:
        if not (final / marker).is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def use_umask(folder: Path) -> None:
    """Give every file below the folder the permissions that the umask, or an ACL, gives to new files.

    safetensors writes files that only their owner can read, whatever the umask says.
    """
    mode = _mode_of_new_files(folder)
    for path in files_in(folder):
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def _mode_of_new_files(folder: Path) -> int:
    """Measured with a file: to read the umask one has to set it, for all threads."""
    probe = folder / f".mode.{os.getpid()}"
    with probe.open("wb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    probe.unlink()
    return mode
