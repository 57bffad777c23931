"""Sweeps on a real Slurm: submitted and left, shared work once, faults of every kind, frozen code."""

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
    """The command returns within 20 s; the reference is asked once, before any cell starts; the same command then does nothing."""
    sweep = Sweep(here, "method=dpo,kto,ipo", "beta=0.01,0.1", "training.max_steps=2")
    began = time.monotonic()
    given = sweep.give()
    seconds = time.monotonic() - began
    assert given.returncode == 0, given.stderr
    print(f"the command returned after {seconds:.1f} s")
    assert seconds < 20 and "6 new" in given.stdout
    assert "6 queued" in sweep.ask("status")
    assert {one.state for one in sweep.ended().values()} == {"finished"}
    names = [cell.name for cell in sweep.known.cells]
    for name in names:
        (line,) = [line for line in sweep.log(name).splitlines() if line.startswith("reference: ")]
        words = line.split()
        assert words[1] == words[3], line  # N of N answers were there
    again = sweep.give()
    assert "6 finished, left alone" in again.stdout and len(sweep.known.submissions) == 2
    assert {sweep.run(name).state()["attempts"] for name in names} == {1}
    assert "6 finished" in sweep.ask("collect") and (sweep.path / "report.html").exists()
    assert "training 2/2" in sweep.ask("logs", "0")


def test_a_sweep_under_faults(cluster, here):
    """Eight cells. The submitting process is killed when Slurm has the array and before it says so; three cells are killed, two asked to
    leave as before a time limit, one queued again by hand, one can take no step. In the end seven are what they are undisturbed.
    """
    rates = [f"{place}e-3" for place in range(1, 8)] + ["1e30"]
    words = [
        "method=dpo",
        "beta=0.1",
        f"training.learning_rate={','.join(rates)}",
        "training.max_steps=80",
        "training.save_steps=5",
    ]
    sweep = Sweep(here, *words, "training.warmup_steps=0", "hydra.launcher.array_parallelism=7")
    stub = here / "bin"
    stub.mkdir()
    real = shutil.which("sbatch")
    (stub / "sbatch").write_text(
        f'#!/bin/bash\n{real} "$@" || exit\n[ "$(ls {here}/sweep/.submitit/*.sh | wc -l)" = 2 ] && kill -9 $PPID\nexit 0\n'
    )
    (stub / "sbatch").chmod(0o755)
    assert sweep.give(path=str(stub)).returncode == -signal.SIGKILL
    assert [one.job is None for one in sweep.known.submissions] == [False, True]
    given = sweep.give()
    assert "left alone" in given.stdout and "new" not in given.stdout, given.stdout + given.stderr
    assert len(sweep.known.submissions) == 2

    name = {rate: cell.name for rate, cell in zip(rates, sweep.known.cells, strict=True)}
    jobs = {cell.name: cell.jobs[0] for cell in sweep.known.cells}
    killed, asked, by_hand = (
        [name[rate] for rate in rates[:3]],
        [name[rate] for rate in rates[3:5]],
        name[rates[5]],
    )
    sweep.until(lambda: all(sweep.stepping(one, 3) for one in [*asked, by_hand]))
    for one in asked:  # scancel would send it to the next attempt as well, where the job is on its way
        os.kill(sweep.run(one).state()["pid"], signal.SIGUSR2)
    told = subprocess.Popen(["scontrol", "requeue", jobs[by_hand]])
    for one in killed:
        sweep.until(lambda one=one: sweep.stepping(one, 6))
        os.kill(sweep.run(one).state()["pid"], signal.SIGKILL)
    assert told.wait() == 0

    states = {one: standing.state for one, standing in sweep.ended().items()}
    assert {one for one, state in states.items() if state == "interrupted"} == set(killed)
    assert {one for one, state in states.items() if state == "failed"} == {name["1e30"]}
    given = sweep.give()
    assert (
        "4 finished, left alone" in given.stdout
        and "3 cut off" in given.stdout
        and "1 failed" in given.stdout
    )
    sweep.ended()
    assert "1 cells submitted" in sweep.ask("retry")
    found = sweep.ended()

    reason = sweep.run(name["1e30"]).state()["error"]
    assert found[name["1e30"]].state == "failed" and "norm is nan" in reason, reason
    job = sweep.known.cell(name["1e30"]).jobs[-1]
    assert cluster.ended(job)[job].startswith("FAILED")
    whole = [one for one in states if one != name["1e30"]]
    assert all(found[one].state == "finished" for one in whole)
    attempts = {one: sweep.run(one).state()["attempts"] for one in whole}
    assert attempts == {one: 2 if one in {*killed, *asked, by_hand} else 1 for one in whole}
    for one in whole:
        assert [row["step"] for row in sweep.run(one).metrics() if "loss" in row] == list(range(1, 81))
        assert sweep.log(one).count("resuming from") == (attempts[one] > 1)

    alone = Sweep(here, *words, "training.warmup_steps=0")
    undisturbed = alone.here(f"training.learning_rate={','.join(rates[:-1])}")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert {one: sweep.weights(one) for one in whole} == {one: alone.weights(one) for one in whole}


def test_cells_of_two_processes_behind_a_canary(cluster, here):
    """Slurm starts a task, the lab its processes inside: for what is shared, for one step of a cell, for the cells; the command waits."""
    words = [
        "method=dpo",
        "beta=0.1,0.2",
        "training.max_steps=2",
        "parallel=ddp",
        "parallel.processes=2",
        "hydra.launcher.cpus_per_task=2",
    ]
    sweep = Sweep(here, *words)
    given = sweep.give("hydra.launcher.canary=true", "hydra.launcher.wait=true")
    assert given.returncode == 0, given.stderr
    assert [one.kind for one in sweep.known.submissions] == [
        "share",
        "canary",
        "cells",
    ] and "2 cells: 2 finished" in given.stdout
    for cell in sweep.known.cells:
        said = sweep.log(cell.name)
        assert "processes: 2, ddp" in said
        (line,) = [line for line in said.splitlines() if line.startswith("reference: ")]
        assert line.split()[1] == line.split()[3], line
    assert not (sweep.path / ".canary").exists() and not (sweep.path / ".share").exists()


def test_a_time_limit_and_a_cancellation(cluster, here):
    """Slurm's own warning, 50 to 80 s ahead: checkpoint, queued again, done once there is time. Who cancels is obeyed.

    The cell stands still until it is warned, so that the machine may be as fast as it likes.
    """
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"{n} it is.", "rejected": f"Not {n}, I think, or is it?"}
        for n in range(40)
    ]
    (here / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    sweep = Sweep(here, "method=dpo", "data=local", "data.path=rows.jsonl", "training.max_steps=60,4000")
    given = sweep.give(
        "hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=50", "hydra.launcher.max_attempts=20"
    )
    assert given.returncode == 0, given.stderr
    one, other = [cell.name for cell in sweep.known.cells]
    sweep.until(lambda: sweep.stepping(one, 3))
    process = sweep.run(one).state()["pid"]
    os.kill(process, signal.SIGSTOP)
    sweep.until(lambda: sweep.stepping(other, 3))
    assert "1 of 1 cells" in sweep.ask("cancel", "1")
    sweep.until(lambda: woken(process) or "queued again" in sweep.log(one))
    sweep.until(lambda: "queued again" in sweep.log(one))
    cluster.run("scontrol", "update", f"jobid={sweep.known.cell(one).jobs[0]}", "timelimit=30")
    found = sweep.ended()
    assert found[other].state == "interrupted" and "not queued again" in sweep.log(other)
    assert found[one].state == "finished" and sweep.run(one).state()["attempts"] > 1
    assert sweep.log(one).splitlines().count("queued again") == sweep.run(one).state()["attempts"] - 1
    assert "interrupted by SIGUSR2 at step" in sweep.log(one) and "resuming from" in sweep.log(one)
    assert "CANCELLED" in next(iter(cluster.states(sweep.known.cell(other).jobs[0]).values()))


def woken(process: int) -> bool:
    """Let a process go on that stands still and was sent Slurm's warning. Some of Slurm's ways to send it wake it by themselves."""
    try:
        (line,) = re.findall(r"^ShdPnd:\t(\w+)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
        if warned := bool(int(line, 16) >> (signal.SIGUSR2 - 1) & 1):
            os.kill(process, signal.SIGCONT)
    except OSError:
        return True  # it was woken, and has left
    return warned


def test_edits_change_no_cell_that_waits(cluster, here):
    """A copy of the lab; while a cell waits, an option is edited and the code is broken: it runs as it was."""
    lab = here / "lab"
    for part in ("alignment_lab", "conf"):
        shutil.copytree(ROOT / part, lab / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", lab)
    sweep = Sweep(here, "method=dpo", "training.seed=1,2", "training.max_steps=2", lab=lab)
    given = sweep.give("+hydra.launcher.additional_parameters.hold=true")
    assert given.returncode == 0, given.stderr
    option = lab / "conf/method/dpo.yaml"
    option.write_text(option.read_text().replace("beta: 0.1", "beta: 0.7"))
    assert "0.7" in option.read_text()
    (lab / "alignment_lab/run.py").write_text("raise RuntimeError('edited')\n")
    for one in sweep.known.submissions:
        cluster.run("scontrol", "release", str(one.job))
    assert {standing.state for standing in sweep.ended().values()} == {"finished"}
    for cell in sweep.known.cells:
        run = sweep.run(cell.name)
        assert run.spec()["method"]["beta"] == 0.1
        assert (
            json.loads(run.provenance_file.read_text())["git"] is None
        )  # the copy is no checkout, and says so on the node too
