"""How a run ends that somebody ends: by a signal in each phase. And what does not end it, such as a reader
that goes away.
"""

from __future__ import annotations

import multiprocessing
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from signal import Signals
from typing import Any

import pytest
from rich.console import Console

from alignment_lab.actions import run_action, train, training_process
from alignment_lab.config import Parallel, Sharding
from alignment_lab.distributed import launch
from alignment_lab.runtime import output, watchdog
from alignment_lab.runtime.errors import Interrupted
from alignment_lab.runtime.files import file_digest, read_json
from alignment_lab.runtime.progress import ProgressBar
from alignment_lab.runtime.run_directory import RunDirectory
from alignment_lab.runtime.signals import HANDLED_SIGNALS, IGNORED_ON_REQUEST, StopRequest
from alignment_lab.training import saving
from alignment_lab.training.workers import worker_options

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
TINY = [
    "model=tiny",
    "parallel.device=cpu",
    "training.max_steps=3",
    "training.global_batch=4",
    "training.learning_rate=1e-3",
    "eval.rows=4",
    "eval.generations=1",
    "eval.max_new_tokens=4",
    "tracking=local",
]


def weights(run: RunDirectory) -> str:
    return file_digest(next(run.model.glob("*model.safetensors")))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, composed) -> tuple[Any, RunDirectory]:
    """An experiment and its run."""
    spec, run = composed(TINY), RunDirectory(tmp_path_factory.mktemp("ends") / "run")
    run_action(spec, run)
    return spec, run


@pytest.fixture(autouse=True)
def heeded():
    """Signals have their usual effect, also where a shell in the background, or nohup, started the tests."""
    ignored = [number for number in HANDLED_SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def send_at(monkeypatch) -> Callable[..., None]:
    """`send_at(module, "name", number)`: this process gets the signal once, when the function is called."""

    def patch(owner: Any, name: str, number: Signals) -> None:
        call = getattr(owner, name)

        def send_and_call(*args: Any, **keywords: Any) -> Any:
            monkeypatch.setattr(owner, name, call)
            os.kill(os.getpid(), number)
            return call(*args, **keywords)

        monkeypatch.setattr(owner, name, send_and_call)

    return patch


def test_a_signal_in_any_phase_loses_nothing(undisturbed, send_at, tmp_path):
    """One run, interrupted in each phase before the save in turn: each time the state says so, and the steps
    that were taken are kept. It ends in the bits of the undisturbed one.
    """
    from alignment_lab.actions import assembly, tokenized
    from alignment_lab.methods.preference import PreferenceObjective
    from alignment_lab.training import loop
    from alignment_lab.training.heldout import HeldoutScorer

    spec, whole = undisturbed
    run = RunDirectory(tmp_path / "run")
    phases = [  # where, the function, and the steps that are kept
        (train.data, "load_rows", 0),
        (tokenized, "tokenize", 0),
        (assembly, "create_accelerator", 0),
        (PreferenceObjective, "reference_columns", 0),
        (HeldoutScorer, "scores", 0),
        (loop.Trainer, "train_step", 1),
        (loop, "save_state", 2),
        (loop.Trainer, "train_step", 3),
    ]
    for (owner, name, steps), number in zip(phases, HANDLED_SIGNALS * 2, strict=False):
        if name == "save_state":  # it comes in the save that another signal asked for
            send_at(loop.Trainer, "train_step", Signals.SIGTERM)
        send_at(owner, name, number)
        with pytest.raises(Interrupted) as reason:
            run_action(spec, run)
        expected = Signals.SIGTERM if name == "save_state" else number
        assert reason.value.code == 128 + expected, name
        assert run.state()["state"] == "interrupted" and expected.name in run.state()["error"], name
        assert len([row for row in run.metrics() if "loss" in row]) == steps, name
        assert not steps or (run.checkpoints / f"checkpoint-{steps}").exists(), name
    run_action(spec, run)
    assert weights(run) == weights(whole)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(saving, "_save_and_prove"), (training_process, "report"), (train, "conclude_tracking")],
)
def test_a_signal_after_the_last_step_lets_the_run_finish(owner, name, undisturbed, send_at, tmp_path):
    """While the model is saved and published, and when its page is written."""
    spec, whole = undisturbed
    run = RunDirectory(tmp_path / "run")
    number = Signals.SIGHUP
    send_at(owner, name, number)
    with pytest.raises(Interrupted, match="this run is finished") as reason:
        run_action(spec, run)
    assert reason.value.code == 128 + number and run.state()["state"] == "finished"
    assert weights(run) == weights(whole) and run.page_file.exists()
    run.page_file.unlink()  # as after SIGKILL
    assert run_action(spec, run) == run_action(spec, whole)
    assert run.page_file.exists()


@pytest.mark.slow
def test_a_proof_that_signals_end_is_repeated_and_then_put_off(composed, monkeypatch, tmp_path):
    """A signal to every process of a job is no bad save. Where the proof cannot be made, the last step's
    checkpoint is there before the run ends.
    """
    from alignment_lab.checkpoints.verify import fresh_process

    spec, run, starts = composed([*TINY, "parallel=lora"]), RunDirectory(tmp_path / "run"), []
    start = subprocess.run

    def start_and_kill(command: Any, **options: Any) -> Any:
        if fresh_process.START not in command:
            return start(command, **options)
        starts.append(options["start_new_session"])
        return start([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"], **options)

    monkeypatch.setattr(fresh_process.subprocess, "run", start_and_kill)
    with pytest.raises(Interrupted, match="resumes from checkpoint-3"):
        run_action(spec, run)
    assert starts == [True] * fresh_process.ATTEMPTS
    assert run.state()["state"] == "interrupted" and not run.model.exists()
    monkeypatch.undo()
    run_action(spec, run)
    assert run.state()["state"] == "finished" and weights(run)


@pytest.mark.parametrize("number", HANDLED_SIGNALS)
def test_what_the_command_was_started_to_ignore_stays_ignored(number):
    """By nohup and setsid: SIGHUP and SIGQUIT. A shell ignores SIGINT for every job in its background."""
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest().listen() as stop:
            ignored = signal.getsignal(number) is signal.SIG_IGN
            stop.deferred = True
            os.kill(os.getpid(), number)
        assert ignored == (number in IGNORED_ON_REQUEST) == (stop.signal is None)
    finally:
        signal.signal(number, previous)


def test_workers_of_the_loader_outlive_a_signal_to_the_group():
    from torch.utils.data import DataLoader

    batches = iter(DataLoader(range(8), **worker_options(2)))
    first = [int(next(batches)) for _ in range(2)]  # one of each worker
    for worker in multiprocessing.active_children():
        for number in HANDLED_SIGNALS:
            os.kill(worker.pid, number)
    assert [*first, *map(int, batches)] == list(range(8))


class StuckLauncher:
    """torch's launcher while it waits for other nodes, outside of Python."""

    def __init__(self, config: Any, entrypoint: str) -> None:
        self.config = config

    def __call__(self, *arguments: str) -> None:
        threading.Event().wait(60)


@pytest.mark.parametrize("number", [Signals.SIGTERM, Signals.SIGHUP])
def test_a_signal_is_heeded_while_nodes_are_waited_for(number, monkeypatch, tmp_path):
    import torch.distributed.launcher.api as api

    monkeypatch.setattr(api, "elastic_launch", StuckLauncher)
    before, stop = dict(os.environ), StopRequest()
    threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
    started = time.monotonic()
    with stop.listen(), pytest.raises(Interrupted, match=r"hydra\.run\.dir"):
        launch.launch_workers(
            Parallel(sharding=Sharding.ddp), RunDirectory(tmp_path), 2, Console(quiet=True), stop
        )
    assert time.monotonic() - started < 10
    assert dict(os.environ) == before


def test_one_machine_meets_at_an_address_that_needs_no_name(monkeypatch):
    """Its own name may not resolve, and localhost may be an IPv6 address that nobody listens on."""
    monkeypatch.setattr("socket.gethostname", lambda: "no-such-host.invalid")
    nodes = launch.find_rendezvous(1)
    config = launch._launch_config(nodes, 2)
    assert config.local_addr == "127.0.0.1" and config.rdzv_endpoint == "127.0.0.1:0"


def test_a_process_that_was_suspended_is_not_hung(monkeypatch, tmp_path):
    """Ctrl-Z for an hour, and `fg`: the watchdog starts to count anew. Without a pause it does not."""
    ended: list[str] = []
    for pause, is_hung in ((3600.0, False), (0.0, True)):
        dog = watchdog.Watchdog(30, tmp_path / "stacks-0.txt", lambda message: None)
        clock = iter([0.0, 0.0, *(pause + 90.0 * tick for tick in range(1, 60))])
        monkeypatch.setattr(watchdog.time, "monotonic", lambda clock=clock: next(clock))
        monkeypatch.setattr(dog, "_end_process", lambda seconds: ended.append("hung"))
        dog.heartbeat()
        dog._watch(Ticks(20 if pause else 21), 1800.0)
        assert bool(ended) == is_hung


class Ticks:
    """An event that is not set for some checks."""

    def __init__(self, checks: int) -> None:
        self.left = checks

    def wait(self, seconds: float) -> bool:
        self.left -= 1
        return self.left < 0


# ---- whoever reads the output


def closed_pipe() -> int:
    read_end, write_end = os.pipe()
    os.close(read_end)
    return write_end


def closed_terminal() -> int:
    leader, follower = pty.openpty()
    os.close(leader)
    return follower


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


READERS = {"a closed pipe": closed_pipe, "a closed terminal": closed_terminal, "a full disk": full_disk}


def in_child(act: Callable[[], None], descriptors: dict[int, int | None]) -> int:
    """Run `act` in a forked process with these descriptors (None: closed), as a command does.

    Gives its exit code.
    """
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            for number, descriptor in descriptors.items():
                if descriptor is None:
                    os.close(number)
                else:
                    os.dup2(descriptor, number)
            sys.stdout = None if descriptors.get(1, 1) is None else os.fdopen(1, "w", closefd=False)
            sys.stderr = None if descriptors.get(2, 2) is None else os.fdopen(2, "w", closefd=False)
            output.keep_output_writable()
            act()
            sys.stdout.flush()
            sys.stderr.flush()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def print_much() -> None:
    """As runs do: rich, a progress bar, print, a child process, and bytes."""
    console = Console()
    with ProgressBar("training", 20, console) as bar:
        for _ in range(20):
            bar.advance("x" * 4000)
    print("é \udcff", flush=True)
    print("error", file=sys.stderr, flush=True)
    subprocess.run(["echo", "from a child"], check=not output.lost_output().get("stdout"))
    sys.stdout.buffer.write(b"bytes")


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_ends_what_prints(reader, tmp_path):
    """On stdout, told once on stderr; on both; a full disk takes later lines again."""
    errors = tmp_path / "errors"
    descriptor, file = READERS[reader](), os.open(errors, os.O_WRONLY | os.O_CREAT)
    assert in_child(print_much, {1: descriptor, 2: file}) == 0
    assert errors.read_text().count("what is printed there from here on is lost") == 1
    assert in_child(print_much, {1: descriptor, 2: READERS[reader]()}) == 0


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_a_closed_descriptor_is_not_given_to_a_file(closed, tmp_path):
    """`>&-`: the next file that is opened would get what is printed."""

    def act() -> None:
        with (tmp_path / "metrics").open("w") as file:
            assert file.fileno() > 2
            os.write(1, b"printed")
            print_much()
            file.write("kept")

    assert in_child(act, dict.fromkeys(closed)) == 0
    assert (tmp_path / "metrics").read_text() == "kept"


def test_streams_of_others_are_left_alone(capsys):
    before = sys.stdout, sys.stderr
    output.keep_output_writable()
    assert (sys.stdout, sys.stderr) == before


# ---- as a user sees it


def start(*arguments: str, steps: int = 4000, **options: Any) -> subprocess.Popen[Any]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    long = [argument for argument in TINY if "max_steps" not in argument]
    return subprocess.Popen(
        [sys.executable, str(TRAIN), *long, f"training.max_steps={steps}", "eval=none", *arguments],
        env=environment,
        **options,
    )


def wait_for_steps(run: RunDirectory, process: subprocess.Popen[Any], steps: int = 2) -> None:
    end = time.monotonic() + 200
    while len(run.metrics()) < steps:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_closing_the_terminal_ends_the_run_with_a_checkpoint(tmp_path):
    """The kernel sends SIGHUP, and every write to the terminal fails."""
    run = RunDirectory(tmp_path / "run")
    leader, follower = pty.openpty()
    process = start(
        f"hydra.run.dir={run.path}",
        stdin=follower,
        stdout=follower,
        stderr=follower,
        preexec_fn=lambda: (os.setsid(), __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0)),
    )
    os.close(follower)
    threading.Thread(
        target=_drain, args=(os.dup(leader), stop_reading := threading.Event()), daemon=True
    ).start()
    wait_for_steps(run, process)
    stop_reading.set()
    os.close(leader)
    assert process.wait(120) in (128 + Signals.SIGHUP, 0)
    assert run.state()["state"] in ("interrupted", "finished")
    assert list(run.checkpoints.iterdir()) or run.state()["state"] == "finished"


def _drain(descriptor: int, stop: threading.Event) -> None:
    os.set_blocking(descriptor, False)
    while not stop.wait(0.05):
        try:
            os.read(descriptor, 1 << 16)
        except OSError:
            continue
    os.close(descriptor)


@pytest.mark.slow
def test_several_processes_go_on_under_nohup_and_without_a_reader(tmp_path):
    run = RunDirectory(tmp_path / "run")
    read_end, write_end = os.pipe()
    process = start(
        "parallel=ddp",
        "parallel.processes=2",
        f"hydra.run.dir={run.path}",
        steps=500,  # a line is printed every 50
        stdout=write_end,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    os.close(write_end)
    wait_for_steps(run, process)
    os.close(read_end)
    process.send_signal(signal.SIGHUP)
    wait_for_steps(run, process, 1 + max(row["step"] for row in run.metrics()) + 60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + Signals.SIGTERM
    assert read_json(run.state_file)["lost_output"] == {"stdout": "Broken pipe"}
    assert run.state()["state"] == "interrupted" and len(list(run.checkpoints.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0, reason="only root can rename a machine"
)
def test_several_processes_on_a_machine_that_does_not_know_its_name(tmp_path):
    run = RunDirectory(tmp_path / "run")
    two = ["parallel=ddp", "parallel.processes=2"]
    shell = f'hostname no-such-host.invalid; exec "{sys.executable}" "{TRAIN}" "$@"'
    ended = subprocess.run(
        ["unshare", "-u", "sh", "-c", shell, "sh", *TINY, *two, f"hydra.run.dir={run.path}"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0 and run.state()["state"] == "finished", ended.stderr
    assert "no-such-host" not in ended.stderr
