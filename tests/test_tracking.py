"""Trackers get what metrics.jsonl holds, each step once, whatever happens to the run in between."""

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
from alignment_lab.tracking import tensorboard_run, wandb_run
from alignment_lab.tracking.forwarder import (
    NO_STEP,
    STEP,
    SUMMARY_KEYS,
    MetricsForwarder,
    Tracker,
    run_summary,
    to_tracker_metrics,
)
from alignment_lab.tracking.wandb_file import last_history_step, read_records

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


class RecordingTracker(Tracker):
    """Records what it is given."""

    def __init__(self, known_step: int = NO_STEP) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self._known_step = known_step

    def last_known_step(self) -> int:
        return self._known_step

    def log(self, step: int, values: Any) -> None:
        self.logged.append((step, dict(values)))


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A run that began."""
    directory = RunDirectory(tmp_path / "cell")
    directory.start_attempt(run_id="0123456789ab", spec="")
    return directory


def logged(run: RunDirectory, *steps: int) -> None:
    for step in steps:
        run.log_metrics({"step": step, "loss": 1 / step, "epoch": step / 10})
        if step % 2 == 0:
            run.log_metrics({"step": step, "eval_loss": 2 / step, "eval_rewards/accuracies": 0.5})


# ---- what is sent


def test_names_are_those_of_transformers_integrations():
    row = {
        "step": 3,
        "loss": 0.5,
        "rewards/margins": 1.0,
        "eval_loss": 0.4,
        "eval_rewards/accuracies": 1,
        "note": "x",
    }
    expected = {
        "train/loss": 0.5,
        "train/rewards/margins": 1.0,
        "eval/loss": 0.4,
        "eval/rewards/accuracies": 1,
        STEP: 3,
    }
    assert to_tracker_metrics(row) == expected


def test_each_row_is_sent_once_and_half_a_line_waits_for_its_end(run):
    logged(run, 1, 2)
    tracker = RecordingTracker()
    forwarder = MetricsForwarder(run, [tracker])
    forwarder.forward()
    assert tracker.logged == []  # before it was asked what it has
    forwarder.start()
    forwarder.forward()
    with run.metrics_file.open("a") as file:
        file.write('{"step": 3, "lo')
    forwarder.forward()
    assert [step for step, _ in tracker.logged] == [1, 2, 2]
    with run.metrics_file.open("a") as file:
        file.write('ss": 0.3}\n')
    forwarder.forward()
    assert tracker.logged[-1] == (3, {"train/loss": 0.3, STEP: 3})


@pytest.mark.parametrize(("known", "logged_steps"), [(NO_STEP, [1, 2, 2, 3]), (2, [3]), (5, [6])])
def test_a_tracker_is_given_what_it_lacks(known, logged_steps, run):
    """It may have more steps than the checkpoint, or fewer.

    Steps that it has are not sent again when repeated.
    """
    logged(run, 1, 2, 3)
    tracker = RecordingTracker(known)
    forwarder = MetricsForwarder(run, [tracker])
    forwarder.start()
    if known == 5:
        logged(run, 4, 5, 6)
        forwarder.forward()
        assert [step for step, _ in tracker.logged] == [6, 6]
    else:
        assert [step for step, _ in tracker.logged] == logged_steps


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
    assert run_summary({"state": "finished", "attempts": 2}, report) == {
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
    """Chosen 1 nat more likely, rejected 4 nats less: on average 1.5 nats less likely, 5 apart."""
    pairs = {"eval_implicit_rewards/chosen": (0.0, 1.0), "eval_implicit_rewards/rejected": (0.0, -4.0)}
    metrics = {
        name: {"before": {"value": before}, "after": {"value": after}}
        for name, (before, after) in pairs.items()
    }
    summary = run_summary({}, {"metrics": metrics})
    assert (summary["drift"], summary["margin"]) == (-1.5, 5.0)


# ---- options, and what is missing


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("local", []),
        ("tensorboard", ["tensorboard"]),
        ("wandb", ["tensorboard", "wandb"]),
        ("trackio", ["tensorboard", "trackio"]),
        ("all", ["tensorboard", "wandb", "trackio"]),
    ],
)
def test_which_trackers_are_on_is_data(option, names, composed):
    assert tracking.requested_trackers(composed([f"tracking={option}"])) == names
    assert tracking.requested_trackers(composed([f"tracking={option}", "tracking.tensorboard=false"])) == [
        name for name in names if name != "tensorboard"
    ]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("trackio", ".[trackio]"), ("wandb", "pip install wandb"), ("tensorboard", "tensorboard")],
)
def test_a_missing_package_is_reported_before_anything_heavy(name, remedy, composed, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda package: None if package == name else object())
    (message,) = problems.local_problems(composed(["model=tiny", f"tracking.{name}=true"]), accelerators=0)
    assert message.startswith(f"tracking.{name}=true: the package {name} is not installed; ")
    assert remedy in message


def test_no_tracker_gets_a_local_run(composed, run):
    assert tracking.open_forwarder(composed(["tracking=local"]), run, Console(file=io.StringIO())) is None
    tracking.conclude_tracking(composed(["tracking=local"]), run, Console(file=io.StringIO()))
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "run.json", "spec.yaml"]


# ---- wandb


def history(run: RunDirectory) -> list[tuple[str, int, dict[str, Any]]]:
    """Every row of every offline directory, in the order of their start, as `wandb sync` sends them: run id,
    step, values."""
    rows = []
    for file in sorted(run.path.glob("wandb/offline-run-*/*.wandb")):
        file_records = list(read_records(file))
        (run_id,) = [record.run.run_id for record in file_records if record.HasField("run")]
        for record in file_records:
            if record.HasField("history"):
                values = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                rows.append((run_id, record.history.step.num, values))
    return rows


def summary(run: RunDirectory) -> dict[str, Any]:
    """The last word on each key of the summary."""
    values: dict[str, Any] = {}
    for file in sorted(run.path.glob("wandb/offline-run-*/*.wandb")):
        for record in read_records(file):
            for item in record.summary.update if record.HasField("summary") else ():
                values[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return values


def artifacts(run: RunDirectory) -> dict[str, list[str]]:
    """The files of each kind of artifact."""
    logged_artifacts = [
        record.artifact
        for file in run.path.glob("wandb/offline-run-*/*.wandb")
        for record in read_records(file)
        if record.HasField("artifact")
    ]
    return {
        artifact.type: [entry.path for entry in artifact.manifest.contents] for artifact in logged_artifacts
    }


def attempt(spec: Any, run: RunDirectory, *steps: int, ends: bool = False) -> Console:
    """Send these steps to wandb."""
    console = Console(file=io.StringIO(), width=1000)
    forwarder = MetricsForwarder(run, [wandb_run.Wandb(spec, run, console)])
    forwarder.start()
    logged(run, *steps)
    forwarder.forward()
    if ends:
        forwarder.conclude(
            {"state": "finished", "delta/eval_loss": -0.1, "nothing": None}, SAMPLES, run.page_file
        )
    forwarder.close("finished" if ends else "interrupted", failed=not ends)
    file, until = max(run.path.glob("wandb/offline-run-*/*.wandb")), time.time() + 20
    while not any(record.HasField("exit") for record in read_records(file)) and time.time() < until:
        time.sleep(0.05)  # another process writes it; the end of this one would wait for that
    return console


def test_attempts_are_one_run_with_one_axis(composed, run, monkeypatch):
    """The second starts at step 3 although five were sent; the third has lost what the second sent."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    spec = composed(["tracking=wandb", "tracking.project=p"])
    run.page_file.write_text("<html>")
    output = attempt(spec, run, 1, 2, 3, 4, 5).file.getvalue()
    assert (
        output == "wandb: offline (no key, or WANDB_MODE=offline); upload it later with  "
        f"wandb sync {run.path}/wandb/offline-run-*\n"
    )
    run.truncate_metrics(3)
    time.sleep(1.1)  # a directory is named by the second
    attempt(spec, run, 4, 5, 6)
    (second,) = [
        file for file in run.path.glob("wandb/offline-run-*/*.wandb") if last_history_step(file) == 6
    ]
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
    values = summary(run)
    assert (values["state"], values["delta/eval_loss"]) == ("finished", -0.1)
    assert values["samples"]["_type"] == "table-file" and (
        values["samples"]["ncols"],
        values["samples"]["nrows"],
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
        seen.append(last_history_step(file))
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
    alone = wandb_run.init_arguments(spec, RunDirectory(tmp_path / "2026-01-31" / "12-00-00-ipo-tiny"))
    assert (alone["project"], alone["group"], alone["name"]) == ("alignment_lab", None, "12-00-00-ipo-tiny")
    assert alone["tags"] == ["method=ipo", "model=tiny", f"data={'d' * 59}", "parallel=single", "mine", "x"]
    (tmp_path / "12-00-00-sweep").mkdir()
    (tmp_path / "12-00-00-sweep" / "multirun.yaml").touch()
    cell = wandb_run.init_arguments(spec, RunDirectory(tmp_path / "12-00-00-sweep" / "beta=0.1,method=ipo"))
    assert (cell["group"], cell["name"], cell["job_type"], cell["resume"]) == (
        "12-00-00-sweep",
        "beta=0.1,method=ipo",
        "train",
        "allow",
    )
    assert cell["id"] != alone["id"] and cell["id"].partition("-")[0] == spec.run_id
    named = wandb_run.init_arguments(
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
    assert curves[0].title == "loss" and margin.title == "margin against drift, nats"


def test_every_curve_of_the_comparison_is_one_that_runs_have():
    from alignment_lab.config import METHOD_SCHEMAS, measured_metrics
    from alignment_lab.config.metrics import METRICS
    from alignment_lab.tracking.workspace import COST_SUMMARIES, CURVES, RESULTS, title_of

    known = {name for schema in METHOD_SCHEMAS.values() for name in measured_metrics(schema())}
    assert set(CURVES) <= {
        f"{where}/{name.removeprefix('eval_')}" for name in known for where in ("train", "eval")
    }
    assert set(RESULTS) <= {f"after/{name}" for name in known}
    assert set(map(title_of, (*CURVES, *RESULTS))) <= {
        row.label + suffix for row in METRICS.values() for suffix in ("", ", held out", ", after training")
    }
    assert set(COST_SUMMARIES) <= {*SUMMARY_KEYS, "seconds/total"}


# ---- tensorboard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_an_attempts_tensorboard_goes_on_where_it_begins(composed, run):
    spec = composed([])
    for steps, back in (((1, 2, 3, 4, 5), 3), ((4, 5, 6), 6)):
        forwarder = MetricsForwarder(run, [tensorboard_run.TensorBoard(spec, run)])
        forwarder.start()
        logged(run, *steps)
        forwarder.forward()
        forwarder.close("interrupted", failed=True)
        run.truncate_metrics(back)
        time.sleep(1.1)  # an event file is named by the second
    curves = scalars(run.path / "tensorboard")
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in curves["eval/loss"]] == [2, 4, 6]


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
        forwarder = MetricsForwarder(run, [tracker])
        forwarder.start()
        logged(run, *steps)
        forwarder.forward()
        if ends:
            forwarder.conclude({"state": "finished", "delta/eval_loss": -0.1}, SAMPLES, run.page_file)
        forwarder.close("finished", failed=False)
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
    output = again.communicate(timeout=240)[0]
    assert again.returncode == 0, output
    assert "resuming from" in output and run.state()["attempts"] == 2

    rows = history(run)
    steps = [step for _, step, _ in rows]
    assert len({id for id, _, _ in rows}) == 1
    assert steps == list(range(1, 15))
    assert [values[STEP] for _, _, values in rows] == steps
    losses = {row["step"]: row["loss"] for row in run.metrics() if "loss" in row}
    assert {step: values["train/loss"] for _, step, values in rows} == losses
    assert [step for _, step, values in rows if "eval/loss" in values] == [5, 10]
    values = summary(run)
    assert (values["state"], values["attempts"], values["steps"]) == ("finished", 2, 14)
    assert {
        "before/eval_loss",
        "after/eval_loss",
        "delta/eval_loss",
        "tokens_per_second",
        "peak_memory_gb",
    } <= set(values)
    assert values["samples"]["_type"] == "table-file"
    assert artifacts(run)["report"] == ["report.html"]
    assert [step for step, _ in scalars(run.path / "tensorboard")["train/loss"]] == steps


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        ("WANDB_MODE=foo", "must be one of online, offline"),
        ("WANDB_RESUME=perhaps", "Input should be 'allow'"),
        ("WANDB_HTTP_TIMEOUT=soon", "valid number"),
        ("WANDB_MODE=offline", None),
        ("WANDB_NOTES=anything", None),
    ],
)
def test_a_variable_that_wandb_does_not_take_is_one_sentence_before_the_run(assignment, reason):
    name, _, value = assignment.partition("=")
    problems = list(wandb_run.variable_problems({name: value, "PATH": "/bin"}))
    assert len(problems) == (reason is not None)
    for problem in problems:
        assert problem.startswith(f"tracking.wandb=true: {assignment}: ") and reason in problem
