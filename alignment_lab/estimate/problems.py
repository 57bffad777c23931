"""Everything that keeps an experiment from running here, in one list, before anything heavy is imported.

Looks at devices, memory, disk, packages, weights and trackers; knows nothing of how a run is executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from .. import estimate, tracking
from ..config import Attention, DeviceType, Experiment, Parallel, Quantization, Sharding
from ..runtime.disk import free_bytes, nearest_existing
from ..runtime.errors import UserError
from .devices import DEVICES, GB, Device
from .memory import MemoryEstimate
from .model_states import STATE_BYTES
from .weights import weight_problems

REMEDY_COUNTS = (1, 2, 4, 8, 16)  # numbers of devices that are tried where this machine is too small
REMEDY_DEVICE = "h100"  # a device that can be rented
REQUIRED_PACKAGES = {  # beyond the lab's own dependencies: (package, extra of pyproject.toml)
    Sharding.zero1: ("deepspeed", "deepspeed"),
    Sharding.zero2: ("deepspeed", "deepspeed"),
    Sharding.zero3: ("deepspeed", "deepspeed"),
    Quantization.nf4: ("bitsandbytes", "quantization"),
    Quantization.int8: ("bitsandbytes", "quantization"),
}


def local_problems(
    spec: Experiment, *, accelerators: int, folder: Path | None = None, at_once: int = 1
) -> list[str]:
    """What keeps this experiment from running on this machine, one sentence with a remedy each.

    Checkpoints would be written to `folder`. `at_once` experiments like it run at the same time, and share
    host memory where there is no accelerator.
    """
    spec = estimate.resolve_auto(spec, accelerators)
    cpu = accelerators == 0 or spec.parallel.device is DeviceType.cpu
    return [
        *_device_problems(spec, accelerators),
        *missing_packages(spec.parallel),
        *_attention_problems(spec, cpu),
        *weight_problems(spec),
        *tracking.tracker_problems(spec),
        *_memory_problems(spec, 0 if cpu else accelerators, at_once),
        *_disk_problems(spec, folder or Path.cwd()),
    ]


def machine_independent_problems(spec: Experiment) -> list[str]:
    """What keeps it from running anywhere: all that a login node can tell of a cell for another machine."""
    problems = [*missing_packages(spec.parallel), *weight_problems(spec), *tracking.tracker_problems(spec)]
    if spec.model.attention is Attention.flash_attention_2:
        problems += _attention_problems(spec, cpu=spec.parallel.device is DeviceType.cpu)
    return problems


def sweep_disk_problems(specs: Iterable[Experiment], folder: Path) -> list[str]:
    """Whether all cells of a sweep together fit on the disk."""
    needed, free = sum(map(_checkpoint_bytes, specs)), free_bytes(folder)
    if needed <= free or needed <= free + _folder_bytes(folder):
        return []
    return [
        f"checkpoints and models of all cells take about {_format_size(needed)}, and {_format_size(free)} "
        f"are free in {nearest_existing(folder)}; lower training.save_total_limit, set "
        "training.save_steps=null, or write elsewhere: hydra.sweep.dir=DIRECTORY."
    ]


def require_runnable(spec: Experiment, accelerators: int, folder: Path | None = None) -> None:
    """Raise one UserError that lists all problems, if there are any."""
    raise_problems(local_problems(spec, accelerators=accelerators, folder=folder))


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one UserError that lists all of them, if there are any."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(
            "\n".join([f"{len(problems)} things are wrong:", *(f"  {line}" for line in problems)])
        )


def missing_packages(parallel: Parallel) -> list[str]:
    """A sentence for each package that these settings need and this environment lacks."""
    settings = [
        setting for setting in (parallel.sharding, parallel.quantization) if setting in REQUIRED_PACKAGES
    ]
    return [
        f"parallel.{type(setting).__name__.lower()}={setting.name}: needs {package}; "
        f"pip install -e .[{extra}]."
        for setting in settings
        for package, extra in [REQUIRED_PACKAGES[setting]]
        if find_spec(package) is None
    ]


def _device_problems(spec: Experiment, accelerators: int) -> Iterator[str]:
    parallel = spec.parallel
    cpu = parallel.device is DeviceType.cpu
    if parallel.device is DeviceType.cuda and accelerators == 0:
        yield (
            "parallel.device=cuda: this machine shows no accelerator; use parallel.device=auto, "
            "or a machine that has one."
        )
    elif parallel.processes and not cpu and 0 < accelerators < parallel.processes:
        count = "1 accelerator" if accelerators == 1 else f"{accelerators} accelerators"
        yield (
            f"parallel.processes={parallel.processes}: this machine shows {count}; "
            "ask for as many, or leave it null."
        )
    if accelerators == 0 and not cpu:
        yield from _accelerator_only_settings(parallel)
    processes = estimate.total_processes(parallel, max(1, accelerators))
    if spec.training.global_batch < processes:
        batch = spec.training.global_batch
        yield (
            f"training.global_batch={batch}: {processes} processes need a row each at every step; "
            f"set training.global_batch={processes}, or parallel.processes={batch}."
        )


def _accelerator_only_settings(parallel: Parallel) -> Iterator[str]:
    if parallel.offload:
        yield (
            "parallel.offload=true: this machine shows no accelerator to take weights from; "
            "use parallel=zero3."
        )
    if parallel.sharding is Sharding.fsdp and parallel.quantization is Quantization.nf4:
        yield (
            "parallel.quantization=nf4: FSDP shards 4-bit weights only on accelerators, and this machine "
            "shows none; use parallel=qlora."
        )


def _attention_problems(spec: Experiment, cpu: bool) -> Iterator[str]:
    if spec.model.attention is not Attention.flash_attention_2:
        return
    setting = "model.attention=flash_attention_2"
    if cpu:
        yield f"{setting}: needs an accelerator, and there is none here; use model.attention=shared_prefix."
    elif find_spec("flash_attn") is None:
        yield (
            f"{setting}: needs flash-attn; pip install -e .[flash], or use model.attention=shared_prefix, "
            "which needs no package."
        )


def _memory_problems(spec: Experiment, accelerators: int, at_once: int) -> Iterator[str]:
    """Whether the estimate fits this machine, and what would fit where it does not."""
    device, count = estimate.local_device(accelerators)
    if not device.accelerator:
        device, count = estimate.local_cpu(free=True), 1
        device = replace(device, gb=device.gb / at_once)
    processes = estimate.total_processes(spec.parallel, count)
    memory = estimate.estimate_memory(spec, spec.parallel, device, processes)
    if memory is None:
        return
    if not memory.fits:
        shortage, remedy = _describe_shortage(spec, memory, at_once), _describe_remedy(spec, memory)
        yield f"model={spec.model.name} parallel={spec.parallel.name}: {shortage}; {remedy}."
    yield from _host_memory_problems(spec, memory.host_bytes * processes // spec.parallel.nodes)


def _host_memory_problems(spec: Experiment, needed: int) -> Iterator[str]:
    """Whether host memory has room for weights that are offloaded, or on their way to an accelerator."""
    free = estimate.local_cpu(free=True).bytes
    if needed <= free:
        return
    if spec.parallel.offload:
        use, remedy = "are offloaded to", "lora, or more machines"
    else:
        use, remedy = "pass through", "zero3, which reads them in parts, or fewer parallel.processes"
    yield (
        f"parallel={spec.parallel.name}: its weights {use} host memory, {needed / GB:.0f} GB in all, "
        f"and {free / GB:.0f} are free; use parallel={remedy}."
    )


def _describe_shortage(spec: Experiment, memory: MemoryEstimate, at_once: int) -> str:
    """How much memory is needed and how much there is."""
    needed, available = f"{memory.peak / GB:.0f} GB", f"{memory.capacity / GB:.0f} GB"
    if memory.device.accelerator:
        devices = f"{memory.processes} x {memory.device.name}"
        return f"needs about {needed} on each of {devices}, which have {available}"
    counts = [(memory.processes, "processes"), (at_once, "cells at once")]
    sharing = " in each of ".join(f"{count} {noun}" for count, noun in counts if count > 1)
    cpu = spec.parallel.device is DeviceType.cpu
    reason = "an accelerator is not to be used" if cpu else "there is no accelerator here"
    for_each = f" for each of {sharing}" if sharing else ""
    return f"{reason}, it needs about {needed} of memory and {available} are free{for_each}"


def _describe_remedy(spec: Experiment, memory: MemoryEstimate) -> str:
    """The smallest number of common devices that is enough, and the preset that needs less."""
    remedies = list(_remedies(spec, memory))
    if not remedies:
        return "use a smaller model, or more devices"
    return f"use {', '.join(remedies[:-1])}{' or ' if remedies[:-1] else ''}{remedies[-1]}"


def _remedies(spec: Experiment, memory: MemoryEstimate) -> Iterator[str]:
    rented = DEVICES[REMEDY_DEVICE]
    counts = REMEDY_COUNTS if spec.parallel.name != "single" else REMEDY_COUNTS[:1]
    if count := next((count for count in counts if _fits(spec, rented, count)), None):
        yield f"{count} x {rented.gb:.0f} GB" if count > 1 else f"one device of {rented.gb:.0f} GB"
    local = estimate.first_fitting_preset(spec, memory.device, memory.processes)
    if local and estimate.is_practical(spec, memory.device):
        yield f"parallel={local.parallel.name} here"
    if memory.device.accelerator:
        return
    accelerators = (device for device in DEVICES.values() if device.accelerator)
    for device in sorted(accelerators, key=lambda device: device.gb):
        if fitting := estimate.first_fitting_preset(spec, device, 1):
            yield f"parallel={fitting.parallel.name} on one device of {device.gb:.0f} GB"
            return


def _fits(spec: Experiment, device: Device, count: int) -> bool:
    memory = estimate.estimate_memory(spec, spec.parallel, device, count)
    return memory is not None and memory.fits


def _disk_problems(spec: Experiment, folder: Path) -> Iterator[str]:
    """Whether there is room for the kept checkpoints, one more while it is written, and the final model."""
    needed, free = _checkpoint_bytes(spec), free_bytes(folder)
    existing = _folder_bytes(folder / "checkpoints")
    if needed > free + existing:
        yield (
            f"training.save_total_limit={spec.training.save_total_limit}: checkpoints and model take about "
            f"{_format_size(needed - existing)}, and {_format_size(free)} are free in "
            f"{nearest_existing(folder)}; keep fewer, save none, or write elsewhere: hydra.run.dir=DIRECTORY."
        )


def _checkpoint_bytes(spec: Experiment) -> int:
    """Bytes of checkpoints and final model on disk; 0 where the model's shape is not known."""
    counts = estimate.experiment_parameters(spec)
    if counts is None:
        return 0
    checkpoints = spec.training.save_total_limit + 1 if spec.training.save_steps else 0
    without_gradients = STATE_BYTES - 4
    return (checkpoints * without_gradients + 4) * counts.trained  # the final model in float32


def _folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder, written by earlier attempts; 0 where it does not exist."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _format_size(size: float) -> str:
    return f"{size / GB:.0f} GB" if size >= GB else f"{1000 * size / GB:.0f} MB"
