"""Damaged checkpoints (disk errors, partial copies, edited files) are never used; the one before is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import Row, attempt, digest, last_output, remove_run

from alignment_lab.checkpoints import manifest
from alignment_lab.config import Experiment
from alignment_lab.runtime.files import read_json, write_json
from alignment_lab.runtime.run_directory import RunDirectory

Damage = Callable[[Path], None]


def truncate(file: Path) -> None:
    """Drop the second half of the file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bit(file: Path) -> None:
    """Flip one bit in the middle of the file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    """Leave a file of 0 bytes."""
    file.write_bytes(b"")


def list_damages(newest: Path) -> dict[str, Damage]:
    """Every kind of damage to the newest checkpoint, by name."""
    damages: dict[str, Damage] = {}
    for file in sorted(path for path in newest.rglob("*") if path.is_file()):
        name = file.relative_to(newest)
        for change in (truncate, flip_bit, empty, Path.unlink):
            damages[f"{name} {'lost' if change is Path.unlink else change.__name__}"] = (
                lambda folder, name=name, change=change: change(folder / name)
            )
    return damages | {
        "manifest of another number of processes": lambda folder: _change_manifest(folder, world=2),
        "manifest of another step": lambda folder: _change_manifest(folder, step=1),
        "manifest that lists no files": lambda folder: _change_manifest(folder, files={}),
        "manifest that is no object": lambda folder: (folder / manifest.MANIFEST).write_text("[1, 2]"),
        "manifest of the checkpoint before": lambda folder: _copy_from_previous(folder, manifest.MANIFEST),
        "optimizer of the checkpoint before": lambda folder: _copy_from_previous(
            folder, "optimizer-00001.safetensors"
        ),
        "all files of the checkpoint before": lambda folder: _copy_from_previous(
            folder, *(file.name for file in folder.iterdir())
        ),
        "an empty folder": lambda folder: [file.unlink() for file in folder.iterdir()],
        "a file in its place": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
        "a DeepSpeed checkpoint of somebody else's": _replace_by_deepspeed,
    }


def campaign(spec: Experiment, folder: Path, every: int = 1) -> Iterator[Row]:
    """Each kind of damage; every `every`-th of them is followed by a run to the end."""
    assert attempt(spec, folder) == 0, last_output(folder)
    expected_digest = digest(RunDirectory(folder))
    run = RunDirectory(folder)
    shutil.rmtree(run.model)
    write_json(run.state_file, {**run.state(), "state": "running"})  # as if killed after its last checkpoint
    before, newest = manifest.list_checkpoints(run.checkpoints)[-2:]
    detected, finished = (
        Row("damage to the newest checkpoint: seen, the one before is used"),
        Row("damage: the run ends in the same bits"),
    )
    for number, (name, damage) in enumerate(list_damages(newest).items()):
        damaged_run = folder.with_name(f"{folder.name}-damaged")
        remove_run(damaged_run)
        shutil.copytree(folder, damaged_run)
        damage(damaged_run / "checkpoints" / newest.name)
        checkpoint, _ = manifest.newest_valid(damaged_run / "checkpoints", run.state()["id"])
        detected.count(checkpoint is not None and checkpoint.name == before.name, f"{name}: {checkpoint}")
        if number % every == 0:
            code = attempt(spec, damaged_run)
            finished.count(
                code == 0 and digest(RunDirectory(damaged_run)) == expected_digest,
                f"{name}: exit {code}, {last_output(damaged_run)}",
            )
    yield from (detected, finished)


def _change_manifest(folder: Path, **entries: object) -> None:
    content = read_json(folder / manifest.MANIFEST)
    (folder / manifest.MANIFEST).write_text(json.dumps({**content, **entries}))


def _copy_from_previous(folder: Path, *names: str) -> None:
    before = manifest.list_checkpoints(folder.parent)[-2]
    for name in names:
        shutil.copyfile(before / name, folder / name)


def _replace_by_deepspeed(folder: Path) -> None:
    """A DeepSpeed checkpoint, with pickles in it that must not be opened."""
    shutil.rmtree(folder)
    shards = folder / "global_step6"
    shards.mkdir(parents=True)
    (shards / "mp_rank_00_model_states.pt").write_bytes(b"cos\nsystem\n(S'touch /tmp/opened'\ntR.")
    (folder / "latest").write_text("global_step6")
