"""A run on two processes: the same losses and weights as on one, however they are sharded; failures; resume.

On the CPU over gloo, tiny weights, float32. Each run is the command as a user types it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from alignment_lab.checkpoints import manifest
from alignment_lab.runtime.files import write_json
from alignment_lab.runtime.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow
COMMON = [
    "model=tiny",
    "parallel.device=cpu",
    "training.max_steps=4",
    "training.global_batch=8",
    "training.micro_tokens=300",  # several passes a step, and not as many for each process
    "training.learning_rate=1e-3",  # so that four steps show
    "eval.rows=8",
    "eval.generations=2",
    "eval.max_new_tokens=4",
]
SAVED = ("method=dpo", "training.save_steps=2")
# each is trained whole, then goes on from its middle as it is, and as this other sharding
FULL_PRESETS = {"ddp": "zero1", "zero1": None, "zero2": "zero3", "zero3": "single", "fsdp": "ddp"}
ADAPTER_PRESETS = {"lora": False, "zero3_lora": True, "fsdp_lora": True}  # whether it is resumed too
QUANTIZED = ["qlora", "zero2_qlora"]
# Other data than pairs, each with every mechanism that it could break: a loss that gathers (ddp), weights
# that are gathered (zero3, fsdp), the adapter switched off for the reference, a base that is quantized.
DATA_SHAPES = {
    "sft": ["ddp", "zero3", "fsdp"],
    "kto": ["ddp", "zero3", "qlora", "fsdp_lora"],  # labelled answers, a KL term of all rows
    "reward": ["zero2", "zero3", "fsdp", "qlora", "zero3_lora", "fsdp_lora"],  # another head
    "aot": ["ddp", "zero3", "fsdp"],  # a loss of all rows at once
    "bco": ["ddp"],  # a running mean over all rows
    "cpt": ["zero3", "fsdp"],  # texts that share a block
}
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "nobody", "minds"]


def command(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *COMMON, *overrides, f"hydra.run.dir={folder}"]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: Any) -> Path:
    """Documents of 3 to 120 words: some are truncated, some share a block."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"text": " ".join(draw.choices(WORDS, k=draw.randint(3, 120)))} for _ in range(160)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def train_run(folder: Path, *overrides: str, code: int = 0, **variables: str) -> RunDirectory:
    """Run the command to its end; returns its run directory."""
    process = subprocess.run(
        command(folder, *overrides), env=environment(**variables), capture_output=True, text=True, timeout=300
    )
    assert process.returncode == code, process.stdout[-2000:] + process.stderr[-4000:]
    return RunDirectory(folder)


def losses(run: RunDirectory) -> list[float]:
    return [row["loss"] for row in run.metrics() if "loss" in row]


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    (file,) = run.model.glob("*model.safetensors")
    return load_file(file)


def assert_runs_equal(run: RunDirectory, expected_run: RunDirectory) -> None:
    """Losses of every step to 1e-5, final weights to 1e-4 of the largest in their tensor, and the held-out
    scores and answers.
    """
    assert losses(run) == pytest.approx(losses(expected_run), rel=1e-5)
    run_weights, expected_weights = weights(run), weights(expected_run)
    assert run_weights.keys() == expected_weights.keys()
    for name in run_weights:
        torch.testing.assert_close(
            run_weights[name],
            expected_weights[name],
            rtol=1e-4,
            atol=1e-4 * float(expected_weights[name].abs().max()),
        )
    assert run.samples() == expected_run.samples()
    before, after = (run.report()["metrics"]["eval_loss"]["after"]["value"] for run in (run, expected_run))
    assert before == pytest.approx(after, rel=1e-5)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: Any) -> Callable[..., RunDirectory]:
    """A run of one process, cached for the module."""
    runs: dict[tuple[str, ...], RunDirectory] = {}

    def make_run(*overrides: str) -> RunDirectory:
        if overrides not in runs:
            runs[overrides] = train_run(tmp_path_factory.mktemp("alone") / "run", *overrides)
        return runs[overrides]

    return make_run


def two(preset: str) -> tuple[str, ...]:
    """A run of DPO by this preset on two processes, with a checkpoint in its middle."""
    return (*SAVED, f"parallel={preset}", f"parallel.processes={1 if preset == 'single' else 2}")


def cut_off(whole: RunDirectory, folder: Path) -> RunDirectory:
    """A copy of the run that failed behind its first checkpoint."""
    shutil.copytree(whole.path, folder)
    run = RunDirectory(folder)
    for deleted in (run.model, run.checkpoints / "checkpoint-4"):
        shutil.rmtree(deleted)
    write_json(run.state_file, {**run.state(), "state": "failed"})
    return run


def assert_resumes_bit_for_bit(whole: RunDirectory, folder: Path, preset: str) -> None:
    run = cut_off(whole, folder)
    train_run(run.path, *two(preset))
    assert losses(run) == losses(whole)
    assert run.state()["attempts"] == 2
    resumed, expected = weights(run), weights(whole)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


@pytest.mark.parametrize("preset", FULL_PRESETS)
def test_two_processes_train_as_one_does_and_resume(preset, one_process, tmp_path):
    """From a checkpoint the same sharding ends in the same bits. It is not sharded: any other, and any number
    of processes, goes on from it, and only the order of sums differs.
    """
    whole = train_run(tmp_path / "run", *two(preset))
    assert_runs_equal(whole, one_process(*SAVED))
    if other := FULL_PRESETS[preset]:
        assert_resumes_bit_for_bit(whole, tmp_path / "again", preset)
        run = cut_off(whole, tmp_path / "other")
        assert_runs_equal(train_run(run.path, *two(other)), one_process(*SAVED))


def test_two_processes_go_on_from_a_checkpoint_of_one(one_process, tmp_path):
    run = cut_off(one_process(*SAVED), tmp_path / "run")
    assert_runs_equal(train_run(run.path, *two("fsdp")), one_process(*SAVED))


@pytest.mark.parametrize("preset", ADAPTER_PRESETS)
def test_an_adapter_is_trained_by_two_as_by_one(preset, one_process, tmp_path):
    whole = train_run(tmp_path / "run", *two(preset))
    assert_runs_equal(whole, one_process("parallel=lora", "parallel.processes=1"))
    assert all(tensor.abs().sum() > 0 for tensor in weights(whole).values()), (
        "an adapter that was not gathered is empty, an untrained one 0"
    )
    if ADAPTER_PRESETS[preset]:
        assert_resumes_bit_for_bit(whole, tmp_path / "again", preset)


@pytest.mark.parametrize("preset", QUANTIZED)
def test_an_adapter_on_a_quantized_base(preset, one_process, tmp_path):
    two = train_run(tmp_path / "run", f"parallel={preset}", "parallel.processes=2")
    assert_runs_equal(two, one_process("parallel=qlora", "parallel.processes=1"))


@pytest.mark.parametrize(
    ("method", "preset"), [(method, preset) for method, presets in DATA_SHAPES.items() for preset in presets]
)
def test_every_shape_of_data_with_every_way_to_train(method, preset, one_process, texts, tmp_path):
    overrides = [
        f"method={method}",
        *(["data=local", f"data.path={texts}", "data.max_length=64"] if method == "cpt" else []),
    ]
    base = {"lora": "lora", "zero3_lora": "lora", "fsdp_lora": "lora", "qlora": "qlora"}.get(preset)
    reference = one_process(*overrides, *([f"parallel={base}", "parallel.processes=1"] if base else []))
    assert_runs_equal(
        train_run(tmp_path / "run", *overrides, f"parallel={preset}", "parallel.processes=2"), reference
    )


# ---- NaN, no progress


@pytest.mark.parametrize("preset", ["ddp", "zero2", "zero3", "fsdp"])
def test_a_nonfinite_gradient_takes_no_step_on_any_process(preset, tmp_path):
    """A learning rate with which the first step overflows float32: the second step's loss is NaN."""
    overrides = [
        f"parallel={preset}",
        "parallel.processes=2",
        "training.learning_rate=1e30",
        "training.warmup_steps=0",
        "training.save_steps=1",
    ]
    process = subprocess.run(
        command(tmp_path / "run", *overrides), env=environment(), capture_output=True, text=True, timeout=300
    )
    run = RunDirectory(tmp_path / "run")
    assert process.returncode == 1, process.stderr[-3000:]
    assert "the gradient's norm is" in process.stderr and "the step was not taken" in process.stderr
    (skipped,) = [json.loads(line) for line in (run.path / "refused.jsonl").read_text().splitlines()]
    assert len(skipped["rows"]) == 8
    assert [step for step, _ in enumerate(losses(run), 1)][-1] == skipped["step"] - 1
    assert run.state()["state"] == "failed"


@pytest.mark.parametrize("preset", ["single", "ddp"])
def test_a_run_without_progress_ends_with_its_stacks(preset, tmp_path):
    """A step takes longer than the timeout of 3 ms."""
    processes = 1 if preset == "single" else 2
    overrides = [f"parallel={preset}", f"parallel.processes={processes}", "training.watchdog_minutes=0.00005"]
    process = subprocess.run(
        command(tmp_path / "run", *overrides), env=environment(), capture_output=True, text=True, timeout=120
    )
    run = RunDirectory(tmp_path / "run")
    assert process.returncode == 75, process.stderr[-3000:]
    assert "error: no progress for 5e-05 minutes" in process.stderr
    assert run.state()["state"] == "interrupted"
    assert "File " in (run.path / "stacks-0.txt").read_text()


# ---- who starts the processes


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    "accelerate": [
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--mixed_precision",
        "no",
        "--main_process_port",
        "0",
    ],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_under_a_launcher_it_is_one_run(launcher, one_process, tmp_path):
    """Each process composes the command; all use the directory of rank 0."""
    command_line = [
        sys.executable,
        "-m",
        *LAUNCHERS[launcher],
        *command(tmp_path / "run", "parallel=ddp")[1:],
    ]
    process = subprocess.run(command_line, env=environment(), capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    assert_runs_equal(RunDirectory(tmp_path / "run"), one_process(*SAVED))
    assert process.stdout.count("Held-out rows, before and after") == 1


def test_two_machines_meet(one_process, tmp_path):
    """Two nodes on this machine, as in the guide: the same command on each, with its rank and the address of
    the first.
    """
    command_line = command(tmp_path / "run", "parallel=ddp", "parallel.processes=1", "parallel.nodes=2")
    port = str(20000 + os.getpid() % 10000)
    nodes = [
        subprocess.Popen(
            command_line,
            env=environment(NODE_RANK=node_rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stdout=subprocess.PIPE,
            text=True,
        )
        for node_rank in ("0", "1")
    ]
    outputs = [process.communicate(timeout=300)[0] for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0]
    assert_runs_equal(RunDirectory(tmp_path / "run"), one_process(*SAVED))
    assert ["Held-out rows" in output for output in outputs] == [True, False]


# ---- how it ends


def start_run(folder: Path, *overrides: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A run of many steps on two processes that is in the middle of training, and its workers."""
    command_line = command(
        folder, "parallel=ddp", "parallel.processes=2", "training.max_steps=2000", *overrides
    )
    process = subprocess.Popen(
        command_line,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while len(losses(RunDirectory(folder))) < 2:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.2)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "alignment_lab.entrypoints.worker" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    return process, workers


def test_when_a_process_is_killed_the_run_ends_with_its_reason(tmp_path):
    process, workers = start_run(tmp_path / "run")
    workers[1].send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.strip().startswith("error: process ") and errors.count("\n") == 1
    assert "was ended by SIGKILL" in errors and "resumes from the newest checkpoint" in errors
    assert not [
        worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE
    ]
    state = RunDirectory(tmp_path / "run").state()
    assert state["state"] == "failed" and "SIGKILL" in state["error"]


SIGNALS = [
    (signal.SIGINT, "ddp"),
    (signal.SIGTERM, "zero2"),
    (signal.SIGUSR2, "zero3"),
    (signal.SIGTERM, "fsdp"),
]


@pytest.mark.parametrize(("number", "preset"), SIGNALS)
def test_a_signal_ends_all_of_them_with_a_checkpoint(number, preset, tmp_path):
    """Ctrl-C reaches every process through the terminal, the other signals only the command."""
    process, workers = start_run(tmp_path / "run", f"parallel={preset}")
    run = RunDirectory(tmp_path / "run")
    os.killpg(process.pid, number) if number is signal.SIGINT else process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    step = len(losses(run))
    assert errors.strip() == (
        f"interrupted by {number.name} at step {step}; the same command with hydra.run.dir={run.path} "
        f"resumes from checkpoint-{step}"
    )
    assert not [
        worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE
    ]
    assert run.state()["state"] == "interrupted"
    checkpoint, damaged = manifest.newest_valid(run.checkpoints, run.state()["id"])
    assert checkpoint == run.checkpoints / f"checkpoint-{step}" and not damaged


def test_an_error_in_a_worker_is_one_message(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": "word " * 50, "chosen": f"a {n}", "rejected": f"b {n}"}) + "\n"
            for n in range(40)
        )
    )
    command_line = command(
        tmp_path / "run",
        "parallel=ddp",
        "parallel.processes=2",
        "data=local",
        f"data.path={rows}",
        "data.max_length=8",
    )
    process = subprocess.run(command_line, env=environment(), capture_output=True, text=True, timeout=120)
    assert process.returncode == 2
    words = "error: data.max_length=8: no row is left to train on ("
    assert process.stderr.startswith(words) and process.stderr.count("error:") == 1
