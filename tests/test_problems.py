"""Everything that is wrong with a run here is told at once, a sentence each, before torch."""

from __future__ import annotations

import re
from collections import namedtuple
from pathlib import Path

import pytest

from alignment_lab import tracking
from alignment_lab.estimate import DEVICES, GB, problems
from alignment_lab.runtime import disk
from alignment_lab.runtime.errors import UserError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def found(composed, monkeypatch):
    """`found("model=mistral-7b", accelerators=2)`: the sentences, each of which names a key, its value and a remedy."""

    def sentences(overrides: str, accelerators: int = 0, device: str = "h100") -> list[str]:
        monkeypatch.setattr(
            problems.estimate, "local_device", lambda count: (DEVICES[device if count else "cpu"], count or 1)
        )
        said = problems.local_problems(composed(overrides.split()), accelerators=accelerators)
        assert all(
            re.match(r"^[a-z_.]+=\S+[: ]", one) and one.endswith(".") and "\n" not in one for one in said
        )
        return said

    return sentences


@pytest.fixture
def every_package(monkeypatch):
    """As if everything were installed: what is left is wrong for another reason."""
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
def test_what_runs_is_not_refused(overrides, found, composed):
    assert found(overrides) == []
    problems.require_runnable(composed(overrides.split()), 0)


# ---- devices


def test_an_accelerator_that_is_not_there(found):
    (said,) = found("model=tiny parallel.device=cuda")
    assert (
        said.startswith("parallel.device=cuda: this machine shows no accelerator")
        and "parallel.device=auto" in said
    )
    assert found("model=tiny parallel.device=cuda", accelerators=1) == []


def test_more_processes_than_accelerators(found):
    (said,) = found("model=tiny parallel=ddp parallel.processes=4", accelerators=2)
    assert said.startswith("parallel.processes=4: this machine shows 2 accelerators;")
    assert found("model=tiny parallel=ddp parallel.processes=2", accelerators=2) == []
    assert found("model=tiny parallel=ddp parallel.processes=4 parallel.device=cpu", accelerators=2) == []


def test_fewer_rows_than_accelerators(found):
    (said,) = found("model=tiny parallel=ddp training.global_batch=4", accelerators=8)
    assert said.startswith("training.global_batch=4: 8 processes") and "training.global_batch=8" in said


def test_what_only_accelerators_can(found, every_package):
    (said,) = found("model=tiny parallel=zero3_offload")
    assert (
        said.startswith("parallel.offload=true: this machine shows no accelerator")
        and "parallel=zero3." in said
    )
    (said,) = found("model=tiny parallel=fsdp_qlora")
    assert said.startswith("parallel.quantization=nf4: FSDP") and "parallel=qlora." in said


# ---- packages


def test_packages_that_are_not_installed(found, monkeypatch):
    monkeypatch.setattr(problems, "find_spec", lambda package: None)
    said = found("model=tiny parallel=zero2_qlora")
    assert [re.search(r"pip install -e \.\[(\w+)\]", one)[1] for one in said] == ["deepspeed", "quantization"]


def test_flash_attention_wants_an_accelerator_and_its_package(found, monkeypatch):
    asked = "model=tiny model.attention=flash_attention_2"
    (said,) = found(asked)
    assert "needs an accelerator" in said and "model.attention=shared_prefix" in said
    monkeypatch.setattr(problems, "find_spec", lambda package: None)
    (said,) = found(asked, accelerators=1)
    assert "pip install -e .[flash]" in said
    monkeypatch.setattr(problems, "find_spec", lambda package: object())
    assert found(asked, accelerators=1) == []


# ---- what lies elsewhere


def test_weights_that_may_not_be_fetched(found, monkeypatch, tmp_path):
    asked = "model=smollm2-135m"
    assert found(asked) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (said,) = found(asked)
    assert said.startswith("model.path=HuggingFaceTB/SmolLM2-135M-Instruct: is not on this machine")
    (tmp_path / "config.json").write_text("{}")
    assert found(f"{asked} model.path={tmp_path}") == []
    monkeypatch.setattr(
        problems.estimate,
        "hub_cached_file",
        lambda model, name: tmp_path if name.endswith("index.json") else None,
    )
    assert found(asked) == []


def test_wandb_online_wants_a_login(found, monkeypatch):
    monkeypatch.setattr(tracking, "has_key", lambda: False)
    assert found("model=tiny tracking=wandb") == []  # offline where there is no key
    monkeypatch.setenv("WANDB_MODE", "online")
    (said,) = found("model=tiny tracking=wandb")
    assert said.startswith("tracking.wandb=true: ") and "wandb login" in said
    monkeypatch.setattr(tracking, "has_key", lambda: True)
    assert found("model=tiny tracking=wandb") == []


def test_a_disk_that_is_full(composed, monkeypatch, tmp_path):
    """134.5M parameters: 12 bytes each in 3 checkpoints and 4 in the model are 5.4 GB; without checkpoints 0.5 GB."""
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(9 * GB, 4 * GB, 5 * GB))
    assert problems.local_problems(composed([]), accelerators=0, folder=tmp_path / "not" / "made") == []
    (said,) = problems.local_problems(
        composed(["training.save_steps=10"]), accelerators=0, folder=tmp_path / "not" / "made"
    )
    assert said.startswith(
        "training.save_total_limit=2: checkpoints and model take about 5 GB, and 5 GB are free in"
    )
    assert str(tmp_path) in said and "not" not in Path(said.partition(" free in ")[2].partition(";")[0]).parts
    assert (
        problems.local_problems(
            composed(["training.save_steps=10", "parallel=lora"]), accelerators=0, folder=tmp_path
        )
        == []
    )


# ---- memory


@pytest.fixture
def memory(monkeypatch):
    """`memory(24)`: as if so many GB were free."""

    def free(gb: float) -> None:
        machine = problems.estimate.Device("cpu", gb, 0.18, accelerator=False)
        monkeypatch.setattr(problems.estimate, "local_cpu", lambda free: machine)

    return free


def test_seven_billion_parameters_on_a_small_machine(found, memory, every_package):
    """float32 under DeepSpeed: 4 + 4 + 12 bytes for each of 7.24e9, and ZeRO-3's gathered layers."""
    memory(24)
    (said,) = found("model=mistral-7b parallel=zero3")
    assert said == (
        "model=mistral-7b parallel=zero3: there is no accelerator here, it needs about 150 GB of memory and 24 GB are free; "
        "use 2 x 80 GB or parallel=lora on one device of 24 GB."
    )


def test_a_small_model_is_sent_to_a_preset_that_fits_here(found, memory):
    memory(8)
    (said,) = found("model=qwen3-0.6b")
    assert "parallel=lora here" in said


def test_accelerators_that_are_too_small(found, every_package):
    (said,) = found("model=mistral-7b parallel=zero3", accelerators=2, device="rtx4090")
    assert "on each of 2 x rtx4090, which have 24 GB; use 2 x 80 GB or parallel=lora here." in said
    assert found("model=mistral-7b parallel=zero3", accelerators=2, device="h100") == []
    assert found("model=mistral-7b parallel=qlora", accelerators=1, device="rtx4090") == []


def test_processes_share_a_machines_memory(found, memory):
    memory(6)
    assert found("model=embedded parallel=ddp") == []
    (said,) = found("model=embedded parallel=ddp parallel.processes=4")
    assert "for each of 4 processes" in said


def test_what_is_offloaded_needs_the_machines_memory(found, memory, every_package):
    memory(64)
    (said,) = found("model=mistral-7b parallel=zero3_offload", accelerators=2)
    assert "are offloaded to host memory, 116 GB in all, and 64 are free; use parallel=lora" in said
    memory(256)
    assert found("model=mistral-7b parallel=zero3_offload", accelerators=2) == []


def test_weights_pass_through_the_machines_memory(found, memory, every_package):
    """4 bytes for each of 7.24e9, in each of 8 processes; ZeRO-3 reads them in parts."""
    memory(64)
    (said,) = found("model=mistral-7b parallel=fsdp", accelerators=8)
    assert "pass through host memory, 232 GB in all, and 64 are free; use parallel=zero3" in said
    assert found("model=mistral-7b parallel=zero3", accelerators=8) == []


def test_auto_is_judged_by_what_it_comes_to(found, memory):
    memory(24)
    assert found("model=tiny parallel=auto") == []


def test_a_model_of_unknown_shape_is_not_guessed_at(found):
    assert found("model=hub model.path=org/name") == []


# ---- refusing


def test_one_thing_is_one_sentence(composed):
    with pytest.raises(UserError, match=r"^parallel\.device=cuda: [^\n]*\.$"):
        problems.require_runnable(composed(["model=tiny", "parallel.device=cuda"]), 0)


def test_several_things_are_told_together(composed, monkeypatch):
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
