"""hydra/launcher=pool: cells of a sweep as processes of this machine, each with accelerators of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from alignment_lab.runtime.errors import UserError
from alignment_lab.runtime.files import file_digest
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.runtime.signals import StopRequest
from alignment_lab.sweep import manifest
from alignment_lab.sweep.launchers import pool

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "model=tiny",
    "data.max_length=96",
    "training.global_batch=4",
    "eval.rows=4",
    "eval.generations=0",
    "method=dpo",
]
POOL = ["--multirun", "hydra/launcher=pool", "hydra.sweep.dir=sweep", "parallel.device=cpu"]
TIMEOUT = 300


@pytest.mark.parametrize(
    ("devices", "per_cell", "max_cells", "slots"),
    [
        ("0123", 1, None, ["0", "1", "2", "3"]),
        ("0123", 1, 2, ["0", "1"]),
        ("01234", 2, None, ["01", "23"]),
        ("01", 2, 8, ["01"]),
        ("", 0, None, [""]),
        ("", 0, 3, ["", "", ""]),
    ],
)
def test_every_cell_has_accelerators_of_its_own(devices, per_cell, max_cells, slots):
    assert pool.split_devices(list(devices), per_cell, max_cells) == [list(slot) for slot in slots]


def test_too_few_accelerators_for_one_cell_are_refused():
    with pytest.raises(UserError, match=r"^hydra\.launcher\.gpus=4: this machine shows 2; "):
        pool.split_devices(["0", "1"], 4, None)


@pytest.mark.parametrize(
    ("overrides", "requested", "count"),
    [
        ([], None, 1),
        (["parallel=zero3"], None, 8),
        (["parallel=zero3", "parallel.processes=2"], None, 2),
        (["parallel=zero3"], 4, 4),
        (["parallel.device=cpu"], 4, 0),
    ],
)
def test_a_cell_needs_an_accelerator_for_each_of_its_processes(composed, overrides, requested, count):
    spec = composed(["model=tiny", *overrides])
    assert pool.devices_per_cell(spec, requested, visible=8) == count
    assert pool.devices_per_cell(spec, requested, visible=0) == 0


def test_processes_see_their_accelerators_and_give_them_back(tmp_path, monkeypatch):
    """Four cells, two slots: the environment of each process.

    The processes run a stand-in for the lab's own code, which would need two accelerators.
    """
    entrypoints = tmp_path / "lab" / "alignment_lab" / "entrypoints"
    entrypoints.mkdir(parents=True)
    (entrypoints / "sweep_cell.py").write_text(
        "import os, sys, time; time.sleep(0.3)\n"
        "names = ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS')\n"
        "print(*(os.environ[name] for name in names), time.monotonic() - 0.3, time.monotonic())"
    )
    monkeypatch.setattr(pool, "snapshot_code", lambda sweep: "code")
    monkeypatch.setattr(pool, "snapshot_folder", lambda sweep, digest: tmp_path / "lab")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cells = [manifest.Cell(f"cell-{number}", [], str(number)) for number in range(4)]
    sweep = manifest.Sweep(tmp_path / "sweep", cells=cells, is_local=True)
    for cell in cells:
        cell.run_directory(sweep.path).mark_queued(run_id=cell.id, spec="")
    cell_pool = pool.CellPool(sweep, cells, [["4", "5"], ["7"]], StopRequest(), print)
    while any(status.is_active for status in cell_pool.poll().values()):
        time.sleep(0.05)
    outputs = [pool.cell_log(cell.run_directory(sweep.path)).read_text().split() for cell in cells]
    assert {devices for devices, _, _, _ in outputs} == {"4,5", "7"}
    assert {threads for _, threads, _, _ in outputs} == {str(max(1, (os.cpu_count() or 1) // 2))}
    for first in outputs:  # no cell had a device that another one was using
        for other in outputs:
            assert first is other or first[0] != other[0] or first[3] <= other[2] or other[3] <= first[2]


def start_sweep(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *POOL, *TINY, *overrides],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_taken(run: RunDirectory, steps: int) -> bool:
    return run.state().get("state") == "running" and len(run.metrics()) >= steps


@pytest.mark.slow
def test_an_interrupted_sweep_is_resumed(tmp_path):
    """Ctrl-C, SIGKILL of a cell and of the command: the same command ends with the same bits.

    A cell that cannot take a step fails alone.
    """
    overrides = [
        "training.learning_rate=1e-3,1e30",
        "training.seed=1,2",
        "training.max_steps=40",
        "training.save_steps=10",
    ]

    def run_directory(rate: str, seed: int) -> RunDirectory:
        return RunDirectory(tmp_path / "sweep" / f"training.learning_rate={rate},training.seed={seed}")

    good_1, bad_1 = run_directory("0.001", 1), run_directory("1e+30", 1)
    good_2, bad_2 = run_directory("0.001", 2), run_directory("1e+30", 2)
    first = start_sweep(tmp_path, *overrides, "hydra.launcher.n_jobs=2")
    wait_until(lambda: has_taken(good_1, 5), first)
    first.send_signal(signal.SIGINT)
    output, errors = first.communicate(timeout=TIMEOUT)
    assert first.returncode == 130
    assert "the same command resumes the cells that did not finish" in errors
    assert "4 not started yet" in output and good_1.state()["state"] == "interrupted"

    second = start_sweep(tmp_path, *overrides, "hydra.launcher.n_jobs=2")
    wait_until(lambda: has_taken(good_1, 20), second)
    children = psutil.Process(second.pid).children()
    (process,) = [child for child in children if child.pid == good_1.state()["pid"]]
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: good_1.state()["state"] == "interrupted", second)
    assert "ended by SIGKILL" in good_1.state()["error"]
    wait_until(lambda: has_taken(good_2, 5), second)
    second.kill()
    second.communicate()
    deadline = time.monotonic() + TIMEOUT
    while good_2.state()["state"] == "running":  # the kernel sends it SIGTERM when its parent dies
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert good_2.state()["state"] == "interrupted" and "SIGTERM" in good_2.state()["error"]

    third = start_sweep(tmp_path, *overrides, "hydra.launcher.n_jobs=2")
    output, errors = third.communicate(timeout=TIMEOUT)
    assert third.returncode == 1 and "norm is nan" in errors and "Error executing job" not in errors
    states = [run.state()["state"] for run in (good_1, bad_1, good_2, bad_2)]
    assert states == ["finished", "failed", "finished", "failed"]
    assert "2 finished, 2 failed" in output and good_1.state()["attempts"] == 3
    for run in (good_1, good_2):
        assert [row["step"] for row in run.metrics() if "loss" in row] == list(range(1, 41))

    alone = start_sweep(tmp_path, "training.learning_rate=1e-3", *overrides[1:], "hydra.sweep.dir=alone")
    output, errors = alone.communicate(timeout=TIMEOUT)
    assert alone.returncode == 0, errors
    for run, seed in ((good_1, 1), (good_2, 2)):
        uninterrupted = RunDirectory(tmp_path / "alone" / f"training.seed={seed}")
        assert weights_digest(run) == weights_digest(uninterrupted)

    status = sweep_command(tmp_path, "status", "alone")
    assert status.returncode == 0 and "2 cells: 2 finished" in status.stdout
    retried = sweep_command(tmp_path, "retry", "alone")
    assert retried.returncode == 2 and "the same command resumes them" in retried.stderr


def weights_digest(run: RunDirectory) -> str:
    return file_digest(run.model / "model.safetensors")


def sweep_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alignment_lab.sweep", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_problems_of_all_cells_are_reported_before_one_starts(run_command):
    ended = run_command(*POOL, *TINY, "beta=0.1,-1", "parallel.nodes=1")
    assert ended.code == 2 and "beta" in ended.errors[0]
    ended = run_command(*POOL, *TINY, "parallel=ddp", "parallel.nodes=2")
    assert ended.code == 2 and "hydra/launcher=pool runs cells on this machine alone" in ended.errors[0]
    ended = run_command(*POOL, *TINY, "model=embedded", "hydra.launcher.n_jobs=1000")
    assert ended.code == 2 and "are free for each of 1000 cells at once" in ended.errors[0]
    ended = run_command(*POOL[1:], *TINY)
    assert ended.code == 2 and "hydra/launcher=pool: give --multirun" in ended.errors[0]
