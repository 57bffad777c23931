"""Runs an experiment in a process of its own, does something bad to it, and says what became of it.

A child is forked from a process that has imported everything, so that an attempt costs what training costs.
It calls what `train.py` calls.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
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
FILE_EVENTS = {
    "open",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "shutil.rmtree",
}  # what the interpreter tells of
LOGS = Path(tempfile.mkdtemp(prefix="alignment_lab_faults_logs_"))
atexit.register(shutil.rmtree, LOGS, ignore_errors=True)
SENTENCES = 6  # of an attempt's output that are shown when it was lost

Prepare = Callable[[], None]  # done in the child before it starts
Disturb = Callable[
    [int, int], None
]  # (pid, a pipe on which the child tells of a point that it has reached), done by the parent


def experiment(*overrides: str) -> Experiment:
    """The experiment that `python train.py` would run with these."""
    compose.register_with_hydra()
    with initialize_config_dir(str(compose.CONF), version_base="1.3"):
        return compose.compose_experiment(list(overrides))


def warm() -> None:
    """Import what a run imports, once for all children."""
    prepare_libraries()

    import alignment_lab.methods
    import alignment_lab.report.render.run_page
    import alignment_lab.training  # noqa: F401


def attempt(
    spec: Experiment,
    folder: Path,
    *,
    before: Prepare = lambda: None,
    disturb: Disturb = lambda pid, pipe: None,
) -> int:
    """One go at the run in `folder`: its exit code, or minus the signal that ended it."""
    told, tells = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        _child(spec, folder, before, tells)
    os.close(tells)
    disturb(pid, told)
    _, status = os.waitpid(pid, 0)
    os.close(told)
    return os.waitstatus_to_exitcode(status)


def _child(spec: Experiment, folder: Path, before: Prepare, tells: int) -> None:
    code = 70
    try:
        output = os.open(_log(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["FAULTS_PIPE"] = str(tells)
        before()
        with compose.errors_as_sentences():
            run_action(spec, RunDirectory(folder))
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _log(folder: Path) -> Path:
    """Not beside the run: that disk may be full."""
    return LOGS / f"{str(folder).replace('/', '_')}.log"


def said(folder: Path) -> str:
    """The last lines of the last attempt."""
    return "\n".join(_log(folder).read_text().splitlines()[-SENTENCES:])


def digest(run: RunDirectory) -> str:
    """Of all that training came to: the final weights, and the optimizer's state and schedule in the last
    checkpoint.
    """
    last = manifest.list_checkpoints(run.checkpoints)[-1]
    found = hashlib.sha256()
    for file in [
        *sorted(run.model.glob("*.safetensors")),
        *sorted(last.glob("*.safetensors")),
        last / "rng_state_0.pth",
    ]:
        found.update(file.name.encode() + file.read_bytes())
    kept = json.loads((last / "trainer_state.json").read_text())
    found.update(
        json.dumps([kept["optimizer"], kept["scheduler"], kept["objective"]], sort_keys=True).encode()
    )
    return found.hexdigest()


# Points of a save.


def in_a_save(path: Any) -> bool:
    """Whether this file event belongs to the making, naming or dropping of a checkpoint."""
    return isinstance(path, str | os.PathLike) and (
        "/.partial/checkpoint-" in os.fspath(path) or "/checkpoints" in os.fspath(path)
    )


def at_event(number: int, do: Callable[[], object]) -> None:
    """Do something at the `number`-th file event of this process's saves."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in FILE_EVENTS and arguments and in_a_save(arguments[0]):
            seen += 1
            if seen == number:
                do()

    sys.addaudithook(hook)


def tell_at(number: int) -> Prepare:
    """Tell the parent when the child is at the `number`-th file event of its saves, and wait a moment
    there.
    """

    def tell() -> None:
        os.write(int(os.environ["FAULTS_PIPE"]), b"x")
        time.sleep(0.002)

    return lambda: at_event(number, tell)


def events(spec: Experiment, folder: Path) -> list[str]:
    """Every file event of the saves of an undisturbed run, by name, in order."""
    listed = folder.with_suffix(".events")

    def before() -> None:
        file = os.open(listed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in FILE_EVENTS and arguments and in_a_save(arguments[0]):
                os.write(file, f"{event} {Path(os.fspath(arguments[0])).name}\n".encode())

        sys.addaudithook(hook)

    assert attempt(spec, folder, before=before) == 0, said(folder)
    return listed.read_text().splitlines()


def send_after(seconds: float, number: signal.Signals) -> Disturb:
    """Send a signal some time after the start."""

    def disturb(pid: int, pipe: int) -> None:
        time.sleep(seconds)
        _send(pid, number)

    return disturb


def send_when_told(number: signal.Signals, delay: float) -> Disturb:
    """Send a signal `delay` seconds after the child has reached its point; none if it never does."""

    def disturb(pid: int, pipe: int) -> None:
        if os.read(pipe, 1):
            time.sleep(delay)
            _send(pid, number)

    return disturb


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# What came of it.


@dataclass
class Row:
    """A line of the table."""

    fault: str
    tried: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)

    def count(self, good: bool, what: str) -> None:
        """One more."""
        self.tried += 1
        self.survived += good
        if not good:
            self.lost.append(what)


def table(rows: Iterable[Row]) -> int:
    """Print faults tried, survived, lost; returns how many were lost."""
    from rich.console import Console
    from rich.table import Table

    rows = list(rows)
    drawn = Table("fault", "tried", "survived", "lost")
    for row in rows:
        drawn.add_row(row.fault, str(row.tried), str(row.survived), str(len(row.lost)))
    Console().print(drawn)
    return sum(len(row.lost) for row in rows)


def clean(folder: Path) -> None:
    """Forget a run."""
    shutil.rmtree(folder, ignore_errors=True)


def chances(seed: int) -> random.Random:
    """The dice of a campaign: the same seed, the same faults."""
    return random.Random(seed)
