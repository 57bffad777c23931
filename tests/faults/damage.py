"""What a disk, a careless copy or a careless person does to a checkpoint: it is never used, the one before it
is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import Row, attempt, clean, digest, said

from alignment_lab.checkpoints import manifest
from alignment_lab.config import Experiment
from alignment_lab.runtime.files import read_json, write_json
from alignment_lab.runtime.run_directory import RunDirectory

Damage = Callable[[Path], None]


def truncated(file: Path) -> None:
    """Its second half is gone."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(file: Path) -> None:
    """One bit in its middle is another."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def emptied(file: Path) -> None:
    """It has no bytes."""
    file.write_bytes(b"")


def kinds(newest: Path) -> dict[str, Damage]:
    """Everything that is done to the newest checkpoint, by name."""
    found: dict[str, Damage] = {}
    for file in sorted(path for path in newest.rglob("*") if path.is_file()):
        name = file.relative_to(newest)
        for done in (truncated, flipped, emptied, Path.unlink):
            found[f"{name} {'lost' if done is Path.unlink else done.__name__}"] = (
                lambda folder, name=name, done=done: done(folder / name)
            )
    return found | {
        "manifest of another number of processes": lambda folder: _said(folder, world=2),
        "manifest of another step": lambda folder: _said(folder, step=1),
        "manifest that lists no files": lambda folder: _said(folder, files={}),
        "manifest that is no object": lambda folder: (folder / manifest.MANIFEST).write_text("[1, 2]"),
        "manifest of the checkpoint before": lambda folder: _copied(folder, manifest.MANIFEST),
        "optimizer of the checkpoint before": lambda folder: _copied(folder, "optimizer-00001.safetensors"),
        "all files of the checkpoint before": lambda folder: _copied(
            folder, *(file.name for file in folder.iterdir())
        ),
        "an empty folder": lambda folder: [file.unlink() for file in folder.iterdir()],
        "a file in its place": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
        "a DeepSpeed checkpoint of somebody else's": _foreign,
    }


def campaign(spec: Experiment, folder: Path, every: int = 1) -> Iterator[Row]:
    """Each kind, `every`-th of them with a run to the end."""
    assert attempt(spec, folder) == 0, said(folder)
    calm = digest(RunDirectory(folder))
    run = RunDirectory(folder)
    shutil.rmtree(run.model)
    write_json(run.state_file, {**run.state(), "state": "running"})  # as if killed after its last checkpoint
    before, newest = manifest.list_checkpoints(run.checkpoints)[-2:]
    seen, finished = (
        Row("damage to the newest checkpoint: seen, the one before is used"),
        Row("damage: the run ends in the same bits"),
    )
    for number, (name, damage) in enumerate(kinds(newest).items()):
        copy = folder.with_name(f"{folder.name}-damaged")
        clean(copy)
        shutil.copytree(folder, copy)
        damage(copy / "checkpoints" / newest.name)
        found, _ = manifest.newest_valid(copy / "checkpoints", run.state()["id"])
        seen.count(found is not None and found.name == before.name, f"{name}: {found}")
        if number % every == 0:
            code = attempt(spec, copy)
            finished.count(
                code == 0 and digest(RunDirectory(copy)) == calm, f"{name}: exit {code}, {said(copy)}"
            )
    yield from (seen, finished)


def _said(folder: Path, **facts: object) -> None:
    found = read_json(folder / manifest.MANIFEST)
    (folder / manifest.MANIFEST).write_text(json.dumps({**found, **facts}))


def _copied(folder: Path, *names: str) -> None:
    before = manifest.list_checkpoints(folder.parent)[-2]
    for name in names:
        shutil.copyfile(before / name, folder / name)


def _foreign(folder: Path) -> None:
    """What DeepSpeed leaves, with pickles in it that must not be opened."""
    shutil.rmtree(folder)
    shards = folder / "global_step6"
    shards.mkdir(parents=True)
    (shards / "mp_rank_00_model_states.pt").write_bytes(b"cos\nsystem\n(S'touch /tmp/opened'\ntR.")
    (folder / "latest").write_text("global_step6")
