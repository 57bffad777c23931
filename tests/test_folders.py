"""What lies in a directory before a command that fails, or is refused, lies there unchanged after it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_lab.actions import run_action
from alignment_lab.checkpoints import manifest
from alignment_lab.runtime import caches, folders
from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.publishing import build_once, publish_beside, stamps, use_umask
from alignment_lab.runtime.run_directory import RunDirectory

STATE = {"state": "finished", "id": "0123456789ab", "error": None}
CONTENTS: dict[str, dict[str, str]] = {
    "a model": {"model/config.json": "{}", "model/model.safetensors": "weights"},
    "results": {"samples.jsonl": "{}\n", "report.html": "<p>mine", "report.json": "{}"},
    "one file": {"thesis.tex": "mine"},
    "a hidden file": {".gitignore": "*"},
    "checkpoints": {"checkpoints/checkpoint-2/manifest.json": "{}"},
    "a folder that is empty": {"model/": ""},
    "a lock with text": {".lock": "mine"},
    "a run.json of another tool": {"run.json": json.dumps({"state": "finished", "id": 7}), "log": ""},
    "a run.json that is a list": {"run.json": "[1]"},
    "a run.json that is broken": {"run.json": '{"state": '},
    "another experiment": {"run.json": json.dumps(STATE), "spec.yaml": "name: a\n", "NOTES.txt": "mine"},
    "another application's .hydra": {".hydra/hydra.yaml": "hydra: {}", ".hydra/config.yaml": "a: 1"},
}


def fill(folder: Path, contents: dict[str, str]) -> Path:
    """The folder with these files, with permissions that no umask gives."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_text(text)
            path.chmod(0o640)
    folder.chmod(0o2775)
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Permissions and content of everything, by path."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture(scope="module")
def tiny(composed):
    return composed(["model=tiny", "parallel.device=cpu", "training.max_steps=1"])


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_run_leaves_a_folder_that_is_not_its_own_as_it_is(kind, tiny, tmp_path):
    folder = fill(tmp_path / "mine", CONTENTS[kind])
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=str(folder)) as refused:
        run_action(tiny, RunDirectory(folder))
    RunDirectory(folder).discard_if_unused()
    assert snapshot(tmp_path) == before
    assert "\n" not in str(refused.value)


@pytest.fixture
def call(call_main) -> Callable[..., str]:
    """`call("method=nope")`: the sentence that the command ends with, and nothing else, in tmp_path/here."""

    def run(*arguments: str) -> str:
        ended = call_main("model=tiny", "parallel.device=cpu", *arguments)
        assert ended.code == 2
        (line,) = ended.errors
        return line

    return run


REFUSED = {  # arguments, with MINE for the folder; the kind of its contents; what the sentence says
    "its model": (["hydra.run.dir=MINE"], "a model", "holds model/, and no run of the lab made it"),
    "the working directory": (["hydra.run.dir="], "one file", "hydra.run.dir is empty"),
    "a sweep": (
        ["--multirun", "training.seed=1,2", "hydra.sweep.dir=MINE"],
        "one file",
        "no sweep of the lab",
    ),
    "a sweep, no name": (["--multirun", "training.seed=1,2", "hydra.sweep.dir="], "one file", "is empty"),
    "another's sweep": (
        ["--multirun", "training.seed=1,2", "hydra/launcher=pool", "hydra.sweep.dir=MINE"],
        "another application's .hydra",
        "no sweep of the lab",
    ),
    "a mistake in the data": (
        ["data=local", "data.path=BAD", "hydra.run.dir=MINE/new"],
        "one file",
        "columns foo",
    ),
    "a mistake, own empty folder": (
        ["data=local", "data.path=BAD", "hydra.run.dir=MINE"],
        None,
        "columns foo",
    ),
    "a mistake in a setting": (["beta=-1", "hydra.run.dir=MINE"], None, "beta"),
    "a name that is too long": ([f"hydra.run.dir=MINE/{'x' * 300}"], "one file", "File name too long"),
    "Hydra's own folder": (
        ["hydra.output_subdir=foo", "hydra.run.dir=MINE/new"],
        "one file",
        "hydra.output_subdir=foo",
    ),
    "cells of one name": (
        ["--multirun", "beta=0.1,0.2", "hydra.sweep.dir=MINE/new", "hydra.sweep.subdir=same"],
        "one file",
        "2 cells would share",
    ),
    "a variable that is not set": (
        ["hydra.run.dir=/no-such-folder/exp1"],
        "one file",
        "hydra.run.dir=/no-such-folder/exp1: /no-such-folder would be a new directory at the root",
    ),
    "a sweep, a variable that is not set": (
        ["--multirun", "training.seed=1,2", "hydra.sweep.dir=/no-such-folder"],
        "one file",
        "or make it first if it is meant: mkdir /no-such-folder",
    ),
    "an environment variable in ${}": (
        ["hydra.run.dir=${oc.env:NO_SUCH_VARIABLE}/x"],
        "one file",
        "hydra.run.dir=${oc.env:NO_SUCH_VARIABLE}/x: the environment variable NO_SUCH_VARIABLE is not set",
    ),
    "a file in its place": (["hydra.run.dir=MINE/thesis.tex"], "one file", "is a file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_command_that_is_refused_changes_nothing(case, call, tmp_path):
    arguments, kind, sentence = REFUSED[case]
    (tmp_path / "mine").mkdir()
    mine = fill(tmp_path / "mine", CONTENTS[kind] if kind else {})
    (tmp_path / "bad.jsonl").write_text('{"foo": 1}\n')
    before = snapshot(tmp_path)
    replaced = {"MINE": str(mine), "BAD": str(tmp_path / "bad.jsonl")}
    for name, path in replaced.items():
        arguments = [word.replace(name, path) for word in arguments]
    assert sentence in call(*arguments)
    assert snapshot(tmp_path) == before
    assert not Path("/no-such-folder").exists()


@pytest.mark.parametrize("kind", ["nothing", "a sweep", "a new one"])
def test_a_plan_leaves_nothing_in_the_directory_of_a_sweep(kind, call_main, tmp_path):
    folder = tmp_path / "here" / "sweep"
    contents = {"method=dpo/spec.yaml": "name: a\n", "method=dpo/run.json": json.dumps(STATE)}
    contents["sweep.json"] = json.dumps({"launcher_settings": {}, "cells": []})
    if kind != "a new one":
        fill(folder, contents if kind == "a sweep" else {})
    before = snapshot(tmp_path)
    plan = ("action=plan", "plan.device=cpu", "model=tiny", "eval=none", f"hydra.sweep.dir={folder}")
    ended = call_main("--multirun", *plan, "method=dpo,ipo")
    assert (ended.code, ended.errors) == (0, []) and "parallel=single" in ended.output
    assert snapshot(tmp_path) == before


def test_a_home_is_expanded_and_a_link_is_no_obstacle(call, tmp_path, monkeypatch):
    """A mistake is told where outputs/ is a link, too, and nothing is left behind it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "mine", CONTENTS["one file"])
    assert f"hydra.run.dir={tmp_path}/mine: holds thesis.tex" in call("hydra.run.dir=~/mine")
    (tmp_path / "scratch").mkdir()
    Path("outputs").symlink_to(tmp_path / "scratch")
    (tmp_path / "bad.jsonl").write_text('{"foo": 1}\n')
    assert "columns foo" in call("data=local", f"data.path={tmp_path}/bad.jsonl")
    assert Path("outputs").is_symlink() and not any((tmp_path / "scratch").iterdir())


# ---- folders


def test_a_folder_below_one_that_exists_is_not_at_the_root(tmp_path, monkeypatch):
    """Nor is one that is named from the working directory, be it / itself."""
    monkeypatch.chdir("/")
    for folder in (tmp_path, tmp_path / "a" / "b", Path("/tmp/a"), Path("outputs"), Path("outputs/a")):
        folders.refuse_new_at_root(folder, "hydra.run.dir")


def test_each_of_several_commands_gets_a_folder_of_its_own(tmp_path):
    """Also where one takes its empty parent back while another makes its own below it."""
    names = [folders.make_new_folder(tmp_path / "outputs" / "run") for _ in range(3)]
    assert [path.name for path in names] == ["run", "run-2", "run-3"]
    children = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            try:
                for _ in range(100):
                    folders.take_back(folders.make_new_folder(tmp_path / "raced" / "day" / "run"))
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    folders.take_back(tmp_path / "raced" / "day")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_what_is_published_has_the_permissions_of_the_umask(umask, tmp_path):
    previous = os.umask(umask)
    try:
        for publish in (
            lambda folder: publish_beside(folder, tmp_path / "model", {}),
            lambda folder: manifest.commit(folder, tmp_path / "checkpoint-1", run_id="abc", step=1),
            lambda folder: build_once(tmp_path / "cached", lambda to: folder.rename(to / "in"), marker="x"),
            use_umask,
        ):
            folder = fill(tmp_path / "partial", {"weights": "w", "deep/weights": "w"})
            (folder / "weights").chmod(0o600)
            publish(folder)
    finally:
        os.umask(previous)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


@pytest.mark.parametrize(
    ("there", "kept"),
    [
        ({"NOTES.txt": "mine"}, []),
        ({"own/config.json": "mine"}, []),
        ({"config.json": "mine"}, ["model.set-aside0"]),
        ({"config.json": "mine", "NOTES.txt": "mine"}, ["model.set-aside0"]),
    ],
)
def test_a_model_replaces_the_labs_own_and_nothing_else(there, kept, tmp_path):
    """Shards of the model before go; what somebody put beside them stays, or is set aside whole."""
    model = fill(tmp_path / "model", {"config.json": "old", "old-shard": "old"})
    published = json.loads(json.dumps(stamps(model)))
    fill(model, there)
    for name in there:
        os.utime(model / name, (1, 1))
    partial = fill(tmp_path / "partial", {"config.json": "new"})
    assert [path.name for path in publish_beside(partial, model, published)] == kept
    found = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_text() == "mine"]
    assert len(found) == len(there)
    assert (model / "config.json").read_text() == "new"
    assert not (model / "old-shard").exists() and not partial.exists()


def test_a_place_in_the_cache_that_is_taken_is_one_sentence(tmp_path):
    fill(tmp_path / "taken", {"mine.txt": "mine"})
    with pytest.raises(UserError, match=r"taken: has no config\.json.*ALIGNMENT_LAB_CACHE"):
        build_once(tmp_path / "taken", lambda folder: None, marker="config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


# ---- checkpoints


def commit(folder: Path, step: int, run_id: str = "abc") -> Path:
    partial = fill(folder / ".partial" / f"checkpoint-{step}", {"weights": str(step)})
    manifest.commit(partial, folder / f"checkpoint-{step}", run_id=run_id, step=step)
    return folder / f"checkpoint-{step}"


def test_rotation_deletes_what_this_run_committed_and_nothing_else(tmp_path):
    for step in (2, 4, 6):
        commit(tmp_path, step)
    elsewhere = commit(tmp_path / "elsewhere", 0)
    (tmp_path / "checkpoint-0").symlink_to(elsewhere)
    (tmp_path / "checkpoint-2" / "NOTES.txt").write_text("mine")
    (tmp_path / "checkpoint-4").rename(tmp_path / "checkpoint-1")  # a copy under another name
    fill(tmp_path / ".mine.gone", {"file": "mine"})
    before = snapshot(tmp_path)
    manifest.rotate(tmp_path, 1, "abc")
    manifest.finish_deletions(tmp_path)
    gone = before.keys() - snapshot(tmp_path).keys()
    assert gone == {"checkpoint-2/weights", "checkpoint-2/manifest.json"}


# ---- caches


@pytest.mark.parametrize("home", ["missing", "read-only cache", "writable"])
def test_a_cache_that_cannot_be_written_is_a_temporary_one(home, tmp_path, monkeypatch):
    for name in ("ALIGNMENT_LAB_CACHE", "HF_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # restored at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    monkeypatch.setenv("HOME", "/proc/nohome" if home == "missing" else str(tmp_path))
    if home == "read-only cache":
        (tmp_path / ".cache").symlink_to("/proc/1")  # where not even root can make a file
    line = caches.redirect_unwritable_caches()
    assert (line is None) == (home == "writable")
    if line is not None:
        assert "ALIGNMENT_LAB_CACHE and HF_HOME" in line and "\n" not in line
    assert all(caches.is_writable(folder) for folder in caches.cache_folders().values())
    assert not any(path.name != ".cache" for path in tmp_path.iterdir())
