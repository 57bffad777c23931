"""hydra/launcher=pool: cells of a sweep as processes of this machine, each with accelerators of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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
PATIENCE = 300


@pytest.mark.parametrize(
    ("devices", "each", "jobs", "found"),
    [
        ("0123", 1, None, ["0", "1", "2", "3"]),
        ("0123", 1, 2, ["0", "1"]),
        ("01234", 2, None, ["01", "23"]),
        ("01", 2, 8, ["01"]),
        ("", 0, None, [""]),
        ("", 0, 3, ["", "", ""]),
    ],
)
def test_every_cell_has_accelerators_of_its_own(devices, each, jobs, found):
    assert pool.split_devices(list(devices), each, jobs) == [list(one) for one in found]


def test_a_share_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"^hydra\.launcher\.gpus=4: this machine shows 2; "):
        pool.split_devices(["0", "1"], 4, None)


@pytest.mark.parametrize(
    ("words", "asked", "count"),
    [
        ([], None, 1),
        (["parallel=zero3"], None, 8),
        (["parallel=zero3", "parallel.processes=2"], None, 2),
        (["parallel=zero3"], 4, 4),
        (["parallel.device=cpu"], 4, 0),
    ],
)
def test_a_cell_needs_one_for_each_of_its_processes(composed, words, asked, count):
    assert pool.devices_per_cell(composed(["model=tiny", *words]), asked, visible=8) == count
    assert pool.devices_per_cell(composed(["model=tiny", *words]), asked, visible=0) == 0


def test_processes_see_their_share_and_give_it_back(tmp_path, monkeypatch):
    """Four cells, two places: what a process finds in its environment. What it runs is not the lab's, for that needs two accelerators."""
    (tmp_path / "lab" / "alignment_lab").mkdir(parents=True)
    (tmp_path / "lab" / "alignment_lab" / "cell.py").write_text(
        "import os, sys, time; time.sleep(0.3)\n"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'], time.monotonic() - 0.3, time.monotonic())"
    )
    monkeypatch.setattr(pool, "frozen", lambda sweep: "code")
    monkeypatch.setattr(pool, "place", lambda sweep, digest: tmp_path / "lab")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cells = [manifest.Cell(f"cell-{number}", [], str(number)) for number in range(4)]
    sweep = manifest.Sweep(tmp_path / "sweep", cells=cells, here=True)
    for cell in cells:
        cell.run(sweep.path).mark_queued(run_id=cell.id, spec="")
    going = pool.Pool(sweep, cells, [["4", "5"], ["7"]], StopRequest(), print)
    while any(one.alive for one in going.look().values()):
        time.sleep(0.05)
    said = [pool.cell_log(cell.run(sweep.path)).read_text().split() for cell in cells]
    assert {words[0] for words in said} == {"4,5", "7"}
    assert {words[1] for words in said} == {str(max(1, (os.cpu_count() or 1) // 2))}
    for first in said:  # nobody had a device that another one was using
        for other in said:
            assert first is other or first[0] != other[0] or first[3] <= other[2] or other[3] <= first[2]


def command(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *POOL, *TINY, *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(true, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def stepping(run: RunDirectory, steps: int) -> bool:
    return run.state().get("state") == "running" and len(run.metrics()) >= steps


@pytest.mark.slow
def test_a_sweep_here_is_cut_off_and_goes_on(tmp_path):
    """A cell that cannot step fails alone; Ctrl-C, SIGKILL of a cell and of the command: the same command ends with the same bits."""
    words = [
        "training.learning_rate=1e-3,1e30",
        "training.seed=1,2",
        "training.max_steps=40",
        "training.save_steps=10",
    ]
    one, bad, two, worse = (RunDirectory(tmp_path / "sweep" / f"training.learning_rate={rate},training.seed={seed}") for rate, seed in
                            (("0.001", 1), ("1e+30", 1), ("0.001", 2), ("1e+30", 2)))  # fmt: skip
    first = command(tmp_path, *words, "hydra.launcher.n_jobs=2")
    until(lambda: stepping(one, 5), first)
    first.send_signal(signal.SIGINT)
    said, complaint = first.communicate(timeout=PATIENCE)
    assert (
        first.returncode == 130
        and "the same command goes on with the cells that have not finished" in complaint
    )
    assert "4 new, or never begun" in said and one.state()["state"] == "interrupted"

    second = command(tmp_path, *words, "hydra.launcher.n_jobs=2")
    until(lambda: stepping(one, 20), second)
    (process,) = [child for child in psutil.Process(second.pid).children() if child.pid == one.state()["pid"]]
    process.send_signal(signal.SIGKILL)
    until(lambda: one.state()["state"] == "interrupted", second)
    assert "ended by SIGKILL" in one.state()["error"]
    until(lambda: stepping(two, 5), second)
    second.kill()
    second.communicate()
    end = time.monotonic() + PATIENCE
    while two.state()["state"] == "running":  # it is told that nobody is left who would wait for it
        assert time.monotonic() < end
        time.sleep(0.1)
    assert two.state()["state"] == "interrupted" and "SIGTERM" in two.state()["error"]

    third = command(tmp_path, *words, "hydra.launcher.n_jobs=2")
    said, complaint = third.communicate(timeout=PATIENCE)
    assert third.returncode == 1 and "norm is nan" in complaint and "Error executing job" not in complaint
    assert [run.state()["state"] for run in (one, bad, two, worse)] == [
        "finished",
        "failed",
        "finished",
        "failed",
    ]
    assert "2 finished, 2 failed" in said and one.state()["attempts"] == 3
    for run in (one, two):
        assert [row["step"] for row in run.metrics() if "loss" in row] == list(range(1, 41))

    alone = command(tmp_path, "training.learning_rate=1e-3", *words[1:], "hydra.sweep.dir=alone")
    said, complaint = alone.communicate(timeout=PATIENCE)
    assert alone.returncode == 0, complaint
    for run, seed in ((one, 1), (two, 2)):
        undisturbed = RunDirectory(tmp_path / "alone" / f"training.seed={seed}")
        assert file_digest(run.model / "model.safetensors") == file_digest(
            undisturbed.model / "model.safetensors"
        )

    status = subprocess.run(
        [sys.executable, "-m", "alignment_lab.sweep", "status", "alone"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert status.returncode == 0 and "2 cells: 2 finished" in status.stdout
    retried = subprocess.run(
        [sys.executable, "-m", "alignment_lab.sweep", "retry", "alone"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert retried.returncode == 2 and "the same command goes on with them" in retried.stderr


def test_what_is_wrong_with_any_cell_is_said_before_one_starts(door):
    ended = door(*POOL, *TINY, "beta=0.1,-1", "parallel.nodes=1")
    assert ended.code == 2 and "beta" in ended.errors[0]
    ended = door(*POOL, *TINY, "parallel=ddp", "parallel.nodes=2")
    assert ended.code == 2 and "hydra/launcher=pool is of this machine alone" in ended.errors[0]
    ended = door(*POOL, *TINY, "model=embedded", "hydra.launcher.n_jobs=1000")
    assert ended.code == 2 and "are free for each of 1000 cells at once" in ended.errors[0]
    ended = door(*POOL[1:], *TINY)
    assert ended.code == 2 and "hydra/launcher=pool: give --multirun" in ended.errors[0]
