"""Commits a checkpoint: it is complete, its manifest proves it, and only then does it get its name.

All processes write into a partial folder; when all are done one of them forces it to the disk, writes the
manifest and renames the folder. A folder with a missing, truncated, changed or foreign file is not a
checkpoint. Knows bytes, not tensors.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..runtime.files import file_digest, fsync, json_digest, read_json, write_json
from ..runtime.folders import free_name, make_folder, set_aside
from ..runtime.publishing import use_umask

MANIFEST = "manifest.json"


def commit(partial: Path, final: Path, *, run_id: str, step: int, world_size: int = 1) -> Path | None:
    """Force a finished folder to the disk, write its manifest, and rename it to `final`.

    What has that name and was not committed by this run is set aside; returns its new path.
    """
    use_umask(partial)
    files = {str(file.relative_to(partial)): file for file in sorted(partial.rglob("*")) if file.is_file()}
    entries: dict[str, Any] = {
        name: {"bytes": file.stat().st_size, "sha256": file_digest(file)} for name, file in files.items()
    }
    for file in files.values():
        fsync(file)
    manifest = {"run": run_id, "step": step, "world": world_size, "files": entries}
    write_json(partial / MANIFEST, {**manifest, "sha256": _digest(manifest)})
    fsync(partial)
    kept = _make_way(final, run_id)
    make_folder(final.parent)
    partial.replace(final)
    fsync(final.parent)
    return kept


def _make_way(final: Path, run_id: str) -> Path | None:
    """Remove a folder that is damaged or foreign, or this run would have resumed from it."""
    if not os.path.lexists(final):
        return None
    if _belongs_to(final, run_id):
        _delete(final)
    return set_aside(final) if os.path.lexists(final) else None


def find_damage(checkpoint: Path, run_id: str) -> str | None:
    """Why a folder is not a valid checkpoint of this run, as a clause; None where it is."""
    manifest = _intact_manifest(checkpoint)
    if manifest is None:
        return f"{MANIFEST} cannot be read, or is not what was written"
    if manifest["step"] != step_of(checkpoint):
        return f"{MANIFEST} is that of step {manifest['step']}"
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
    """Whether this run committed the folder under this name: no copy of it, and no link."""
    manifest = _intact_manifest(checkpoint)
    return (
        manifest is not None
        and not checkpoint.is_symlink()
        and (manifest["run"], manifest["step"]) == (run_id, step_of(checkpoint))
    )


def _intact_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """The manifest without its digest; None where it cannot be read or is not what was written."""
    try:
        manifest: dict[str, Any] = read_json(checkpoint / MANIFEST)
        return manifest if manifest.pop("sha256") == _digest(manifest) else None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _delete(checkpoint: Path) -> None:
    """Delete what was committed; it loses its name before it loses a file. Other files get the name back."""
    gone = checkpoint.with_name(f".{checkpoint.name}.gone")
    if gone.exists():
        _finish_deletion(gone)
    checkpoint.replace(gone)
    _finish_deletion(gone)


def finish_deletions(folder: Path) -> None:
    """Delete what a killed process began to delete."""
    for gone in folder.glob(".checkpoint-*.gone"):
        _finish_deletion(gone)


def _finish_deletion(gone: Path) -> None:
    """Delete the files that its manifest lists, the manifest last; others are left, and get the name back."""
    committed = (_intact_manifest(gone) or {}).get("files", ())
    for name in committed:
        (gone / name).unlink(missing_ok=True)
    if committed:
        (gone / MANIFEST).unlink()
    for path in sorted((gone, *(path for path in gone.rglob("*") if path.is_dir())), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    if gone.exists():
        home = gone.with_name(gone.name.removeprefix(".").removesuffix(".gone"))
        gone.replace(home if not os.path.lexists(home) else free_name(home))


def _digest(manifest: dict[str, Any]) -> str:
    return json_digest(manifest)
