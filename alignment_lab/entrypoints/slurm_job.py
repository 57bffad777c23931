"""One task of a Slurm job array.  python -m alignment_lab.entrypoints.slurm_job SWEEP SUBMISSION

Runs what the submission's task file has for this index: a cell, one step of a cell, or what cells share. A
signal makes the run commit a checkpoint and stop; then the job is requeued, unless somebody cancelled it. A
failure that may be transient requeues it too.
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

from ..actions import run_action
from ..actions.train import read_spec
from ..checkpoints.manifest import step_of
from ..estimate.oom import OOM_PHRASES
from ..runtime.disk import disk_is_full
from ..runtime.errors import HungError, Interrupted, RunError, UserError, WorkerError, describe_error
from ..runtime.files import read_json, write_json
from ..runtime.output import keep_output_writable
from ..runtime.redaction import redact
from ..runtime.run_directory import RunDirectory
from ..runtime.signals import StopRequest
from ..sweep import manifest
from ..sweep.launchers import slurm_queue
from ..sweep.shared_work import SharedPass
from .prewarm import prewarm
from .process_exit import exit_now

WARNINGS = (Signals.SIGUSR1, Signals.SIGUSR2, Signals.SIGXCPU)  # that the time is nearly up
TaskFile = dict[str, Any]  # kind, tasks, max_attempts: see sweep.launchers.submit


def main() -> None:
    """Run this process's task.

    Each node of a cell has one such process; the one on the first node answers to Slurm.
    """
    keep_output_writable()
    sweep, submission_id = Path(sys.argv[1]), sys.argv[2]
    task_file: TaskFile = read_json(sweep / manifest.SUBMITIT_DIR / f"{submission_id}.json")
    kind, task = task_file["kind"], task_file["tasks"][int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))]
    start = int(os.environ.get("SLURM_RESTART_COUNT", 0)) + 1
    print(f"job {os.environ.get('SLURM_JOB_ID')} on {os.uname().nodename}, start {start}", flush=True)
    run = RunDirectory(sweep / (task if kind == "cells" else f".{kind}"))
    code = 1
    try:
        with StopRequest().listen():  # a signal before the run listens itself stops the process at once
            TASKS[kind](sweep, task)
        code = 0
    except Interrupted as reason:
        print(reason, file=sys.stderr, flush=True)
        code = reason.code
        if run.state().get("state") == "finished":
            code = 0
        elif is_first_node():
            handle_interruption(reason, RetryCounter(run, submission_id), task_file)
    except BaseException as error:
        code = handle_failure(error, RetryCounter(run, submission_id), task_file)
    exit_now(code)


def is_first_node() -> bool:
    """Whether this process is on the first node of its cell."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def job_id() -> str:
    """The number of this task alone, such as 7_3.

    SLURM_JOB_ID of an array's last task is the number of the array: requeueing that would requeue all of its
    tasks.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def run_cell(sweep: Path, name: str) -> None:
    """Run a cell by the spec.yaml of its folder."""
    run = RunDirectory(sweep / name)
    run_action(read_spec(run), run)


def run_canary(sweep: Path, name: str) -> None:
    """Run one step of a cell in a folder that is deleted afterwards."""
    spec = read_spec(RunDirectory(sweep / name))
    steps = replace(spec.training, max_steps=1, eval_steps=None)
    one_step = replace(spec, training=steps, eval=replace(spec.eval, after=[]))
    run = RunDirectory(sweep / ".canary")
    _record_outcome(sweep / ".canary.json", lambda: run_action(one_step, run))
    shutil.rmtree(run.path, ignore_errors=True)


def run_prewarm(sweep: Path, passes: list[dict[str, Any]]) -> None:
    """Compute what cells share, one pass after the other."""
    folder = sweep / ".prewarm"
    try:
        _record_outcome(sweep / ".prewarm.json", lambda: _run_passes(sweep, folder, passes))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_passes(sweep: Path, folder: Path, passes: list[dict[str, Any]]) -> None:
    console = Console(quiet=not is_first_node())
    for shared_pass in [SharedPass(**fields) for fields in passes]:
        spec = read_spec(RunDirectory(sweep / shared_pass.cell))
        console.print(f"for {shared_pass.cell} and cells like it:", highlight=False, soft_wrap=True)
        stop = StopRequest()
        with stop.listen():
            run = RunDirectory(folder / shared_pass.digest)
            prewarm(spec, run, console, stop, tokens_only=shared_pass.tokens_only)


TASKS: dict[str, Callable[[Path, Any], None]] = {  # by manifest.SubmissionKind
    "cells": run_cell,
    "canary": run_canary,
    "prewarm": run_prewarm,
}


def _record_outcome(file: Path, task: Callable[[], object]) -> None:
    """Run a task and write its state and error to `file`, which `sweep status` reads."""
    try:
        task()
    except BaseException as error:
        state = "interrupted" if isinstance(error, Interrupted) else "failed"
        write_json(file, {"state": state, "error": describe_error(error)})
        raise
    write_json(file, {"state": "finished"})


class RetryCounter:
    """How often this job has failed, and how often its time was up before a new step, within one submission.

    The counts lie in the run directory: a job that is requeued is a new process.
    """

    def __init__(self, run: RunDirectory, submission_id: str) -> None:
        self.run, self.file = run, run.path / ".job.json"
        self.counts: dict[str, Any] = {"submission": submission_id, "failures": 0, "idle": 0, "step": 0}
        stored = read_json(self.file) or {}
        if stored.get("submission") == submission_id:
            self.counts = stored

    def increment(self, name: str) -> int:
        """Add one to a count, store it and return it."""
        self.counts[name] += 1
        self.write()
        return int(self.counts[name])

    def count_idle_timeout(self) -> int:
        """How many times in a row the time was up without a new checkpoint, which resets the count."""
        step = max([step_of(path) for path in self.run.checkpoints.glob("checkpoint-*")], default=0)
        if step > self.counts["step"]:
            self.counts |= {"step": step, "idle": 0}
            self.write()
            return 0
        return self.increment("idle")

    def write(self) -> None:
        """Store the counts."""
        self.run.path.mkdir(parents=True, exist_ok=True)
        write_json(self.file, self.counts)


def handle_interruption(reason: Interrupted, retries: RetryCounter, task_file: TaskFile) -> None:
    """Requeue this job after a signal, unless it was cancelled or has no time for a single step."""
    if reason.signal is Signals.SIGINT or not slurm_queue.should_requeue(job_id()):
        print("not requeued: cancelled, or requeued already", file=sys.stderr, flush=True)
        return
    max_attempts = task_file["max_attempts"]
    timed_out = reason.signal in WARNINGS and task_file["kind"] == "cells"
    if timed_out and retries.count_idle_timeout() >= max_attempts:
        message = (
            f"{max_attempts} times its time was up before a step was taken and saved: "
            "raise hydra.launcher.timeout_min."
        )
        retries.run.fail(message)
        print(f"error: {message}", file=sys.stderr, flush=True)
        return
    requeue()


def requeue() -> None:
    """Ask Slurm to start this job again; Slurm ends this attempt."""
    command = ["scontrol", "requeue", job_id()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    outcome = "requeued" if process.returncode == 0 else f"not requeued: {process.stderr.strip()}"
    print(outcome, file=sys.stderr, flush=True)


def handle_failure(error: BaseException, retries: RetryCounter, task_file: TaskFile) -> int:
    """Print and record the error, and requeue the job where it may be transient; returns the exit code."""
    if not isinstance(error, UserError | RunError):
        traceback.print_exc()
    details = getattr(error, "details", "")
    print(redact(f"{details}error: {describe_error(error)}"), file=sys.stderr, flush=True)
    if is_first_node():
        recorded = retries.run.state().get("state") in ("failed", "interrupted")
        if task_file["kind"] == "cells" and not recorded:  # it failed before the run began
            retries.run.fail(describe_error(error))
        if is_transient(error) and retries.increment("failures") < task_file["max_attempts"]:
            requeue()
    return _exit_code(error)


def _exit_code(error: BaseException) -> int:
    code = 2 if isinstance(error, UserError) else getattr(error, "code", 1)
    return code if isinstance(code, int) and code else 1


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed: a process or a device was lost, or a file system did not answer.

    Not for a mistake of the user, a bug, a full disk or want of memory.
    """
    if isinstance(error, UserError) or any(phrase in str(error) for phrase in OOM_PHRASES):
        return False
    if isinstance(error, HungError | WorkerError):
        return True
    if isinstance(error, NotImplementedError | RecursionError) or disk_is_full(error):
        return False
    return isinstance(error, OSError | RuntimeError)


if __name__ == "__main__":
    main()
