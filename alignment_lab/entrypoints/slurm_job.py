"""The door of a Slurm job.  python -m alignment_lab.entrypoints.slurm_job SWEEP SUBMISSION

Does what the submission's file says for this number of the array: a cell, a step of one, or what cells share. A signal makes the run commit
a checkpoint and leave; then the job is queued again, unless somebody cancelled it. So it is after a failure that may go away by itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Any

from rich.console import Console

from ..actions import train
from ..checkpoints.manifest import step_of
from ..estimate.oom import OOM_PHRASES
from ..runtime.disk import disk_is_full
from ..runtime.errors import HungError, Interrupted, RunError, UserError, WorkerError, describe_error
from ..runtime.files import read_json, write_json
from ..runtime.redaction import redact
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest
from ..sweep import manifest
from ..sweep.launchers import slurm_queue
from ..sweep.shared_work import SharedPass
from .prewarm import prewarm


def main() -> None:
    """One task of a job: on each of a cell's machines there is one, and the first one answers to Slurm."""
    sweep, mark = Path(sys.argv[1]), sys.argv[2]
    order = read_json(sweep / manifest.ORDERS / f"{mark}.json")
    task = order["tasks"][int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))]
    print(
        f"job {os.environ.get('SLURM_JOB_ID')} on {os.uname().nodename}, start {int(os.environ.get('SLURM_RESTART_COUNT', 0)) + 1}",
        flush=True,
    )
    doings: dict[str, Callable[[Path, Any], None]] = {"cells": cell, "canary": canary, "share": shared}
    subject = RunDirectory(sweep / (task if order["kind"] == "cells" else f".{order['kind']}"))
    code = 1
    try:
        with StopRequest().listen():  # before the run listens, there is nothing to lose
            doings[order["kind"]](sweep, task)
        code = 0
    except Interrupted as reason:
        print(reason, file=sys.stderr, flush=True)
        code = reason.code
        if _finished(subject):
            code = 0
        elif first():
            interrupted(reason, Attempts(subject, mark), order)
    except BaseException as error:
        code = failed(error, Attempts(subject, mark), order)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: threads of libraries that nobody joined would keep it


def first() -> bool:
    """Whether this task is on the first of the cell's machines."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def number() -> str:
    """This job alone: the last one of an array bears the array's number in SLURM_JOB_ID, and by that all of them would be queued again."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def cell(sweep: Path, name: str) -> None:
    """Run a cell, as it was frozen."""
    found = RunDirectory(sweep / name)
    train.execute(train.read_spec(found), found)


def canary(sweep: Path, name: str) -> None:
    """One step of a cell, in a folder that does not stay."""
    spec = train.read_spec(RunDirectory(sweep / name))
    short = replace(spec.training, max_steps=1, eval_steps=None)
    folder = RunDirectory(sweep / ".canary")
    _remembered(sweep / ".canary.json", lambda: train.execute(replace(spec, training=short), folder))
    shutil.rmtree(folder.path, ignore_errors=True)


def shared(sweep: Path, passes: list[dict[str, Any]]) -> None:
    """Make what cells share, one thing after the other."""
    console = Console(quiet=not first())

    def make() -> None:
        for one in [SharedPass(**facts) for facts in passes]:
            spec = train.read_spec(RunDirectory(sweep / one.cell))
            console.print(f"for {one.cell} and what is like it:", highlight=False, soft_wrap=True)
            folder = RunDirectory(sweep / ".share" / one.digest)
            stop = StopRequest()
            with stop.listen():
                prewarm(spec, folder, console, stop, tokens_only=one.tokens_only)

    try:
        _remembered(sweep / ".share.json", make)
    finally:
        shutil.rmtree(sweep / ".share", ignore_errors=True)


def _remembered(file: Path, do: Callable[[], object]) -> None:
    """Leave what became of it for `sweep status`."""
    try:
        do()
    except BaseException as error:
        write_json(
            file,
            {
                "state": "interrupted" if isinstance(error, Interrupted) else "failed",
                "error": describe_error(error),
            },
        )
        raise
    write_json(file, {"state": "finished"})


def _finished(subject: RunDirectory) -> bool:
    return subject.state().get("state") == "finished"


class Attempts:
    """How often this job has failed, and been out of time without a step: of this submission alone."""

    def __init__(self, subject: RunDirectory, mark: str) -> None:
        self.subject, self.file = subject, subject.path / ".job.json"
        known = read_json(self.file) or {}
        self.facts: dict[str, Any] = (
            known
            if known.get("submission") == mark
            else {"submission": mark, "failures": 0, "idle": 0, "step": 0}
        )

    def count(self, what: str) -> int:
        """One more; how many that makes."""
        self.facts[what] += 1
        self.write()
        return int(self.facts[what])

    def idle(self) -> int:
        """How many times in a row its time was up without a step more; a new step sets it back."""
        step = max([step_of(path) for path in self.subject.checkpoints.glob("checkpoint-*")], default=0)
        if step > self.facts["step"]:
            self.facts |= {"step": step, "idle": 0}
            self.write()
            return 0
        return self.count("idle")

    def write(self) -> None:
        """Keep it for the next start."""
        self.subject.path.mkdir(parents=True, exist_ok=True)
        write_json(self.file, self.facts)


def interrupted(reason: Interrupted, attempts: Attempts, order: dict[str, Any]) -> None:
    """Queue this job again after a signal, unless somebody ends it."""
    if reason.signal is Signals.SIGINT or not slurm_queue.should_requeue(number()):
        print("not queued again by itself: cancelled, or queued again already", file=sys.stderr, flush=True)
        return
    if (
        reason.signal is Signals.SIGUSR2
        and order["kind"] == "cells"
        and attempts.idle() >= order["max_attempts"]
    ):
        said = f"{order['max_attempts']} times its time was up before a step was taken and saved: raise hydra.launcher.timeout_min."
        attempts.subject.fail(said)
        print(f"error: {said}", file=sys.stderr, flush=True)
        return
    requeue()


def requeue() -> None:
    """Ask Slurm to start this job again; it ends this attempt."""
    done = subprocess.run(["scontrol", "requeue", number()], capture_output=True, text=True, timeout=120)
    print(
        "queued again" if done.returncode == 0 else f"not queued again: {done.stderr.strip()}",
        file=sys.stderr,
        flush=True,
    )


def failed(error: BaseException, attempts: Attempts, order: dict[str, Any]) -> int:
    """Say why, leave it in run.json, and queue the job again where it may go away by itself. Gives the exit code."""
    if not isinstance(error, UserError | RunError):
        traceback.print_exc()
    print(
        redact(f"{getattr(error, 'details', '')}error: {describe_error(error)}"), file=sys.stderr, flush=True
    )
    code = 2 if isinstance(error, UserError) else getattr(error, "code", 1)
    code = code if isinstance(code, int) and code else 1
    if not first():
        return code
    if order["kind"] == "cells" and attempts.subject.state().get("state") not in ("failed", "interrupted"):
        attempts.subject.fail(describe_error(error))  # it failed before the run could say so
    if may_pass(error) and attempts.count("failures") < order["max_attempts"]:
        requeue()
    return code


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may go well: a process or a device was lost, a file system did not answer. No mistake, nor want of memory."""
    if isinstance(error, UserError) or any(word in str(error) for word in OOM_PHRASES):
        return False
    if isinstance(error, HungError | WorkerError):
        return True
    if isinstance(error, NotImplementedError | RecursionError) or disk_is_full(error):
        return False
    return isinstance(error, OSError | RuntimeError)


if __name__ == "__main__":
    main()
