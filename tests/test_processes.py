"""A run on two processes: the losses and weights of one, whatever is cut; how it ends when one dies; how it
goes on.

On the CPU over gloo, tiny weights, float32. Each run is the command as a user types it.
"""

from __future__ import annotations

import json
import os
import random
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
WHOLE = ["ddp", "zero1", "zero2", "zero3", "fsdp"]
ADAPTED = ["lora", "zero3_lora", "fsdp_lora"]
QUANTISED = ["qlora", "zero2_qlora"]
SHAPES = {  # other data than pairs and conversations, which are trained in every way
    "kto": [
        "ddp",
        "zero2",
        "zero3",
        "fsdp",
        "lora",
        "qlora",
        "zero3_lora",
        "fsdp_lora",
    ],  # labelled answers, a KL term of all rows
    "reward": ["ddp", "zero2", "zero3", "fsdp", "lora", "qlora", "zero3_lora", "fsdp_lora"],  # another head
    "aot": ["ddp", "zero3", "fsdp"],  # a loss of all rows at once
    "bco": ["ddp", "zero3"],  # a running mean over all rows
    "cpt": ["ddp", "zero3", "fsdp"],  # texts that share a block
}
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "nobody", "minds"]


def command(folder: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *COMMON, *overrides, f"hydra.run.dir={folder}"]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: Any) -> Path:
    """Documents of 3 to 120 words: some are cut, some share a block."""
    draw = random.Random(0)
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"text": " ".join(draw.choices(WORDS, k=draw.randint(3, 120)))} for _ in range(160)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def trained(folder: Path, *overrides: str, code: int = 0, **more: str) -> RunDirectory:
    """The run that this command leaves."""
    ended = subprocess.run(
        command(folder, *overrides), env=environment(**more), capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == code, ended.stdout[-2000:] + ended.stderr[-4000:]
    return RunDirectory(folder)


def losses(run: RunDirectory) -> list[float]:
    return [row["loss"] for row in run.metrics() if "loss" in row]


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    (file,) = run.model.glob("*model.safetensors")
    return load_file(file)


def assert_same(one: RunDirectory, other: RunDirectory) -> None:
    """Losses of every step to 1e-5, final weights to 1e-4 of the largest in their tensor, the held-out
    measures and answers too.
    """
    assert losses(one) == pytest.approx(losses(other), rel=1e-5)
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(
            mine[name], theirs[name], rtol=1e-4, atol=1e-4 * float(theirs[name].abs().max())
        )
    assert one.samples() == other.samples()
    before, after = (run.report()["metrics"]["eval_loss"]["after"]["value"] for run in (one, other))
    assert before == pytest.approx(after, rel=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: Any) -> Callable[..., RunDirectory]:
    """A run of one process, made when first asked for."""
    made: dict[tuple[str, ...], RunDirectory] = {}

    def make(*overrides: str) -> RunDirectory:
        if overrides not in made:
            made[overrides] = trained(tmp_path_factory.mktemp("alone") / "run", *overrides)
        return made[overrides]

    return make


@pytest.mark.parametrize("preset", WHOLE)
@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_two_processes_train_as_one_does(method, preset, alone, tmp_path):
    assert_same(
        trained(tmp_path / "run", f"method={method}", f"parallel={preset}", "parallel.processes=2"),
        alone(f"method={method}"),
    )


@pytest.mark.parametrize("preset", ADAPTED)
def test_an_adapter_is_trained_by_two_as_by_one(preset, alone, tmp_path):
    two = trained(tmp_path / "run", f"parallel={preset}", "parallel.processes=2")
    assert_same(two, alone("parallel=lora", "parallel.processes=1"))
    assert all(tensor.abs().sum() > 0 for tensor in weights(two).values()), (
        "an adapter that was never gathered is empty, an untrained one 0"
    )


@pytest.mark.parametrize("preset", QUANTISED)
def test_an_adapter_on_a_quantized_base(preset, alone, tmp_path):
    two = trained(tmp_path / "run", f"parallel={preset}", "parallel.processes=2")
    assert_same(two, alone("parallel=qlora", "parallel.processes=1"))


@pytest.mark.parametrize(
    ("method", "preset"), [(method, preset) for method, presets in SHAPES.items() for preset in presets]
)
def test_every_shape_of_data_with_every_way_to_train(method, preset, alone, texts, tmp_path):
    words = [
        f"method={method}",
        *(["data=local", f"data.path={texts}", "data.max_length=64"] if method == "cpt" else []),
    ]
    base = {"lora": "lora", "zero3_lora": "lora", "fsdp_lora": "lora", "qlora": "qlora"}.get(preset)
    reference = alone(*words, *([f"parallel={base}", "parallel.processes=1"] if base else []))
    assert_same(trained(tmp_path / "run", *words, f"parallel={preset}", "parallel.processes=2"), reference)


# ---- going on


@pytest.mark.parametrize("preset", ["ddp", "zero2", "zero3", "fsdp", "zero3_lora", "fsdp_lora"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not(preset, tmp_path):
    words = [f"parallel={preset}", "parallel.processes=2", "training.save_steps=2"]
    run = trained(tmp_path / "run", *words)
    whole, steps = weights(run), losses(run)
    for gone in ("model", "checkpoints/checkpoint-4"):
        subprocess.run(["rm", "-r", str(run.path / gone)], check=True)
    write_json(run.state_file, {**run.state(), "state": "failed"})
    trained(run.path, *words)
    assert losses(run) == steps
    assert run.state()["attempts"] == 2
    again = weights(run)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("first", "then"),
    [("zero2", "zero3"), ("zero3", "single"), ("fsdp", "ddp"), ("single", "fsdp"), ("ddp", "zero1")],
)
def test_a_checkpoint_goes_on_under_another_sharding(first, then, alone, tmp_path):
    """It is whole: other processes, and other ways to cut it, take it up where it was; only the order of sums
    is another.
    """

    def words(preset: str) -> list[str]:
        return [
            f"parallel={preset}",
            f"parallel.processes={1 if preset == 'single' else 2}",
            "training.save_steps=2",
        ]

    run = trained(tmp_path / "run", *words(first))
    for gone in ("model", "checkpoints/checkpoint-4"):
        subprocess.run(["rm", "-r", str(run.path / gone)], check=True)
    write_json(run.state_file, {**run.state(), "state": "failed"})
    assert_same(trained(run.path, *words(then)), alone("method=dpo"))


# ---- no numbers, no progress


@pytest.mark.parametrize("preset", ["ddp", "zero2", "zero3", "fsdp"])
def test_a_gradient_that_is_no_number_takes_no_step_on_any_process(preset, tmp_path):
    """A rate that throws the weights out of the range of float32 at the first step: the second one's loss is
    no number.
    """
    words = [
        f"parallel={preset}",
        "parallel.processes=2",
        "training.learning_rate=1e30",
        "training.warmup_steps=0",
        "training.save_steps=1",
    ]
    ended = subprocess.run(
        command(tmp_path / "run", *words), env=environment(), capture_output=True, text=True, timeout=300
    )
    run = RunDirectory(tmp_path / "run")
    assert ended.returncode == 1, ended.stderr[-3000:]
    assert "the gradient's norm is" in ended.stderr and "the step was not taken" in ended.stderr
    (refused,) = [json.loads(line) for line in (run.path / "refused.jsonl").read_text().splitlines()]
    assert len(refused["rows"]) == 8
    assert [step for step, _ in enumerate(losses(run), 1)][-1] == refused["step"] - 1
    assert run.state()["state"] == "failed"


@pytest.mark.parametrize("preset", ["single", "ddp"])
def test_a_run_without_progress_ends_with_its_stacks(preset, tmp_path):
    """A step takes longer than the timeout of 3 ms."""
    processes = 1 if preset == "single" else 2
    words = [f"parallel={preset}", f"parallel.processes={processes}", "training.watchdog_minutes=0.00005"]
    ended = subprocess.run(
        command(tmp_path / "run", *words), env=environment(), capture_output=True, text=True, timeout=120
    )
    run = RunDirectory(tmp_path / "run")
    assert ended.returncode == 75, ended.stderr[-3000:]
    assert "error: no progress for 5e-05 minutes" in ended.stderr
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
def test_under_a_launcher_it_is_one_run(launcher, alone, tmp_path):
    """Each process composes the command; the first one's directory is everyone's."""
    started = [sys.executable, "-m", *LAUNCHERS[launcher], *command(tmp_path / "run", "parallel=ddp")[1:]]
    ended = subprocess.run(started, env=environment(), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert_same(RunDirectory(tmp_path / "run"), alone("method=dpo"))
    assert ended.stdout.count("Held-out rows, before and after") == 1


def test_two_machines_meet(alone, tmp_path):
    """Two of them on this one, as the guide says: the same command on each, with its number and the first
    one's address.
    """
    words = command(tmp_path / "run", "parallel=ddp", "parallel.processes=1", "parallel.nodes=2")
    port = str(20000 + os.getpid() % 10000)
    started = [
        subprocess.Popen(
            words,
            env=environment(NODE_RANK=number, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in ("0", "1")
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert_same(RunDirectory(tmp_path / "run"), alone("method=dpo"))
    assert ["Held-out rows" in one for one in said] == [True, False]


# ---- how it ends


def started(folder: Path, *overrides: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A run of many steps on two processes that is in the middle of training, and its workers."""
    words = command(folder, "parallel=ddp", "parallel.processes=2", "training.max_steps=2000", *overrides)
    process = subprocess.Popen(
        words,
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
    process, workers = started(tmp_path / "run")
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
    """Ctrl-C reaches every process by way of the terminal, the others the command alone."""
    process, workers = started(tmp_path / "run", f"parallel={preset}")
    run = RunDirectory(tmp_path / "run")
    os.killpg(process.pid, number) if number is signal.SIGINT else process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    step = len(losses(run))
    assert errors.strip() == (
        f"interrupted by {number.name} at step {step}; the same command with hydra.run.dir={run.path} resumes from checkpoint-{step}"
    )
    assert not [
        worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE
    ]
    assert run.state()["state"] == "interrupted"
    found, passed = manifest.newest_valid(run.checkpoints, run.state()["id"])
    assert found == run.checkpoints / f"checkpoint-{step}" and not passed


def test_a_mistake_that_a_process_finds_is_one_sentence(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": "word " * 50, "chosen": f"a {n}", "rejected": f"b {n}"}) + "\n"
            for n in range(40)
        )
    )
    words = command(
        tmp_path / "run",
        "parallel=ddp",
        "parallel.processes=2",
        "data=local",
        f"data.path={rows}",
        "data.max_length=8",
    )
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.strip() == "error: data.max_length=8: no row fits; raise it, or give shorter rows."
