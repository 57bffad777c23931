"""Files of somebody else's in a run's directory: a run that goes on there leaves them as they are.

The run was interrupted behind its fourth step, or killed when it wrote its results; going on, it takes two
steps, commits a checkpoint, deletes all but one, and publishes its results.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from harness import Row, attempt, digest, last_output, remove_run

from alignment_lab.config import Experiment
from alignment_lab.runtime.files import write_json
from alignment_lab.runtime.run_directory import RunDirectory

Place = Callable[[Path], object]  # puts somebody's files into a run directory


def _write(name: str, content: str = "somebody's") -> Place:
    def place(run: Path) -> None:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)
        (run / name).chmod(0o640)

    return place


def _copy(source: str, target: str) -> Place:
    return lambda run: shutil.copytree(run / source, run / target)


def _link(source: str, target: str) -> Place:
    """The folder lies elsewhere, and a link has its name."""

    def place(run: Path) -> None:
        elsewhere = run.with_name("elsewhere")
        remove_run(elsewhere)
        shutil.copytree(run / source, elsewhere)
        shutil.rmtree(run / target, ignore_errors=True)
        (run / target).symlink_to(elsewhere)

    return place


PLACES: dict[str, Place] = {
    "notes": _write("NOTES.txt"),
    "notes in model/": _write("model/NOTES.txt"),
    "a folder in model/": _write("model/own/config.json"),
    "a config in place of the model's": _write("model/config.json"),
    "notes in checkpoints/": _write("checkpoints/NOTES.txt"),
    "a folder in checkpoints/": _write("checkpoints/mine/weights"),
    "a hidden folder like one that is deleted": _write("checkpoints/.mine.gone/weights"),
    "notes in the oldest checkpoint": _write("checkpoints/checkpoint-2/NOTES.txt"),
    "a folder in the oldest checkpoint": _write("checkpoints/checkpoint-2/own/notes"),
    "a copy of a checkpoint": _copy("checkpoints/checkpoint-4", "checkpoints/checkpoint-4-best"),
    "a copy of a checkpoint as an older one": _copy("checkpoints/checkpoint-4", "checkpoints/checkpoint-1"),
    "a folder in place of the next checkpoint": _write("checkpoints/checkpoint-6/weights"),
    "a file in place of the next checkpoint": _write("checkpoints/checkpoint-6"),
    "a link to a checkpoint elsewhere": _link("checkpoints/checkpoint-2", "checkpoints/checkpoint-2"),
    "a file in .partial": _write(".partial/notes"),
    "a folder in .partial": _write(".partial/own/notes"),
    "a lock with text": _write(".lock"),
    "notes among the curves": _write("tensorboard/NOTES.txt"),
    "a hidden file": _write(".gitignore", "*"),
    "an export/": _write("export/README.md"),
    "a folder for another tracker": _write("wandb/offline-run-mine/notes"),
}
PLACES_BEFORE_RESULTS: dict[str, Place] = {
    "a model/": _write("model/config.json", "{}"),
    "a model/ that is a link": _link("checkpoints/checkpoint-4", "model"),
    "samples": _write("samples.jsonl"),
    "a report": _write("report.html", "<p>somebody's"),
}


def campaign(spec: Experiment, folder: Path, quick: bool) -> Iterator[Row]:
    """Each kind of file, in a copy of the interrupted run."""
    assert attempt(replace_limit(spec, 3), folder) == 0, last_output(folder)
    expected = digest(RunDirectory(folder))
    row = Row("foreign files in the run's directory")
    places = [(name, place, True) for name, place in PLACES.items()]
    places += [(name, place, False) for name, place in PLACES_BEFORE_RESULTS.items()]
    for name, place, has_results in places[:: 4 if quick else 1]:
        run = _interrupted(folder, has_results=has_results)
        before = _files(run.path)
        place(run.path)
        mine = {path: content for path, content in _files(run.path).items() if before.get(path) != content}
        code = attempt(replace_limit(spec, 1), run.path)
        harmed = _harmed(mine, _files(run.path))
        fine = code == 0 and not harmed and digest(run) == expected
        row.count(fine and bool(mine), f"{name}: exit {code}, {harmed}, {last_output(run.path)}")
    yield row


def replace_limit(spec: Experiment, limit: int) -> Experiment:
    """The same experiment, that keeps this many checkpoints."""
    return replace(spec, training=replace(spec.training, save_total_limit=limit))


def _interrupted(folder: Path, *, has_results: bool) -> RunDirectory:
    """A copy of the finished run, as if it had been killed."""
    run = RunDirectory(folder.with_name(f"{folder.name}-shared"))
    remove_run(run.path)
    shutil.copytree(folder, run.path)
    shutil.rmtree(run.checkpoints / "checkpoint-6")
    state = {**run.state(), "state": "running"}
    if not has_results:
        state.pop("published")
        shutil.rmtree(run.model)
        for file in (run.samples_file, run.row_scores_file, run.report_file, run.page_file):
            file.unlink()
    write_json(run.state_file, state)
    return run


def _files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Permissions and content of every file, a link's being what it names."""
    return {
        path.relative_to(folder): (
            path.lstat().st_mode,
            os.readlink(path).encode() if path.is_symlink() else path.read_bytes(),
        )
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def _harmed(mine: dict[Path, tuple[int, bytes]], after: dict[Path, tuple[int, bytes]]) -> list[str]:
    """The files that are neither where they were nor set aside beside it."""
    aside = [content for path, content in after.items() if ".set-aside" in str(path)]
    return [
        str(path) for path, content in mine.items() if after.get(path) != content and content not in aside
    ]
