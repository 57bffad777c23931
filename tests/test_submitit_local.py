"""The local launcher of hydra-submitit-launcher with train.py: a process for each cell, from a pickle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignment_lab.runtime.run_directory import RunDirectory

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SWEEP = [
    "--multirun",
    "hydra/launcher=submitit_local",
    "hydra.sweep.dir=swept",
    "model=tiny",
    "parallel.device=cpu",
    "data.max_length=96",
]
SWEEP += ["training.global_batch=4", "eval.rows=4", "eval.generations=0"]


def test_cells_have_the_usual_folders_and_states(run_command, tmp_path):
    """One cell finishes, the other records why it failed.

    submitit's pickles hold secrets: only the user can read them.
    """
    ended = run_command(
        *SWEEP,
        "training.learning_rate=1e-4,1e30",
        "training.warmup_steps=0",
        "training.max_steps=3",
        "+hydra.job.env_set.MY_KEY=f92cf0a1b",
    )
    assert ended.code == 1 and ended.errors[-1].startswith("error: step 2: the gradient's norm is nan"), (
        ended.errors
    )
    swept = tmp_path / "here/swept"
    good, bad = (RunDirectory(swept / f"training.learning_rate={rate}") for rate in ("0.0001", "1e+30"))
    assert (
        good.state()["state"] == "finished"
        and good.report()["steps"] == 3
        and (good.model / "model.safetensors").exists()
    )
    assert bad.state()["state"] == "failed" and "norm is nan" in bad.state()["error"]
    folders_with_secret = {
        path.relative_to(swept).parts[0]
        for path in swept.rglob("*")
        if path.is_file() and b"f92cf0a1b" in path.read_bytes()
    }
    assert folders_with_secret == {".submitit"} and (swept / ".submitit").stat().st_mode & 0o777 == 0o700


def test_a_cell_at_its_time_limit_is_interrupted_and_resumed(tmp_path):
    """submitit warns by SIGUSR2 and would discard the run; the lab saves first.

    The command ends with a sentence.
    """
    command = [sys.executable, str(ROOT / "train.py"), *SWEEP, "training.max_steps=60"]
    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    run = RunDirectory(tmp_path / "swept/defaults")
    while len(run.metrics()) < 3:
        assert first.poll() is None
        time.sleep(0.1)
    os.kill(run.state()["pid"], signal.SIGUSR2)
    _, errors = first.communicate(timeout=120)
    assert (
        first.returncode == 1
        and errors.startswith("error: hydra/launcher=submitit_local")
        and errors.count("\n") == 1
    ), errors
    assert run.state()["state"] == "interrupted" and run.state()["error"].startswith(
        "interrupted by SIGUSR2 at step"
    )
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert run.state()["state"] == "finished" and run.state()["attempts"] == 2
    assert [row["step"] for row in run.metrics() if "loss" in row] == list(range(1, 61))
