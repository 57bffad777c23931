"""Everything that keeps a run from starting is reported at once, before torch is imported."""

from __future__ import annotations

import re
from collections import namedtuple
from pathlib import Path

import pytest

from alignment_lab import tracking
from alignment_lab.estimate import DEVICES, GB, problems, weights
from alignment_lab.runtime import disk
from alignment_lab.runtime.errors import UserError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def problems_of(composed, monkeypatch):
    """`problems_of("model=mistral-7b", accelerators=2)`: sentences with a key, its value and a remedy."""

    def sentences(overrides: str, accelerators: int = 0, device: str = "h100") -> list[str]:
        monkeypatch.setattr(
            problems.estimate, "local_device", lambda count: (DEVICES[device if count else "cpu"], count or 1)
        )
        problems_found = problems.local_problems(composed(overrides.split()), accelerators=accelerators)
        assert all(
            re.match(r"^[a-z_.]+=\S+[: ]", sentence) and sentence.endswith(".") and "\n" not in sentence
            for sentence in problems_found
        )
        return problems_found

    return sentences


@pytest.fixture
def every_package(monkeypatch):
    """Simulate that everything is installed: any problem left has another reason."""
    monkeypatch.setattr(problems, "find_spec", lambda package: object())


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "model=tiny",
        "model=tiny parallel=ddp parallel.processes=2",
        "model=tiny parallel=lora",
        "recipe=demo",
    ],
)
def test_an_experiment_that_can_run_has_no_problems(overrides, problems_of, composed):
    assert problems_of(overrides) == []
    problems.require_runnable(composed(overrides.split()), 0)


# ---- devices


def test_a_missing_accelerator(problems_of):
    (message,) = problems_of("model=tiny parallel.device=cuda")
    assert (
        message.startswith("parallel.device=cuda: this machine shows no accelerator")
        and "parallel.device=auto" in message
    )
    assert problems_of("model=tiny parallel.device=cuda", accelerators=1) == []


def test_more_processes_than_accelerators(problems_of):
    (message,) = problems_of("model=tiny parallel=ddp parallel.processes=4", accelerators=2)
    assert message.startswith("parallel.processes=4: this machine shows 2 accelerators;")
    assert problems_of("model=tiny parallel=ddp parallel.processes=2", accelerators=2) == []
    assert (
        problems_of("model=tiny parallel=ddp parallel.processes=4 parallel.device=cpu", accelerators=2) == []
    )


def test_fewer_rows_than_accelerators(problems_of):
    (message,) = problems_of("model=tiny parallel=ddp training.global_batch=4", accelerators=8)
    assert message.startswith("training.global_batch=4: 8 processes") and "training.global_batch=8" in message


def test_settings_that_need_accelerators(problems_of, every_package):
    (message,) = problems_of("model=tiny parallel=zero3_offload")
    assert (
        message.startswith("parallel.offload=true: this machine shows no accelerator")
        and "parallel=zero3." in message
    )
    (message,) = problems_of("model=tiny parallel=fsdp_qlora")
    assert message.startswith("parallel.quantization=nf4: FSDP") and "parallel=qlora." in message


# ---- packages


def test_packages_that_are_not_installed(problems_of, monkeypatch):
    monkeypatch.setattr(problems, "find_spec", lambda package: None)
    messages = problems_of("model=tiny parallel=zero2_qlora")
    assert [re.search(r"pip install -e \.\[(\w+)\]", message)[1] for message in messages] == [
        "deepspeed",
        "quantization",
    ]


def test_flash_attention_needs_an_accelerator_and_its_package(problems_of, monkeypatch):
    overrides = "model=tiny model.attention=flash_attention_2"
    (message,) = problems_of(overrides)
    assert "needs an accelerator" in message and "model.attention=shared_prefix" in message
    monkeypatch.setattr(problems, "find_spec", lambda package: None)
    (message,) = problems_of(overrides, accelerators=1)
    assert "pip install -e .[flash]" in message
    monkeypatch.setattr(problems, "find_spec", lambda package: object())
    assert problems_of(overrides, accelerators=1) == []


# ---- weights, trackers, disk


def test_weights_that_may_not_be_downloaded(problems_of, monkeypatch, tmp_path):
    overrides = "model=smollm2-135m"
    assert problems_of(overrides) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (message,) = problems_of(overrides)
    assert message.startswith("model.path=HuggingFaceTB/SmolLM2-135M-Instruct: is not on this machine")
    (tmp_path / "config.json").write_text("{}")
    assert problems_of(f"{overrides} model.path={tmp_path}") == []
    monkeypatch.setattr(
        weights,
        "hub_cached_file",
        lambda model, name: tmp_path if name.endswith("index.json") else None,
    )
    assert problems_of(overrides) == []


def test_wandb_online_needs_a_login(problems_of, monkeypatch):
    monkeypatch.setattr(tracking, "has_key", lambda: False)
    assert problems_of("model=tiny tracking=wandb") == []  # offline where there is no key
    monkeypatch.setenv("WANDB_MODE", "online")
    (message,) = problems_of("model=tiny tracking=wandb")
    assert message.startswith("tracking.wandb=true: ") and "wandb login" in message
    monkeypatch.setattr(tracking, "has_key", lambda: True)
    assert problems_of("model=tiny tracking=wandb") == []


def test_a_disk_that_is_full(composed, monkeypatch, tmp_path):
    """134.5M parameters: 12 bytes in 3 checkpoints and 4 in the model are 5.4 GB; the model alone 0.5 GB."""
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(9 * GB, 4 * GB, 5 * GB))
    assert problems.local_problems(composed([]), accelerators=0, folder=tmp_path / "not" / "made") == []
    (message,) = problems.local_problems(
        composed(["training.save_steps=10"]), accelerators=0, folder=tmp_path / "not" / "made"
    )
    assert message.startswith(
        "training.save_total_limit=2: checkpoints and model take about 5 GB, and 5 GB are free in"
    )
    assert (
        str(tmp_path) in message
        and "not" not in Path(message.partition(" free in ")[2].partition(";")[0]).parts
    )
    assert (
        problems.local_problems(
            composed(["training.save_steps=10", "parallel=lora"]), accelerators=0, folder=tmp_path
        )
        == []
    )


# ---- memory


@pytest.fixture
def memory(monkeypatch):
    """`memory(24)`: simulate so many GB of free memory."""

    def free(gb: float) -> None:
        machine = problems.estimate.Device("cpu", gb, 0.18, accelerator=False)
        monkeypatch.setattr(problems.estimate, "local_cpu", lambda free: machine)

    return free


def test_seven_billion_parameters_on_a_small_machine(problems_of, memory, every_package):
    """float32 under DeepSpeed: 4 + 4 + 12 bytes for each of 7.24e9, and ZeRO-3's gathered layers."""
    memory(24)
    (message,) = problems_of("model=mistral-7b parallel=zero3")
    assert message == (
        "model=mistral-7b parallel=zero3: there is no accelerator here, it needs about 150 GB of memory and "
        "24 GB are free; use 2 x 80 GB or parallel=lora on one device of 24 GB."
    )


def test_for_a_small_model_the_remedy_is_a_preset_that_fits_here(problems_of, memory):
    memory(8)
    (message,) = problems_of("model=qwen3-0.6b")
    assert "parallel=lora here" in message


def test_accelerators_that_are_too_small(problems_of, every_package):
    (message,) = problems_of("model=mistral-7b parallel=zero3", accelerators=2, device="rtx4090")
    assert "on each of 2 x rtx4090, which have 24 GB; use 2 x 80 GB or parallel=lora here." in message
    assert problems_of("model=mistral-7b parallel=zero3", accelerators=2, device="h100") == []
    assert problems_of("model=mistral-7b parallel=qlora", accelerators=1, device="rtx4090") == []


def test_processes_share_a_machines_memory(problems_of, memory):
    memory(6)
    assert problems_of("model=embedded parallel=ddp") == []
    (message,) = problems_of("model=embedded parallel=ddp parallel.processes=4")
    assert "for each of 4 processes" in message


def test_offloaded_weights_need_host_memory(problems_of, memory, every_package):
    memory(64)
    (message,) = problems_of("model=mistral-7b parallel=zero3_offload", accelerators=2)
    assert "are offloaded to host memory, 116 GB in all, and 64 are free; use parallel=lora" in message
    memory(256)
    assert problems_of("model=mistral-7b parallel=zero3_offload", accelerators=2) == []


def test_weights_pass_through_host_memory(problems_of, memory, every_package):
    """4 bytes for each of 7.24e9, in each of 8 processes; ZeRO-3 reads them in parts."""
    memory(64)
    (message,) = problems_of("model=mistral-7b parallel=fsdp", accelerators=8)
    assert "pass through host memory, 232 GB in all, and 64 are free; use parallel=zero3" in message
    assert problems_of("model=mistral-7b parallel=zero3", accelerators=8) == []


def test_auto_is_checked_as_the_preset_it_is_resolved_to(problems_of, memory):
    memory(24)
    assert problems_of("model=tiny parallel=auto") == []


def test_a_model_of_unknown_shape_is_not_estimated(problems_of):
    assert problems_of("model=hub model.path=org/name") == []


# ---- the error


def test_one_problem_is_one_sentence(composed):
    with pytest.raises(UserError, match=r"^parallel\.device=cuda: [^\n]*\.$"):
        problems.require_runnable(composed(["model=tiny", "parallel.device=cuda"]), 0)


def test_several_problems_are_reported_together(composed, monkeypatch):
    monkeypatch.setattr(tracking, "has_key", lambda: False)
    monkeypatch.setenv("WANDB_MODE", "online")
    spec = composed(
        ["model=tiny", "parallel.device=cuda", "tracking=wandb", "model.attention=flash_attention_2"]
    )
    with pytest.raises(UserError) as error:
        problems.require_runnable(spec, 0)
    head, *lines = str(error.value).splitlines()
    assert head == "3 things are wrong:"
    assert len(lines) == 3 and all(line.startswith("  ") and line.endswith(".") for line in lines)
