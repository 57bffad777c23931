"""A reader of a run directory never sees half a file, and no crash loses what was written before."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from alignment_lab.report.study.runs import find_runs
from alignment_lab.runtime.attempts import closed_attempt, total_cost
from alignment_lab.runtime.files import (
    file_digest,
    read_json,
    read_jsonl,
    write_atomic,
    write_json,
)
from alignment_lab.runtime.phase_timer import PhaseTimer
from alignment_lab.runtime.publishing import publish_directory
from alignment_lab.runtime.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "outputs" / "2026-01-01" / "run")


def raise_power_loss(*_):
    raise OSError("power loss")


# ---- files


@pytest.mark.parametrize("content", ["text\n", "é模 \u2028", b"\x00\xff", ""])
def test_what_is_written_is_read(content, tmp_path):
    write_atomic(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("where", ["pathlib.Path.replace", "os.fsync"])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_crash_before_the_rename_leaves_the_old_file(where, old, tmp_path, monkeypatch):
    """The leftover has a hidden name that no reader looks for."""
    path = tmp_path / "run.json"
    if old:
        path.write_bytes(old)
    monkeypatch.setattr(where, raise_power_loss)
    with pytest.raises(OSError, match="power loss"):
        write_atomic(path, "new and longer")
    assert (path.read_bytes() if path.exists() else None) == old
    assert all(other.name.startswith(".") for other in tmp_path.iterdir() if other != path)


def test_a_crash_while_the_state_changes_leaves_the_state(run, monkeypatch):
    run.start_attempt(run_id="abc", spec="name: a\n")
    before = run.state()
    monkeypatch.setattr("pathlib.Path.replace", raise_power_loss)
    with pytest.raises(OSError, match="power loss"):
        run.finish()
    assert run.state() == before


def test_json_keeps_every_script_and_a_missing_file_is_none(tmp_path):
    write_json(tmp_path / "a.json", {"é": ["模", None, 0.1]})
    assert read_json(tmp_path / "a.json") == {"é": ["模", None, 0.1]}
    assert "模" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert read_json(tmp_path / "b.json") is None


LINES = {
    "": [],
    '{"a": 1}\n{"a": 2}\n': [1, 2],
    '{"a": 1}\n{"a": 2}': [1, 2],
    '{"a": 1}\n{"a": ': [1],
    '{"a": 1}\n{"a": 2': [1],
    '{"a"': [],
}


@pytest.mark.parametrize("text", LINES)
def test_a_truncated_last_line_is_skipped(text, tmp_path):
    (tmp_path / "rows.jsonl").write_text(text)
    assert [row["a"] for row in read_jsonl(tmp_path / "rows.jsonl")] == LINES[text]


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_jsonl(tmp_path / "rows.jsonl") == []


def test_a_digest_is_sha256(tmp_path):
    """The well-known digest of "abc", FIPS 180-2."""
    (tmp_path / "file").write_bytes(b"abc")
    assert (
        file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


# ---- directories


def test_a_published_directory_replaces_what_was_there(tmp_path):
    partial, final = tmp_path / "partial", tmp_path / "deep" / "final"
    for name in ("one", "two"):
        partial.mkdir()
        (partial / name).write_text(name)
        publish_directory(partial, final)
        assert [path.name for path in final.iterdir()] == [name]
        assert not partial.exists()


def test_a_crash_while_publishing_leaves_no_half_directory(tmp_path, monkeypatch):
    partial, final = tmp_path / "partial", tmp_path / "final"
    partial.mkdir()
    (partial / "file").write_text("whole")
    monkeypatch.setattr("pathlib.Path.replace", raise_power_loss)
    with pytest.raises(OSError, match="power loss"):
        publish_directory(partial, final)
    assert not final.exists()
    assert (partial / "file").read_text() == "whole"


def test_discard_removes_the_run_and_only_the_parents_that_are_empty(run, tmp_path):
    run.start_attempt(run_id="abc", spec="")
    run.discard_if_unused()
    assert list(tmp_path.iterdir()) == []  # outputs/2026-01-01 was made for it


def test_discard_keeps_a_neighbor_and_the_parents(run, tmp_path):
    run.start_attempt(run_id="abc", spec="")
    other = RunDirectory(run.path.with_name("other"))
    other.start_attempt(run_id="def", spec="")
    run.discard_if_unused()
    assert [path.name for path in (tmp_path / "outputs" / "2026-01-01").iterdir()] == ["other"]
    assert other.state()["id"] == "def"


def test_discard_of_a_run_that_never_started_deletes_nothing(run, tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "file").touch()
    run.discard_if_unused()
    assert (tmp_path / "outputs" / "file").exists()


def test_discard_never_deletes_what_was_there_before(tmp_path):
    """As with hydra.run.dir=MY_FOLDER: the folder and its files stay."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    run = RunDirectory(tmp_path / "mine")
    run.discard_if_unused()
    run.start_attempt(run_id="abc", spec="")
    run.fail("a mistake")
    run.discard_if_unused()
    assert [path.name for path in run.path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("fields", [{"attempts": 2}, {"pid": -1}])
def test_discard_keeps_the_record_of_another_attempt(run, fields):
    run.start_attempt(run_id="abc", spec="")
    write_json(run.state_file, run.state() | fields)
    run.discard_if_unused()
    assert run.state()["id"] == "abc"


def test_discard_keeps_what_was_logged(run):
    run.start_attempt(run_id="abc", spec="")
    run.log_metrics({"step": 1})
    run.discard_if_unused()
    assert run.metrics() == [{"step": 1}]


@pytest.mark.parametrize("path", ["run", "./run", "outputs/run"])
def test_discard_never_touches_a_folder_of_the_user_or_the_working_directory(path, tmp_path, monkeypatch):
    """Empty folders that were there stay, with their permissions; those that the run made go."""
    monkeypatch.chdir(tmp_path)
    Path(path).mkdir(parents=True)
    Path(path).chmod(0o2775)
    RunDirectory(Path(path)).discard_if_unused()
    assert Path(path).stat().st_mode & 0o7777 == 0o2775
    run = RunDirectory(Path(path) / "date" / "run")
    run.start_attempt(run_id="abc", spec="")
    run.discard_if_unused()
    assert Path(path).is_dir() and list(Path(path).iterdir()) == []


# ---- a run


def test_states_and_attempts(run):
    assert run.state() == {}
    run.start_attempt(run_id="abc", spec="name: a\n")
    first = run.state()
    assert first | {"state": "running", "id": "abc", "attempts": 1, "error": None} == first
    assert (first["host"], first["pid"]) == (socket.gethostname(), os.getpid())
    run.fail("no memory")
    assert run.state() | {"state": "failed", "id": "abc", "attempts": 1, "error": "no memory"} == run.state()
    run.start_attempt(run_id="abc", spec="name: a\n")
    assert run.state() | {"state": "running", "attempts": 2, "error": None} == run.state()
    run.finish()
    assert run.state() | {"state": "finished", "attempts": 2, "error": None} == run.state()
    assert run.state()["started"] <= run.state()["ended"]


def test_a_running_run_has_not_ended(run):
    """Not the first attempt's end, which lies before the second one's start."""
    run.start_attempt(run_id="abc", spec="")
    run.fail("no memory")
    run.start_attempt(run_id="abc", spec="")
    assert run.state().get("ended") is None


@pytest.mark.parametrize("end", [lambda run: run.finish(), lambda run: run.fail("x")])
def test_nothing_partial_is_left_at_the_end(end, run):
    run.start_attempt(run_id="abc", spec="")
    (run.partial / "model").mkdir(parents=True)
    end(run)
    assert not run.partial.exists()


def test_a_missing_file_reads_as_empty(run):
    assert (run.spec(), run.state(), run.metrics(), run.samples(), run.report()) == ({}, {}, [], [], None)


def test_every_file_has_a_path_of_its_own(run):
    names = ["spec", "state", "provenance", "metrics", "samples", "report", "page"]
    paths = [getattr(run, f"{name}_file") for name in names] + [run.checkpoints, run.model, run.partial]
    assert len(set(paths)) == len(paths)
    assert {path.parent for path in paths} == {run.path}


def test_a_spec_reads_as_plain_data(run):
    run.start_attempt(run_id="abc", spec=yaml.safe_dump({"training": {"seed": 1}}))
    assert run.spec() == {"training": {"seed": 1}}


def test_logged_steps_are_appended_in_order(run):
    run.start_attempt(run_id="abc", spec="")
    rows = [{"step": step, "loss": 0.1 * step} for step in range(3)]
    for row in rows:
        run.log_metrics(row)
    assert run.metrics() == rows
    run.finish()
    run.start_attempt(run_id="abc", spec="")
    run.log_metrics({"step": 3})
    assert run.metrics() == [*rows, {"step": 3}]


def test_a_row_logged_after_a_crash_is_not_lost(run):
    """The next row is not appended to the truncated line."""
    run.start_attempt(run_id="abc", spec="")
    run.log_metrics({"step": 1})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2, "lo')
    run.start_attempt(run_id="abc", spec="")
    for step in (2, 3, 4):
        run.log_metrics({"step": step})
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4]


# str.splitlines() would split a line at all of these
@pytest.mark.parametrize("character", ["\n", "\u2028", "\u2029", "\x85"])
def test_samples_hold_any_text(character, run):
    rows = [{"before": f"a{character}b"}, {"before": "c"}]
    run.start_attempt(run_id="abc", spec="")
    run.write_samples(rows)
    assert run.samples() == rows


def test_runs_are_found_at_any_depth_sorted_by_path(tmp_path):
    for name in ("b", "a/deep", "c"):
        RunDirectory(tmp_path / name).start_attempt(run_id=name, spec="")
    (tmp_path / "d").mkdir()
    (tmp_path / "e.json").write_text(json.dumps({}))
    assert [run.path for run in find_runs(tmp_path)] == [tmp_path / name for name in ("a/deep", "b", "c")]
    assert [run.path for run in find_runs(tmp_path / "b")] == [tmp_path / "b"]
    assert list(find_runs(tmp_path / "nowhere")) == []


# ---- what attempts cost


def state(**fields):
    """A run.json whose attempt started at noon and trained from 12:01:00 on."""
    training = {"from_step": 4, "since": "2026-01-01T12:01:00+00:00", "tokens_per_step": 1.0}
    started = "2026-01-01T12:00:00+00:00"
    return {"attempts": 1, "host": "a", "started": started, "ended": None, "training": training, **fields}


NOON = datetime.fromisoformat("2026-01-01T12:00:00+00:00").timestamp()
SAVED = {"at": NOON + 90, "step": 6, "devices": 8, "peak_memory_gb": 3.5}
SAVED["seconds"] = {"total": 90.0, "load": 50.0, "train": 30.0, "evaluate": 10.0}


@pytest.mark.parametrize(
    ("cost", "ended", "last_write", "step", "seconds"),
    [
        # killed 40 s after a checkpoint; the last line of metrics.jsonl was written 20 s after it, for step 9
        (SAVED, None, NOON + 110, 9, {"total": 110, "load": 50, "train": 50, "evaluate": 10}),
        # killed before a checkpoint: it loaded for a minute
        (None, None, NOON + 100, 9, {"total": 100, "train": 40}),
        # killed before it logged anything: the newest file is of an attempt before
        (None, None, NOON - 500, 9, {"total": 60, "train": 0}),
        # ended in order, which takes a moment
        (SAVED, "2026-01-01T12:01:31+00:00", NOON + 80, 6, SAVED["seconds"]),
        # ended by the watchdog, half an hour after the checkpoint
        (SAVED, "2026-01-01T12:31:30+00:00", NOON + 80, 6, SAVED["seconds"] | {"total": 1890, "train": 1830}),
    ],
)
def test_an_attempt_counts_up_to_the_last_thing_that_it_wrote(cost, ended, last_write, step, seconds):
    closed = closed_attempt(state(cost=cost, ended=ended), 9, last_write)
    assert closed["seconds"] == pytest.approx(seconds)
    assert (closed["from_step"], closed["step"]) == (4, step)
    assert closed["peak_memory_gb"] == (3.5 if cost else None)


def test_costs_are_of_all_attempts_and_tokens_of_none_twice():
    """Two of 8 devices, one before training: 90 + 110 s on 8 and 36 s on one are 0.4544 hours; steps 7 to 9
    were taken twice.
    """
    first = closed_attempt(state(cost=SAVED, training=state()["training"] | {"from_step": 0}), 9, NOON + 110)
    broken = closed_attempt(state(training=None, ended="2026-01-01T12:00:36+00:00"), 9, 0.0)
    last = closed_attempt(
        state(
            cost=SAVED | {"step": 12},
            training=state()["training"] | {"from_step": 6},
            ended="2026-01-01T12:01:30+00:00",
        ),
        12,
        0.0,
    )
    costs = total_cost([first, broken, last])
    assert costs["seconds"] == pytest.approx({"total": 236, "load": 100, "train": 80, "evaluate": 20})
    assert costs["device_hours"] == pytest.approx((8 * 200 + 36) / 3600, abs=1e-4)
    assert (costs["repeated_steps"], costs["peak_memory_gb"]) == (3, 3.5)


def test_a_killed_attempt_is_in_the_history_of_the_next(run):
    run.start_attempt(run_id="abc", spec="")
    run.update_state(training={"from_step": 0, "since": run.state()["started"]})
    run.log_metrics({"step": 3, "loss": 1.0})
    run.start_attempt(run_id="abc", spec="")
    (first,) = run.state()["history"]
    assert (first["attempt"], first["from_step"], first["step"], first["ended"]) == (1, 0, 3, None)
    assert run.state()["cost"] is run.state()["training"] is None
    run.fail("a reason")
    run.start_attempt(run_id="abc", spec="")
    assert [(each["attempt"], each["error"]) for each in run.state()["history"]] == [
        (1, None),
        (2, "a reason"),
    ]


def test_a_phase_that_runs_is_reported_without_those_within():
    timer = PhaseTimer()
    with timer("outer"):
        time.sleep(0.03)
        with timer("inner"):
            time.sleep(0.05)
            running = timer.report()
        time.sleep(0.02)
    ended = timer.report()
    assert running["outer"] == pytest.approx(0.03, abs=0.02) and running["inner"] >= 0.05
    assert ended["outer"] == pytest.approx(0.05, abs=0.03)
    assert ended["outer"] + ended["inner"] <= ended["total"] + 0.02
