"""What makes a checkpoint one: it is complete, its manifest says so, and only then does it get its name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from .artifacts import file_digest, publish_directory, read_json, sync, write_json

MANIFEST = "manifest.json"


def publish(partial: Path, final: Path, *, run_id: str, step: int) -> None:
    """Write the manifest of a finished directory, force it to disk, and give it its name."""
    files = {str(file.relative_to(partial)): file for file in sorted(partial.rglob("*")) if file.is_file()}
    facts = {name: {"bytes": file.stat().st_size, "sha256": file_digest(file)} for name, file in files.items()}
    for file in files.values():
        sync(file)
    write_json(partial / MANIFEST, {"run": run_id, "step": step, "files": facts})
    publish_directory(partial, final)
    sync(final.parent)


def verifies(checkpoint: Path, run_id: str) -> bool:
    """Whether every file is there, as it was written, by this experiment."""
    manifest = read_json(checkpoint / MANIFEST) or {}
    return manifest.get("run") == run_id and all(
        (checkpoint / name).is_file()
        and (checkpoint / name).stat().st_size == facts["bytes"]
        and file_digest(checkpoint / name) == facts["sha256"]
        for name, facts in manifest["files"].items()
    )


def newest(folder: Path, run_id: str) -> Path | None:
    """The checkpoint to resume from: the newest whose manifest verifies."""
    return next((checkpoint for checkpoint in reversed(committed(folder)) if verifies(checkpoint, run_id)), None)


def committed(folder: Path) -> list[Path]:
    """Directories that were published here, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name) and (path / MANIFEST).is_file()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def retain(folder: Path, limit: int) -> None:
    """Delete all but the newest `limit` committed checkpoints, and nothing else."""
    for path in committed(folder)[:-limit]:
        shutil.rmtree(path)
