"""Commits a checkpoint: it is complete, its manifest proves it, and only then does it get its name.

All processes write into a partial folder; when all are done one of them forces it to the disk, writes the
manifest and renames the folder. A folder with a missing, truncated, changed or foreign file is not a
checkpoint. Knows bytes, not tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from ..runtime.files import file_digest, fsync, read_json, write_json

MANIFEST = "manifest.json"


def commit(partial: Path, final: Path, *, run_id: str, step: int, world_size: int = 1) -> None:
    """Force a finished folder to the disk, write its manifest, and rename it to `final`."""
    files = {str(file.relative_to(partial)): file for file in sorted(partial.rglob("*")) if file.is_file()}
    entries: dict[str, Any] = {
        name: {"bytes": file.stat().st_size, "sha256": file_digest(file)} for name, file in files.items()
    }
    for file in files.values():
        fsync(file)
    manifest = {"run": run_id, "step": step, "world": world_size, "files": entries}
    write_json(partial / MANIFEST, {**manifest, "sha256": _digest(manifest)})
    fsync(partial)
    if final.exists():  # it is damaged or foreign, or this run would have resumed from it
        _delete(final) if _belongs_to(final, run_id) else _set_aside(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(final)
    fsync(final.parent)


def find_damage(checkpoint: Path, run_id: str) -> str | None:
    """Why a folder is not a valid checkpoint of this run, as a clause; None where it is."""
    try:
        manifest = read_json(checkpoint / MANIFEST)
        digest = manifest.pop("sha256")
        if digest != _digest(manifest) or manifest["step"] != step_of(checkpoint):
            return f"{MANIFEST} is not what was written"
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return f"{MANIFEST} cannot be read"
    if manifest["run"] != run_id:
        return f"it belongs to the run {manifest['run']}"
    for name, entry in manifest["files"].items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} of {entry['bytes']} bytes"
        if file_digest(file) != entry["sha256"]:
            return f"{name} is not what was written"
    return None


def newest_valid(folder: Path, run_id: str) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint of this run, and a sentence for each newer one that was skipped."""
    skipped: list[str] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        damage = find_damage(checkpoint, run_id)
        if damage is None:
            return checkpoint, skipped
        skipped.append(f"{checkpoint} is skipped: {damage}")
    return None, skipped


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders with the name of a checkpoint, oldest first."""
    folders = [
        path
        for path in folder.glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()
    ]
    return sorted(folders, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def rotate(folder: Path, limit: int, run_id: str) -> None:
    """Delete all but the newest `limit` checkpoints of this run, and nothing else, if the newest is valid."""
    own = [path for path in list_checkpoints(folder) if _belongs_to(path, run_id)]
    if len(own) > limit and find_damage(own[-1], run_id) is None:
        for path in own[:-limit]:
            _delete(path)


def _belongs_to(checkpoint: Path, run_id: str) -> bool:
    try:
        return bool(read_json(checkpoint / MANIFEST)["run"] == run_id)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _delete(checkpoint: Path) -> None:
    """Delete a checkpoint; it loses its name before it loses a file."""
    gone = checkpoint.with_name(f".{checkpoint.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.replace(gone)
    shutil.rmtree(gone)


def _set_aside(folder: Path) -> None:
    """Rename a folder that is of another run, or unreadable; its files stay."""
    names = (folder.with_name(f"{folder.name}.set-aside{number}") for number in range(10**6))
    folder.replace(next(name for name in names if not name.exists()))


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
