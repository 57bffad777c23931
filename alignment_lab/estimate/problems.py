"""Everything that is wrong with running an experiment here, in one list, before anything heavy is imported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from .. import estimate, tracking
from ..config import Attention, DeviceType, Experiment, ModelSource, Parallel, Quantization, Sharding
from ..runtime.errors import UserError
from . import DEVICES, GB, MemoryEstimate, problems

REMEDIES = (1, 2, 4, 8, 16)  # devices that are tried when this machine will not do
USUAL = "h100"  # the device that people rent
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # whole, or in parts


def local_problems(
    spec: Experiment, *, accelerators: int, folder: Path | None = None, at_once: int = 1
) -> list[str]:
    """What keeps this experiment from running on this machine, a sentence with a remedy each; checkpoints would lie in `folder`.

    `at_once`: so many like it run together, and share the machine's memory where there is no accelerator.
    """
    spec = estimate.resolve_auto(spec, accelerators)
    cpu = accelerators == 0 or spec.parallel.device is DeviceType.cpu
    return [
        *_devices(spec, accelerators),
        *problems.missing_packages(spec.parallel),
        *_attention(spec, cpu),
        *_weights(spec),
        *tracking.tracker_problems(spec),
        *_memory(spec, 0 if cpu else accelerators, at_once),
        *_disk(spec, folder or Path.cwd()),
    ]


def machine_independent_problems(spec: Experiment) -> list[str]:
    """What keeps it from running on any machine: what a login node can say of a cell whose devices and memory are those of another one."""
    found = [*problems.missing_packages(spec.parallel), *_weights(spec), *tracking.tracker_problems(spec)]
    if spec.model.attention is Attention.flash_attention_2:
        found += _attention(spec, cpu=spec.parallel.device is DeviceType.cpu)
    return found


def sweep_disk_problems(specs: Iterable[Experiment], folder: Path) -> list[str]:
    """Whether all cells of a sweep together fit the disk."""
    needed, (existing, free) = sum(map(_written, specs)), _free(folder)
    if needed <= free:
        return []
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())  # by attempts before
    said = f"checkpoints and models of all cells take about {_size(needed)}, and {_size(free)} are free in {existing}"
    remedy = "lower training.save_total_limit, set training.save_steps=null, or write elsewhere: hydra.sweep.dir=DIRECTORY."
    return [f"{said}; {remedy}"] if needed > free + there else []


def require_runnable(spec: Experiment, accelerators: int, folder: Path | None = None) -> None:
    """Raise one UserError with all that is wrong."""
    found = local_problems(spec, accelerators=accelerators, folder=folder)
    if found:
        raise UserError(
            found[0]
            if len(found) == 1
            else "\n".join([f"{len(found)} things are wrong:", *(f"  {one}" for one in found)])
        )


def _devices(spec: Experiment, accelerators: int) -> Iterator[str]:
    dials = spec.parallel
    if dials.device is DeviceType.cuda and accelerators == 0:
        yield "parallel.device=cuda: this machine shows no accelerator; use parallel.device=auto, or a machine that has one."
    elif dials.processes and dials.device is not DeviceType.cpu and 0 < accelerators < dials.processes:
        yield f"parallel.processes={dials.processes}: this machine shows {_several(accelerators)}; ask for as many, or leave it null."
    if accelerators == 0 and dials.device is not DeviceType.cpu:
        if dials.offload:
            yield "parallel.offload=true: this machine shows no accelerator to take weights from; use parallel=zero3."
        if dials.sharding is Sharding.fsdp and dials.quantization is Quantization.nf4:
            yield "parallel.quantization=nf4: FSDP cuts 4-bit weights on accelerators, and this machine shows none; use parallel=qlora."
    world = estimate.total_processes(dials, max(1, accelerators))
    if spec.training.global_batch < world:
        yield (
            f"training.global_batch={spec.training.global_batch}: {world} processes want a row each at every step; "
            f"set training.global_batch={world}, or parallel.processes={spec.training.global_batch}."
        )


def _several(accelerators: int) -> str:
    return "1 accelerator" if accelerators == 1 else f"{accelerators} accelerators"


def _attention(spec: Experiment, cpu: bool) -> Iterator[str]:
    if spec.model.attention is not Attention.flash_attention_2:
        return
    said = "model.attention=flash_attention_2:"
    if cpu:
        yield f"{said} needs an accelerator, and there is none here; use model.attention=shared_prefix."
    elif find_spec("flash_attn") is None:
        yield f"{said} needs flash-attn; pip install -e .[flash], or use model.attention=shared_prefix, which needs no package."


def _weights(spec: Experiment) -> Iterator[str]:
    """Weights of the Hub that this machine has not, while it may not ask for them."""
    model, path = spec.model, spec.model.path
    if (
        model.source is not ModelSource.hub
        or path is None
        or Path(path).expanduser().is_dir()
        or not _offline()
    ):
        return
    if not any(estimate.hub_cached_file(model, name) for name in WEIGHTS):
        yield f"model.path={path}: is not on this machine, and HF_HUB_OFFLINE=1; fetch it where there is a network, or give a directory."


def _offline() -> bool:
    words = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads it
    return any(
        os.environ.get(name, "").upper() in words for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _memory(spec: Experiment, accelerators: int, at_once: int) -> Iterator[str]:
    """Whether the estimate fits this machine, and what would do where it does not."""
    device, count = estimate.local_device(accelerators)
    if not device.accelerator:
        device, count = estimate.local_cpu(free=True), 1
        device = replace(device, gb=device.gb / at_once)
    processes = estimate.total_processes(spec.parallel, count)
    need = estimate.estimate_memory(spec, spec.parallel, device, processes)
    if need is None:
        return
    if not need.fits:
        yield f"model={spec.model.name} parallel={spec.parallel.name}: {_missing(spec, need, at_once)}; {_remedy(spec, need)}."
    needed, free = need.host_bytes * processes // spec.parallel.nodes, estimate.local_cpu(free=True).bytes
    if needed > free:
        waits = "wait in" if spec.parallel.offload else "pass through"
        remedy = (
            "lora, or more machines"
            if spec.parallel.offload
            else "zero3, which reads them in parts, or fewer parallel.processes"
        )
        yield (
            f"parallel={spec.parallel.name}: its weights {waits} the machine's memory, {needed / GB:.0f} GB in all, and {free / GB:.0f} "
            f"are free; use parallel={remedy}."
        )


def _missing(spec: Experiment, need: MemoryEstimate, at_once: int) -> str:
    """What is needed and what there is."""
    needed, has = f"{need.peak / GB:.0f} GB", f"{need.capacity / GB:.0f} GB"
    if need.device.accelerator:
        return f"needs about {needed} on each of {need.processes} x {need.device.name}, which have {has}"
    many = [
        f"{count} {what}"
        for count, what in ((need.processes, "processes"), (at_once, "cells at once"))
        if count > 1
    ]
    each = f" for each of {' in each of '.join(many)}" if many else ""
    none = (
        "an accelerator is not to be used"
        if spec.parallel.device is DeviceType.cpu
        else "there is no accelerator here"
    )
    return f"{none}, it needs about {needed} of memory and {has} are free{each}"


def _remedy(spec: Experiment, need: MemoryEstimate) -> str:
    """The smallest set-up of the usual device that does; and the preset that would do with less."""
    ways = []
    usual = DEVICES[USUAL]
    for count in REMEDIES:
        other = estimate.estimate_memory(spec, spec.parallel, usual, count)
        if other and other.fits and (count == 1 or spec.parallel.name != "single"):
            ways.append(f"{count} x {usual.gb:.0f} GB" if count > 1 else f"one device of {usual.gb:.0f} GB")
            break
    here = estimate.first_fitting_preset(spec, need.device, need.processes)
    if here and estimate.is_practical(spec, need.device):
        ways.append(f"parallel={here.parallel.name} here")
    for device in sorted(
        (device for device in DEVICES.values() if device.accelerator), key=lambda device: device.gb
    ):
        if not need.device.accelerator and (other := estimate.first_fitting_preset(spec, device, 1)):
            ways.append(f"parallel={other.parallel.name} on one device of {device.gb:.0f} GB")
            break
    return (
        f"use {', '.join(ways[:-1])}{' or ' if ways[:-1] else ''}{ways[-1]}"
        if ways
        else "use a smaller model, or more devices"
    )


def _disk(spec: Experiment, folder: Path) -> Iterator[str]:
    """Room for the checkpoints that are kept, one more while it is written, and the final model."""
    needed, (existing, free) = _written(spec), _free(folder)
    there = sum(
        file.stat().st_size for file in (folder / "checkpoints").rglob("*") if file.is_file()
    )  # by an attempt before
    if needed > free + there:
        yield (
            f"training.save_total_limit={spec.training.save_total_limit}: checkpoints and model take about {_size(needed - there)}, and "
            f"{_size(free)} are free in {existing}; keep fewer, save none, or write elsewhere: hydra.run.dir=DIRECTORY."
        )


def _written(spec: Experiment) -> float:
    """Bytes of checkpoints and model; 0 where the model's shape is not known."""
    known = estimate.experiment_parameters(spec)
    kept = spec.training.save_total_limit + 1 if spec.training.save_steps else 0
    return (
        (kept * (estimate.STATE_BYTES - 4) + 4) * known.trained if known else 0
    )  # no gradients; the final model in float32


def _free(folder: Path) -> tuple[Path, float]:
    """What is there of the folder's path, and the bytes that are free in it."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return existing, shutil.disk_usage(existing).free


def _size(count: float) -> str:
    return f"{count / GB:.0f} GB" if count >= GB else f"{1000 * count / GB:.0f} MB"


REQUIRED_PACKAGES = {  # what a setting needs besides the lab's own packages: (package, extra of pyproject.toml)
    Sharding.zero1: ("deepspeed", "deepspeed"),
    Sharding.zero2: ("deepspeed", "deepspeed"),
    Sharding.zero3: ("deepspeed", "deepspeed"),
    Quantization.nf4: ("bitsandbytes", "quantization"),
    Quantization.int8: ("bitsandbytes", "quantization"),
}


def missing_packages(parallel: Parallel) -> list[str]:
    """What these dials need and this environment does not have, a sentence each."""
    wanted = [
        (setting, REQUIRED_PACKAGES[setting])
        for setting in (parallel.sharding, parallel.quantization)
        if setting in REQUIRED_PACKAGES
    ]
    return [
        f"parallel.{type(setting).__name__.lower()}={setting.name}: needs {package}; pip install -e .[{extra}]."
        for setting, (package, extra) in wanted
        if find_spec(package) is None
    ]
