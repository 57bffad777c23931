"""Trackers are told what metrics.jsonl holds, each step once, whatever happens to the run in between."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alignment_lab import tracking
from alignment_lab.estimate import problems
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.tracking import follower, tensorboard_run, wandb_run
from alignment_lab.tracking.follower import NEVER, STEP, Follower, Tracker, named
from alignment_lab.tracking.wandb_file import last_step, records

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
SHORT = [
    "model=tiny",
    "data=embedded",
    "training.global_batch=4",
    "eval.rows=4",
    "eval.generations=2",
    "eval.max_new_tokens=4",
]
SAMPLES = [
    {"prompt": [{"role": "user", "content": "Which city?"}], "expected": "Rome.", "before": "x", "after": "y"}
]


class Listener(Tracker):
    """Remembers what it was told."""

    def __init__(self, known: int = NEVER) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self._known = known

    def known(self) -> int:
        return self._known

    def log(self, step: int, values: Any) -> None:
        self.told.append((step, dict(values)))


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A run that began."""
    made = RunDirectory(tmp_path / "cell")
    made.start_attempt(run_id="0123456789ab", spec="")
    return made


def logged(run: RunDirectory, *steps: int) -> None:
    for step in steps:
        run.log_metrics({"step": step, "loss": 1 / step, "epoch": step / 10})
        if step % 2 == 0:
            run.log_metrics({"step": step, "eval_loss": 2 / step, "eval_rewards/accuracies": 0.5})


# ---- what is told


def test_names_are_those_of_transformers_integrations():
    row = {
        "step": 3,
        "loss": 0.5,
        "rewards/margins": 1.0,
        "eval_loss": 0.4,
        "eval_rewards/accuracies": 1,
        "note": "x",
    }
    told = {
        "train/loss": 0.5,
        "train/rewards/margins": 1.0,
        "eval/loss": 0.4,
        "eval/rewards/accuracies": 1,
        STEP: 3,
    }
    assert named(row) == told


def test_each_row_is_told_once_and_half_a_line_waits_for_its_end(run):
    logged(run, 1, 2)
    listener = Listener()
    follower = Follower(run, [listener])
    follower.tell()
    assert listener.told == []  # before it was asked what it knows
    follower.begin()
    follower.tell()
    with run.metrics_file.open("a") as file:
        file.write('{"step": 3, "lo')
    follower.tell()
    assert [step for step, _ in listener.told] == [1, 2, 2]
    with run.metrics_file.open("a") as file:
        file.write('ss": 0.3}\n')
    follower.tell()
    assert listener.told[-1] == (3, {"train/loss": 0.3, STEP: 3})


@pytest.mark.parametrize(("known", "told"), [(NEVER, [1, 2, 2, 3]), (2, [3]), (5, [6])])
def test_a_tracker_is_told_what_it_lacks(known, told, run):
    """It may have been told more than the checkpoint has, or less: those that it knows are not told again when they are taken again."""
    logged(run, 1, 2, 3)
    listener = Listener(known)
    follower = Follower(run, [listener])
    follower.begin()
    if known == 5:
        logged(run, 4, 5, 6)
        follower.tell()
        assert [step for step, _ in listener.told] == [6, 6]
    else:
        assert [step for step, _ in listener.told] == told


def test_the_summary_has_before_after_and_delta():
    metrics = {
        "eval_loss": {"before": {"value": 0.7}, "after": {"value": 0.5}},
        "answers/words": {"before": None, "after": {"value": 3.0}},
    }
    report = {
        "steps": 4,
        "tokens_per_second": 7.5,
        "peak_memory_gb": 1.5,
        "seconds": {"total": 9.0},
        "metrics": metrics,
        "name": "x",
    }
    assert follower.summary({"state": "finished", "attempts": 2}, report) == {
        "state": "finished",
        "attempts": 2,
        "steps": 4,
        "tokens_per_second": 7.5,
        "peak_memory_gb": 1.5,
        "seconds/total": 9.0,
        "before/eval_loss": 0.7,
        "after/eval_loss": 0.5,
        "delta/eval_loss": pytest.approx(-0.2),
        "after/answers/words": 3.0,
    }


def test_drift_and_margin_are_nats_on_heldout_answers():
    """Chosen from -100 to -99, rejected from -200 to -204: on average 1.5 nats less likely, 5 apart."""
    pairs = {"eval_logps/chosen": (-100.0, -99.0), "eval_logps/rejected": (-200.0, -204.0)}
    metrics = {
        name: {"before": {"value": before}, "after": {"value": after}}
        for name, (before, after) in pairs.items()
    }
    found = follower.summary({}, {"metrics": metrics})
    assert (found["drift"], found["margin"]) == (-1.5, 5.0)


# ---- options, and what is missing


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("local", []),
        ("tensorboard", ["tensorboard"]),
        ("wandb", ["tensorboard", "wandb"]),
        ("trackio", ["tensorboard", "trackio"]),
        ("all", ["tensorboard", "wandb", "trackio"]),
    ],
)
def test_which_trackers_are_on_is_data(option, told, composed):
    assert tracking.requested_trackers(composed([f"tracking={option}"])) == told
    assert tracking.requested_trackers(composed([f"tracking={option}", "tracking.tensorboard=false"])) == [
        name for name in told if name != "tensorboard"
    ]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("trackio", ".[trackio]"), ("wandb", "pip install wandb"), ("tensorboard", "tensorboard")],
)
def test_a_package_that_is_not_there_is_told_before_anything_heavy(name, remedy, composed, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda package: None if package == name else object())
    (said,) = problems.local_problems(composed(["model=tiny", f"tracking.{name}=true"]), accelerators=0)
    assert said.startswith(f"tracking.{name}=true: the package {name} is not installed; ") and remedy in said


def test_nobody_is_told_of_a_local_run(composed, run):
    assert tracking.tracker_callbacks(composed(["tracking=local"]), run, Console(file=io.StringIO())) == []
    tracking.conclude_tracking(composed(["tracking=local"]), run, Console(file=io.StringIO()))
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "run.json", "spec.yaml"]


# ---- wandb


def history(run: RunDirectory) -> list[tuple[str, int, dict[str, Any]]]:
    """Every row of every offline directory, in the order of their start, as `wandb sync` sends them: run id, step, values."""
    rows = []
    for file in sorted(run.path.glob("wandb/offline-run-*/*.wandb")):
        kept = list(records(file))
        (begun,) = [record.run.run_id for record in kept if record.HasField("run")]
        for record in kept:
            if record.HasField("history"):
                values = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                rows.append((begun, record.history.step.num, values))
    return rows


def summary(run: RunDirectory) -> dict[str, Any]:
    """The last word on each key of the summary."""
    found: dict[str, Any] = {}
    for file in sorted(run.path.glob("wandb/offline-run-*/*.wandb")):
        for record in records(file):
            for item in record.summary.update if record.HasField("summary") else ():
                found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return found


def artifacts(run: RunDirectory) -> dict[str, list[str]]:
    """The files of each kind of artifact."""
    kept = [
        record.artifact
        for file in run.path.glob("wandb/offline-run-*/*.wandb")
        for record in records(file)
        if record.HasField("artifact")
    ]
    return {artifact.type: [entry.path for entry in artifact.manifest.contents] for artifact in kept}


def attempt(spec: Any, run: RunDirectory, *steps: int, ends: bool = False) -> Console:
    """Tell wandb of these steps."""
    console = Console(file=io.StringIO(), width=1000)
    follower = Follower(run, [wandb_run.Wandb(spec, run, console)])
    follower.begin()
    logged(run, *steps)
    follower.tell()
    if ends:
        follower.conclude(
            {"state": "finished", "delta/eval_loss": -0.1, "nothing": None}, SAMPLES, run.page_file
        )
    follower.close("finished" if ends else "interrupted", failed=not ends)
    file, until = max(run.path.glob("wandb/offline-run-*/*.wandb")), time.time() + 20
    while not any(record.HasField("exit") for record in records(file)) and time.time() < until:
        time.sleep(0.05)  # another process writes it; the end of this one would wait for that
    return console


def test_attempts_are_one_run_with_one_axis(composed, run, monkeypatch):
    """The second begins at step 3 although five were told; the third lost what the second had told."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    spec = composed(["tracking=wandb", "tracking.project=p"])
    run.page_file.write_text("<html>")
    said = attempt(spec, run, 1, 2, 3, 4, 5).file.getvalue()
    assert (
        said
        == f"wandb: offline (no key, or WANDB_MODE=offline); send it later with  wandb sync {run.path}/wandb/offline-run-*\n"
    )
    run.truncate_metrics(3)
    time.sleep(1.1)  # a directory is named by the second
    attempt(spec, run, 4, 5, 6)
    (second,) = [file for file in run.path.glob("wandb/offline-run-*/*.wandb") if last_step(file) == 6]
    second.write_bytes(second.read_bytes()[:7])  # killed before anything was written
    run.truncate_metrics(4)
    time.sleep(1.1)
    attempt(spec, run, 5, 6, 7, 8, ends=True)

    rows = history(run)
    assert len({id for id, _, _ in rows}) == 1 and rows[0][0].startswith(f"{spec.run_id}-")
    assert [step for _, step, _ in rows] == list(range(1, 9))
    assert [values[STEP] for _, _, values in rows] == list(range(1, 9))
    assert [values["train/loss"] for _, _, values in rows] == [1 / step for step in range(1, 9)]
    assert {step: values["eval/loss"] for _, step, values in rows if "eval/loss" in values} == {
        step: 2 / step for step in (2, 4, 6, 8)
    }
    found = summary(run)
    assert (found["state"], found["delta/eval_loss"]) == ("finished", -0.1)
    assert found["samples"]["_type"] == "table-file" and (
        found["samples"]["ncols"],
        found["samples"]["nrows"],
    ) == (4, 1)
    (table,) = run.path.glob("wandb/offline-run-*/files/media/table/*.json")
    assert json.loads(table.read_text())["data"] == [["user: Which city?", "Rome.", "x", "y"]]
    assert artifacts(run)["report"] == ["report.html"]
    assert len(list(run.path.glob("wandb/offline-run-*"))) == 2  # the empty one is gone


def test_a_file_that_a_killed_process_left_is_read_as_far_as_it_goes(composed, run):
    logged(run, 1)
    attempt(composed(["tracking=wandb"]), run, *range(2, 40))
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    whole = file.read_bytes()
    seen = []
    for length in (0, 3, 7, 10, len(whole) // 3, len(whole) // 2, len(whole) - 1, len(whole)):
        file.write_bytes(whole[:length])
        seen.append(last_step(file))
    assert seen[:4] == [-1] * 4 and seen == sorted(seen) and seen[-1] == 39


def test_a_run_is_found_by_sweep_cell_and_choices(composed, tmp_path):
    spec = composed(
        [
            "tracking=wandb",
            "method=ipo",
            "model=tiny",
            "tracking.tags=[mine,mine,x]",
            f"data.name={'d' * 100}",
        ]
    )
    alone = wandb_run.identity(spec, RunDirectory(tmp_path / "2026-01-31" / "12-00-00-ipo-tiny"))
    assert (alone["project"], alone["group"], alone["name"]) == ("alignment_lab", None, "12-00-00-ipo-tiny")
    assert alone["tags"] == ["method=ipo", "model=tiny", f"data={'d' * 59}", "parallel=single", "mine", "x"]
    (tmp_path / "12-00-00-sweep").mkdir()
    (tmp_path / "12-00-00-sweep" / "multirun.yaml").touch()
    cell = wandb_run.identity(spec, RunDirectory(tmp_path / "12-00-00-sweep" / "beta=0.1,method=ipo"))
    assert (cell["group"], cell["name"], cell["job_type"], cell["resume"]) == (
        "12-00-00-sweep",
        "beta=0.1,method=ipo",
        "train",
        "allow",
    )
    assert cell["id"] != alone["id"] and cell["id"].partition("-")[0] == spec.run_id
    named = wandb_run.identity(
        composed(["tracking=wandb", "tracking.group=g"]), RunDirectory(tmp_path / "12-00-00-sweep" / "a")
    )
    assert named["group"] == "g"


# ---- the page that compares


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_comparison_is_built_without_a_network():
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is an extra")
    from alignment_lab.tracking.workspace import BETA, METHOD, workspace

    page = workspace("me", "lab")
    assert (page.entity, page.project) == ("me", "lab")
    panels = {section.name: section.panels for section in page.sections}
    assert list(panels) == [
        "Curves by method",
        "After training, against beta",
        "Margin against drift",
        "Cost",
        "Samples",
    ]
    curves = panels["Curves by method"]
    assert {panel.y[0] for panel in curves} >= {"train/loss", "train/rewards/margins", "eval/loss"}
    assert {(panel.x, panel.groupby.name) for panel in curves} == {(STEP, METHOD)}
    assert {(panel.x.name, panel.log_x) for panel in panels["After training, against beta"]} == {(BETA, True)}
    margin = panels["Margin against drift"][0]
    assert (margin.x.name, margin.y.name) == ("drift", "margin")
    assert page._to_model().model_dump_json()


def test_every_curve_of_the_comparison_is_one_that_runs_have():
    from alignment_lab.config import METHOD_SCHEMAS, measured_metrics
    from alignment_lab.tracking.workspace import COSTS, CURVES, OUTCOMES

    known = {name for schema in METHOD_SCHEMAS.values() for name in measured_metrics(schema())}
    assert set(CURVES) <= {f"train/{name.removeprefix('eval_')}" for name in known} | {"eval/loss"}
    assert set(OUTCOMES) <= {f"after/{name}" for name in known}
    assert set(COSTS) <= {*follower.NUMBERS, "seconds/total"}


# ---- tensorboard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)] for name in found.Tags()["scalars"]
    }


def test_an_attempts_tensorboard_goes_on_where_it_begins(composed, run):
    spec = composed([])
    for steps, back in (((1, 2, 3, 4, 5), 3), ((4, 5, 6), 6)):
        follower = Follower(run, [tensorboard_run.TensorBoard(spec, run)])
        follower.begin()
        logged(run, *steps)
        follower.tell()
        follower.close("interrupted", failed=True)
        run.truncate_metrics(back)
        time.sleep(1.1)  # an event file is named by the second
    found = scalars(run.path / "tensorboard")
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in found["eval/loss"]] == [2, 4, 6]


# ---- trackio


@pytest.fixture
def trackio(tmp_path, monkeypatch) -> Any:
    """Its own folder."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage", reason="trackio is an extra")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    return storage.SQLiteStorage


def test_trackios_database_holds_the_run(composed, run, trackio, tmp_path):
    from alignment_lab.tracking.trackio_run import Trackio

    spec = composed(["tracking=trackio", "tracking.project=lab"])
    console = Console(file=io.StringIO(), width=1000)
    for steps, back, ends in (((1, 2, 3, 4, 5), 3, False), ((4, 5, 6), 6, True)):
        tracker = Trackio(spec, run, console)
        follower = Follower(run, [tracker])
        follower.begin()
        logged(run, *steps)
        follower.tell()
        if ends:
            follower.conclude({"state": "finished", "delta/eval_loss": -0.1}, SAMPLES, run.page_file)
        follower.close("finished", failed=False)
        run.truncate_metrics(back)
    rows = trackio.get_logs("lab", tracker.name)
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["delta/eval_loss"] for row in rows if "delta/eval_loss" in row] == [-0.1]
    assert [row for row in rows if "samples" in row]
    assert trackio.get_run_config("lab", tracker.name)["method"]["name"] == "dpo"
    assert "trackio show --project lab" in console.file.getvalue()


# ---- the command itself


@pytest.fixture
def train(tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """`train("tracking=wandb")`: train.py in a folder of its own."""

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(TRAIN), *SHORT, "parallel.device=cpu", "hydra.run.dir=mine", *words]
        known = {
            name: value for name, value in os.environ.items() if not name.startswith("WANDB_SERVICE")
        }  # of this process's own runs
        environment = {**known, "OMP_NUM_THREADS": "1", "TRACKIO_DIR": str(tmp_path / "trackio")}
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_a_run_that_was_killed_and_went_on_reads_back_as_one(train, tmp_path):
    words = ["tracking=wandb", "training.max_steps=14", "training.save_steps=2", "training.eval_steps=5"]
    run = RunDirectory(tmp_path / "mine")
    process = train(*words)
    until = time.time() + 240
    while (
        not any(row["step"] >= 7 for row in run.metrics()) and process.poll() is None and time.time() < until
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run.state()["state"] == "running"
    again = train(*words)
    said = again.communicate(timeout=240)[0]
    assert again.returncode == 0, said
    assert "resuming from" in said and run.state()["attempts"] == 2

    rows = history(run)
    steps = [step for _, step, _ in rows]
    assert len({id for id, _, _ in rows}) == 1
    assert steps == list(range(1, 15))
    assert [values[STEP] for _, _, values in rows] == steps
    kept = {row["step"]: row["loss"] for row in run.metrics() if "loss" in row}
    assert {step: values["train/loss"] for _, step, values in rows} == kept
    assert [step for _, step, values in rows if "eval/loss" in values] == [5, 10]
    found = summary(run)
    assert (found["state"], found["attempts"], found["steps"]) == ("finished", 2, 14)
    assert {
        "before/eval_loss",
        "after/eval_loss",
        "delta/eval_loss",
        "tokens_per_second",
        "peak_memory_gb",
    } <= set(found)
    assert found["samples"]["_type"] == "table-file"
    assert artifacts(run)["report"] == ["report.html"]
    assert [step for step, _ in scalars(run.path / "tensorboard")["train/loss"]] == steps
