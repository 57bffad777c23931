"""Runs an experiment in a child process, injects a fault, and reports what became of the run.

The child is forked from a process that has imported everything, so that an attempt costs what training costs.
It calls what `train.py` calls.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hydra import initialize_config_dir

from alignment_lab.actions import run_action
from alignment_lab.actions.train import prepare_libraries
from alignment_lab.checkpoints import manifest
from alignment_lab.config import (
    Experiment,
    compose,
)
from alignment_lab.runtime.run_directory import RunDirectory

TINY = [
    "model=tiny",
    "parallel.device=cpu",
    "training.global_batch=4",
    "training.micro_tokens=300",
    "training.learning_rate=1e-3",
]
STEPS = [
    "training.max_steps=6",
    "training.save_steps=2",
    "eval.rows=4",
    "eval.generations=2",
    "eval.max_new_tokens=4",
]
# audit events of the interpreter
FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
IMPORTED = (  # by a run, some when they are needed
    *("alignment_lab.methods", "alignment_lab.training", "alignment_lab.training.saving"),
    *("alignment_lab.actions.assembly", "alignment_lab.models.loading", "alignment_lab.models.adapters"),
    *("alignment_lab.checkpoints.verify", "alignment_lab.engine.generation"),
    *("alignment_lab.report.render.run_page", "alignment_lab.tracking.tensorboard_run"),
    *("matplotlib.figure", "matplotlib.backends.backend_svg", "torch.utils.tensorboard"),
    "transformers.models.llama.modeling_llama",
    "deepspeed",  # by accelerate, when a model is saved
)
LOGS = Path(tempfile.mkdtemp(prefix="alignment_lab_faults_logs_"))
atexit.register(shutil.rmtree, LOGS, ignore_errors=True)
SHOWN_LINES = 6  # of a failed attempt's output

Prepare = Callable[[], None]  # called in the child before the run starts
# called in the parent with the child's pid and a pipe on which the child reports that it reached a point
Disturb = Callable[[int, int], None]


def experiment(*overrides: str) -> Experiment:
    """The experiment that `python train.py` would run with these overrides."""
    compose.register_with_hydra()
    with initialize_config_dir(str(compose.CONF), version_base="1.3"):
        return compose.compose_experiment(list(overrides))


def import_everything() -> None:
    """Import what a run imports, once for all children."""
    prepare_libraries()
    for name in IMPORTED:
        importlib.import_module(name)


def verify_in_children() -> None:
    """Let a child load what it saved by itself. That a fresh process can is in test_verify.py."""
    sys.path.insert(0, str(ROOT / "tests"))
    import pytest
    from small_saves import verify_in_this_process

    verify_in_this_process(pytest.MonkeyPatch())


def attempt(
    spec: Experiment,
    folder: Path,
    *,
    before: Prepare = lambda: None,
    disturb: Disturb = lambda pid, pipe: None,
) -> int:
    """Run the experiment in `folder` once; returns the exit code, or minus the signal that ended it."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _child(spec, folder, before, write_end)
    os.close(write_end)
    disturb(pid, read_end)
    _, status = os.waitpid(pid, 0)
    os.close(read_end)
    return os.waitstatus_to_exitcode(status)


def _child(spec: Experiment, folder: Path, before: Prepare, write_end: int) -> None:
    code = 70
    try:
        output = os.open(_log(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["FAULTS_PIPE"] = str(write_end)
        before()
        with compose.errors_as_sentences():
            run_action(spec, RunDirectory(folder))
        code = 0
    except SystemExit as exit:
        code = int(exit.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _log(folder: Path) -> Path:
    """Outside of the run directory, whose disk may be full."""
    return LOGS / f"{str(folder).replace('/', '_')}.log"


def last_output(folder: Path) -> str:
    """The last lines of the last attempt."""
    return "\n".join(_log(folder).read_text().splitlines()[-SHOWN_LINES:])


def digest(run: RunDirectory) -> str:
    """SHA-256 of the final weights and of the last checkpoint: weights, optimizer, schedule, random state."""
    last = manifest.list_checkpoints(run.checkpoints)[-1]
    hasher = hashlib.sha256()
    for file in [
        *sorted(run.model.glob("*.safetensors")),
        *sorted(last.glob("*.safetensors")),
        last / "rng_state_0.pth",
    ]:
        hasher.update(file.name.encode() + file.read_bytes())
    state = json.loads((last / "trainer_state.json").read_text())
    hasher.update(
        json.dumps([state["optimizer"], state["scheduler"], state["objective"]], sort_keys=True).encode()
    )
    return hasher.hexdigest()


# Points of a save.


def is_save_event(path: Any) -> bool:
    """Whether the file event is part of writing, renaming or deleting a checkpoint."""
    return isinstance(path, str | os.PathLike) and (
        "/.partial/checkpoint-" in os.fspath(path) or "/checkpoints" in os.fspath(path)
    )


def run_at_event(index: int, action: Callable[[], object]) -> None:
    """Call `action` at the `index`-th file event (from 1) of this process's saves."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in FILE_EVENTS and arguments and is_save_event(arguments[0]):
            seen += 1
            if seen == index:
                action()

    sys.addaudithook(hook)


def notify_at(index: int) -> Prepare:
    """Notify the parent when the child is at the `index`-th file event of its saves, and wait a moment."""

    def notify_parent() -> None:
        os.write(int(os.environ["FAULTS_PIPE"]), b"x")
        time.sleep(0.002)

    return lambda: run_at_event(index, notify_parent)


def list_save_events(spec: Experiment, folder: Path) -> list[str]:
    """Every file event of the saves of a run without faults, by name, in order."""
    events_file = folder.with_suffix(".events")

    def before() -> None:
        file = os.open(events_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in FILE_EVENTS and arguments and is_save_event(arguments[0]):
                os.write(file, f"{event} {Path(os.fspath(arguments[0])).name}\n".encode())

        sys.addaudithook(hook)

    assert attempt(spec, folder, before=before) == 0, last_output(folder)
    return events_file.read_text().splitlines()


def send_after(seconds: float, number: signal.Signals) -> Disturb:
    """Send a signal some time after the start."""

    def disturb(pid: int, pipe: int) -> None:
        time.sleep(seconds)
        send_signal(pid, number)

    return disturb


def send_when_notified(number: signal.Signals, delay: float) -> Disturb:
    """Send a signal `delay` seconds after the child has reached its event; none if it never does."""

    def disturb(pid: int, pipe: int) -> None:
        if os.read(pipe, 1):
            time.sleep(delay)
            send_signal(pid, number)

    return disturb


def send_signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# Results.


@dataclass
class Row:
    """A line of the table: one kind of fault."""

    fault: str
    tried: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)

    def count(self, survived: bool, description: str) -> None:
        """Count one more fault; the description is kept where the run was lost."""
        self.tried += 1
        self.survived += survived
        if not survived:
            self.lost.append(description)


def table(rows: Iterable[Row]) -> int:
    """Print the faults tried, survived and lost; returns how many were lost."""
    from rich.console import Console
    from rich.table import Table

    rows = list(rows)
    console_table = Table("fault", "tried", "survived", "lost")
    for row in rows:
        console_table.add_row(row.fault, str(row.tried), str(row.survived), str(len(row.lost)))
    Console().print(console_table)
    return sum(len(row.lost) for row in rows)


def remove_run(folder: Path) -> None:
    """Delete a run directory."""
    shutil.rmtree(folder, ignore_errors=True)


def seeded_random(seed: int) -> random.Random:
    """The random numbers of a campaign: the same seed gives the same faults."""
    return random.Random(seed)
