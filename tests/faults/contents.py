"""Rows, weights, tokenizer or adapter change under their names between two attempts: named and refused, and a
finished run says so. What is put back, or only written anew, ends in the same bits.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from harness import ROOT, Row, attempt, digest, experiment, last_output, remove_run

sys.path.insert(0, str(ROOT / "tests"))

from small_content import CHANGES, NO_CHANGES, make_content

from alignment_lab.config import Experiment
from alignment_lab.runtime.files import file_digest, write_json
from alignment_lab.runtime.run_directory import RunDirectory

PUT_BACK = 6  # every sixth change is put back, and the run resumed


def campaign(folder: Path, quick: bool) -> Iterator[Row]:
    """Each way in which content may change, and each in which it does not."""
    files, kept, whole = folder / "files", folder / "kept", RunDirectory(folder / "whole")
    spec = experiment(*make_content(files))
    shutil.copytree(files, kept)
    assert attempt(spec, whole.path) == 0, last_output(whole.path)
    expected = digest(whole)
    refused, told, same = (
        Row("content changed between attempts: named and refused"),
        Row("content changed after the end: said instead of finished"),
        Row("content put back, or only written anew: the same bits"),
    )
    names = list(CHANGES)[:: 8 if quick else 1]
    for number, name in enumerate(names):
        change, words = CHANGES[name]
        run = _cut_off(whole, folder / "run")
        before = _checkpoint_digests(run)
        change(files)
        code = attempt(spec, run.path)
        named = code == 2 and words in last_output(run.path) and _checkpoint_digests(run) == before
        refused.count(named, f"{name}: exit {code}, {last_output(run.path)}")
        code = attempt(spec, whole.path)
        said = words in last_output(whole.path) and "finished on what was there before" in last_output(
            whole.path
        )
        told.count(code == 2 and said, f"{name}: exit {code}, {last_output(whole.path)}")
        _put_back(files, kept)
        if number % PUT_BACK == 0:
            _resume(spec, run, expected, same, f"{name}, put back")
    for name in list(NO_CHANGES)[:: len(NO_CHANGES) if quick else 1]:
        run = _cut_off(whole, folder / "run")
        NO_CHANGES[name](files)
        _resume(spec, run, expected, same, name)
        _put_back(files, kept)
    yield from (refused, told, same)


def _cut_off(whole: RunDirectory, folder: Path) -> RunDirectory:
    """A copy of the run that was ended behind its first checkpoint."""
    run = RunDirectory(folder)
    remove_run(folder)
    shutil.copytree(whole.path, folder)
    shutil.rmtree(run.model)
    shutil.rmtree(run.checkpoints / "checkpoint-4")
    write_json(run.state_file, {**run.state(), "state": "interrupted"})
    return run


def _resume(spec: Experiment, run: RunDirectory, expected: str, row: Row, name: str) -> None:
    code = attempt(spec, run.path)
    row.count(code == 0 and digest(run) == expected, f"{name}: exit {code}, {last_output(run.path)}")


def _checkpoint_digests(run: RunDirectory) -> dict[str, str]:
    return {str(file): file_digest(file) for file in sorted(run.checkpoints.rglob("*")) if file.is_file()}


def _put_back(files: Path, kept: Path) -> None:
    shutil.rmtree(files)
    shutil.copytree(kept, files)
