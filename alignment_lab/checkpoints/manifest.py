"""What makes a checkpoint one: it is complete, its manifest says so, and only then does it get its name.

All processes write into a folder that is none yet; when all are done one of them forces it to the disk, writes the manifest, and renames.
A file that is missing, cut, changed or of another run makes it no checkpoint. Knows bytes, and no tensors.
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


def commit(partial: Path, final: Path, *, run_id: str, step: int, world: int = 1) -> None:
    """Force a finished directory to disk, write its manifest, and give it its name."""
    files = {str(file.relative_to(partial)): file for file in sorted(partial.rglob("*")) if file.is_file()}
    facts: dict[str, Any] = {
        name: {"bytes": file.stat().st_size, "sha256": file_digest(file)} for name, file in files.items()
    }
    for file in files.values():
        fsync(file)
    manifest = {"run": run_id, "step": step, "world": world, "files": facts}
    write_json(partial / MANIFEST, {**manifest, "sha256": _digest(manifest)})
    fsync(partial)
    if final.exists():  # it did not verify, or this run would have gone on from there
        _delete(final) if _belongs(final, run_id) else _set_aside(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(final)
    fsync(final.parent)


def find_damage(checkpoint: Path, run_id: str) -> str | None:
    """What is wrong with a published directory; None where every file is as it was written, by this experiment."""
    try:
        manifest = read_json(checkpoint / MANIFEST)
        said = manifest.pop("sha256")
        if said != _digest(manifest) or manifest["step"] != step_of(checkpoint):
            return f"{MANIFEST} is not what was written"
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return f"{MANIFEST} cannot be read"
    if manifest["run"] != run_id:
        return f"it is of the run {manifest['run']}"
    for name, facts in manifest["files"].items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} bytes of {facts['bytes']}"
        if file_digest(file) != facts["sha256"]:
            return f"{name} is not what was written"
    return None


def newest_valid(folder: Path, run_id: str) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, the newest that is whole, and a sentence for each that had to be passed over."""
    passed: list[str] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        wrong = find_damage(checkpoint, run_id)
        if wrong is None:
            return checkpoint, passed
        passed.append(f"{checkpoint} is passed over: {wrong}")
    return None, passed


def list_checkpoints(folder: Path) -> list[Path]:
    """Directories that have a checkpoint's name, oldest first."""
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", path.name) and path.is_dir()
    ]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def rotate(folder: Path, limit: int, run_id: str) -> None:
    """Delete all but the newest `limit` checkpoints of this run, once the newest is known to be whole; and nothing else."""
    ours = [path for path in list_checkpoints(folder) if _belongs(path, run_id)]
    if len(ours) > limit and find_damage(ours[-1], run_id) is None:
        for path in ours[:-limit]:
            _delete(path)


def _belongs(checkpoint: Path, run_id: str) -> bool:
    try:
        return read_json(checkpoint / MANIFEST)["run"] == run_id
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _delete(checkpoint: Path) -> None:
    """It loses its name before it loses a file."""
    gone = checkpoint.with_name(f".{checkpoint.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.replace(gone)
    shutil.rmtree(gone)


def _set_aside(folder: Path) -> None:
    """What another made, or nobody can read, loses nothing but its name."""
    names = (folder.with_name(f"{folder.name}.set-aside{number}") for number in range(10**6))
    folder.replace(next(name for name in names if not name.exists()))


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
