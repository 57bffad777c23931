"""Sweeps on a real Slurm: submission, shared work, faults of every kind, snapshots of code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from small_sweeps import ROOT, Sweep

pytestmark = pytest.mark.slurm


def test_a_sweep_is_left_to_slurm(cluster, here):
    """The command returns within 20 s; the reference is computed once; the command then does nothing."""
    sweep = Sweep(here, "method=dpo,kto,ipo", "beta=0.01,0.1", "training.max_steps=2")
    began = time.monotonic()
    launched = sweep.launch()
    seconds = time.monotonic() - began
    assert launched.returncode == 0, launched.stderr
    print(f"the command returned after {seconds:.1f} s")
    assert seconds < 20 and "6 not started yet" in launched.stdout
    assert "6 queued" in sweep.sweep_command("status")
    assert {status.state for status in sweep.wait().values()} == {"finished"}
    names = [cell.name for cell in sweep.manifest.cells]
    for name in names:
        (line,) = [line for line in sweep.log(name).splitlines() if line.startswith("reference: ")]
        words = line.split()
        assert words[1] == words[3], line  # N of N rows were in the cache
    again = sweep.launch()
    assert "6 finished, left alone" in again.stdout and len(sweep.manifest.submissions) == 2
    assert {sweep.run(name).state()["attempts"] for name in names} == {1}
    assert "6 finished" in sweep.sweep_command("collect") and (sweep.path / "report.html").exists()
    assert "training 2/2" in sweep.sweep_command("logs", "0")


def test_a_sweep_under_faults(cluster, here):
    """Eight cells.

    The submitting process is killed when Slurm has the array and its number is not recorded; three cells are
    killed, two are warned of a time limit, one is requeued by hand, one cannot take a step. In the end seven
    have the weights of uninterrupted runs.
    """
    rates = [f"{number}e-3" for number in range(1, 8)] + ["1e30"]
    overrides = [
        "method=dpo",
        "beta=0.1",
        f"training.learning_rate={','.join(rates)}",
        "training.max_steps=80",
        "training.save_steps=5",
    ]
    sweep = Sweep(here, *overrides, "training.warmup_steps=0", "hydra.launcher.array_parallelism=7")
    stub = here / "bin"
    stub.mkdir()
    real = shutil.which("sbatch")
    (stub / "sbatch").write_text(
        f'#!/bin/bash\n{real} "$@" || exit\n'
        f'[ "$(ls {here}/sweep/.submitit/*.sh | wc -l)" = 2 ] && kill -9 $PPID\nexit 0\n'
    )
    (stub / "sbatch").chmod(0o755)
    assert sweep.launch(path=str(stub)).returncode == -signal.SIGKILL
    assert [each.job_id is None for each in sweep.manifest.submissions] == [False, True]
    launched = sweep.launch()
    output = launched.stdout
    assert "left alone" in output and "not started yet" not in output, output + launched.stderr
    assert len(sweep.manifest.submissions) == 2

    name = {rate: cell.name for rate, cell in zip(rates, sweep.manifest.cells, strict=True)}
    jobs = {cell.name: cell.jobs[0] for cell in sweep.manifest.cells}
    killed = [name[rate] for rate in rates[:3]]
    warned = [name[rate] for rate in rates[3:5]]
    by_hand = name[rates[5]]
    sweep.wait_until(lambda: all(sweep.has_taken(cell, 3) for cell in [*warned, by_hand]))
    for cell in warned:  # scancel would signal the next attempt as well, where the job is being requeued
        os.kill(sweep.run(cell).state()["pid"], signal.SIGUSR2)
    requeue = subprocess.Popen(["scontrol", "requeue", jobs[by_hand]])
    for cell in killed:
        sweep.wait_until(lambda cell=cell: sweep.has_taken(cell, 6))
        os.kill(sweep.run(cell).state()["pid"], signal.SIGKILL)
    assert requeue.wait() == 0

    states = {cell: status.state for cell, status in sweep.wait().items()}
    assert {cell for cell, state in states.items() if state == "interrupted"} == set(killed)
    assert {cell for cell, state in states.items() if state == "failed"} == {name["1e30"]}
    launched = sweep.launch()
    assert (
        "4 finished, left alone" in launched.stdout
        and "3 interrupted" in launched.stdout
        and "1 failed" in launched.stdout
    )
    sweep.wait()
    assert "1 cells submitted" in sweep.sweep_command("retry")
    statuses = sweep.wait()

    reason = sweep.run(name["1e30"]).state()["error"]
    assert statuses[name["1e30"]].state == "failed" and "norm is nan" in reason, reason
    job = sweep.manifest.cell(name["1e30"]).jobs[-1]
    assert cluster.wait(job)[job].startswith("FAILED")
    whole = [cell for cell in states if cell != name["1e30"]]
    assert all(statuses[cell].state == "finished" for cell in whole)
    attempts = {cell: sweep.run(cell).state()["attempts"] for cell in whole}
    assert attempts == {cell: 2 if cell in {*killed, *warned, by_hand} else 1 for cell in whole}
    for cell in whole:
        assert [row["step"] for row in sweep.run(cell).metrics() if "loss" in row] == list(range(1, 81))
        assert sweep.log(cell).count("resuming from") == (attempts[cell] > 1)

    alone = Sweep(here, *overrides, "training.warmup_steps=0")
    local = alone.run_locally(f"training.learning_rate={','.join(rates[:-1])}")
    assert local.returncode == 0, local.stderr
    assert {cell: sweep.weights(cell) for cell in whole} == {cell: alone.weights(cell) for cell in whole}


def test_cells_of_two_processes_behind_a_canary(cluster, here):
    """Slurm starts a task, the lab its processes in it: for the prewarm job, the canary and the cells."""
    overrides = [
        "method=dpo",
        "beta=0.1,0.2",
        "training.max_steps=2",
        "parallel=ddp",
        "parallel.processes=2",
        "hydra.launcher.cpus_per_task=2",
    ]
    sweep = Sweep(here, *overrides)
    launched = sweep.launch("hydra.launcher.canary=true", "hydra.launcher.wait=true")
    assert launched.returncode == 0, launched.stderr
    assert [submission.kind for submission in sweep.manifest.submissions] == [
        "prewarm",
        "canary",
        "cells",
    ] and "2 cells: 2 finished" in launched.stdout
    for cell in sweep.manifest.cells:
        log = sweep.log(cell.name)
        assert "processes: 2, ddp" in log
        (line,) = [line for line in log.splitlines() if line.startswith("reference: ")]
        assert line.split()[1] == line.split()[3], line
    assert not (sweep.path / ".canary").exists() and not (sweep.path / ".prewarm").exists()


def test_a_time_limit_and_a_cancellation(cluster, here):
    """Slurm's own warning, 50 to 80 s ahead: checkpoint, requeued, finished with more time.

    A cancelled cell is not requeued.

    The cell is stopped until it is warned, so that the test does not depend on the machine's speed.
    """
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"{n} it is.", "rejected": f"Not {n}, I think, or is it?"}
        for n in range(40)
    ]
    (here / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sweep = Sweep(here, "method=dpo", "data=local", "data.path=rows.jsonl", "training.max_steps=60,4000")
    launched = sweep.launch(
        "hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=50", "hydra.launcher.max_attempts=20"
    )
    assert launched.returncode == 0, launched.stderr
    one, other = [cell.name for cell in sweep.manifest.cells]
    sweep.wait_until(lambda: sweep.has_taken(one, 3))
    process = sweep.run(one).state()["pid"]
    os.kill(process, signal.SIGSTOP)
    sweep.wait_until(lambda: sweep.has_taken(other, 3))
    assert "1 of 1 cells" in sweep.sweep_command("cancel", "1")
    sweep.wait_until(lambda: resume_if_warned(process) or "requeued" in sweep.log(one))
    sweep.wait_until(lambda: "requeued" in sweep.log(one))
    cluster.run("scontrol", "update", f"jobid={sweep.manifest.cell(one).jobs[0]}", "timelimit=30")
    statuses = sweep.wait()
    assert statuses[other].state == "interrupted" and "not requeued" in sweep.log(other)
    assert statuses[one].state == "finished" and sweep.run(one).state()["attempts"] > 1
    assert sweep.log(one).splitlines().count("requeued") == sweep.run(one).state()["attempts"] - 1
    assert "interrupted by SIGUSR2 at step" in sweep.log(one) and "resuming from" in sweep.log(one)
    assert "CANCELLED" in next(iter(cluster.states(sweep.manifest.cell(other).jobs[0]).values()))


def resume_if_warned(process: int) -> bool:
    """Continue a stopped process that was sent Slurm's warning.

    Some of Slurm's ways to send it continue it by themselves.
    """
    try:
        (line,) = re.findall(r"^ShdPnd:\t(\w+)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
        if warned := bool(int(line, 16) >> (signal.SIGUSR2 - 1) & 1):
            os.kill(process, signal.SIGCONT)
    except OSError:
        return True  # it was continued, and has exited
    return warned


def test_edits_change_no_cell_that_waits(cluster, here):
    """While cells wait, an option is edited and the code is broken: they run what was submitted."""
    lab = here / "lab"
    for part in ("alignment_lab", "conf"):
        shutil.copytree(ROOT / part, lab / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", lab)
    sweep = Sweep(here, "method=dpo", "training.seed=1,2", "training.max_steps=2", lab=lab)
    launched = sweep.launch("+hydra.launcher.additional_parameters.hold=true")
    assert launched.returncode == 0, launched.stderr
    option = lab / "conf/method/dpo.yaml"
    option.write_text(option.read_text() + "method: {beta: 0.7}\n")
    (lab / "alignment_lab/actions/train.py").write_text("raise RuntimeError('edited')\n")
    for submission in sweep.manifest.submissions:
        cluster.run("scontrol", "release", str(submission.job_id))
    assert {status.state for status in sweep.wait().values()} == {"finished"}
    for cell in sweep.manifest.cells:
        run = sweep.run(cell.name)
        assert run.spec()["method"]["beta"] == 0.1
        # the copy is no checkout, and says so on the node too
        assert json.loads(run.provenance_file.read_text())["git"] is None
