"""Which preset of conf/parallel fits a device, and which one `parallel=auto` is resolved to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

from ..config import Action, Adapter, DeviceType, Experiment, Parallel, Quantization, Sharding
from ..runtime.errors import UserError
from .devices import GB, Device, get_device, local_device
from .memory import MemoryEstimate, estimate_memory
from .model_states import DEEPSPEED
from .shape import UNKNOWN_SHAPE_REMEDY, experiment_parameters, model_shape

AUTO = "auto"
CPU_MAX_PARAMETERS = 2e9  # beyond it a step on a CPU takes minutes, and no advice leads there
# From the least intrusive to the smallest: full training before adapters, whole weights before sharded ones,
# then 4 bits. The same settings as in conf/parallel; a test compares them.
PRESETS = {
    preset.name: preset
    for preset in (
        Parallel("single"),
        Parallel("ddp", sharding=Sharding.ddp),
        Parallel("zero2", sharding=Sharding.zero2),
        Parallel("zero3", sharding=Sharding.zero3),
        Parallel("fsdp", sharding=Sharding.fsdp),
        Parallel("lora", sharding=Sharding.ddp, adapter=Adapter.lora),
        Parallel("zero3_lora", sharding=Sharding.zero3, adapter=Adapter.lora),
        Parallel("fsdp_lora", sharding=Sharding.fsdp, adapter=Adapter.lora),
        Parallel("qlora", sharding=Sharding.ddp, adapter=Adapter.lora, quantization=Quantization.nf4),
        Parallel("fsdp_qlora", sharding=Sharding.fsdp, adapter=Adapter.lora, quantization=Quantization.nf4),
    )
}
PACKAGES: dict[str, Callable[[Parallel], bool]] = {  # package -> whether a preset needs it
    "deepspeed": lambda preset: preset.sharding in DEEPSPEED,
    "bitsandbytes": lambda preset: preset.quantization is not Quantization.none,
}


@dataclass(frozen=True)
class PresetChoice:
    """The settings that `parallel=auto` is resolved to, and why, in a sentence."""

    parallel: Parallel
    reason: str


def candidate_presets(device: Device, processes: int, *, installed: bool = False) -> Iterator[Parallel]:
    """The presets that make sense on so many devices, in order; if `installed`, those with all packages."""
    for preset in PRESETS.values():
        sensible = is_supported(preset, device) and _makes_sense(preset, processes)
        if sensible and (_is_installed(preset) or not installed):
            yield preset


def _makes_sense(preset: Parallel, processes: int) -> bool:
    """One process has nothing to shard; several processes need something to share."""
    if processes > 1:
        return preset.sharding is not Sharding.none
    unsharded_adapter = preset.adapter is not Adapter.none and preset.sharding is Sharding.ddp
    return preset.sharding is Sharding.none or unsharded_adapter


def _is_installed(preset: Parallel) -> bool:
    return all(find_spec(package) is not None for package, needs in PACKAGES.items() if needs(preset))


def is_supported(parallel: Parallel, device: Device) -> bool:
    """Whether it works on such a device: offloading and FSDP with 4-bit weights need an accelerator."""
    fsdp_nf4 = parallel.sharding is Sharding.fsdp and parallel.quantization is Quantization.nf4
    return device.accelerator or not (parallel.offload or fsdp_nf4)


def is_practical(spec: Experiment, device: Device) -> bool:
    """Whether a user would want to wait for it: on a CPU only small models."""
    counts = experiment_parameters(spec)
    return device.accelerator or (counts is not None and counts.total <= CPU_MAX_PARAMETERS)


def first_fitting_preset(
    spec: Experiment, device: Device, processes: int, *, installed: bool = False
) -> MemoryEstimate | None:
    """The estimate for the first preset that fits; None where none does, or the shape is not known."""
    for preset in candidate_presets(device, processes, installed=installed):
        memory_estimate = estimate_memory(spec, apply_preset(spec.parallel, preset), device, processes)
        if memory_estimate and memory_estimate.fits:
            return memory_estimate
    return None


def apply_preset(parallel: Parallel, preset: Parallel) -> Parallel:
    """The preset's settings; devices, nodes and the adapter's size stay as they are.

    A single process drops its number.
    """
    single = preset.sharding is Sharding.none
    return replace(
        parallel,
        name=preset.name,
        processes=None if single else parallel.processes,
        nodes=1 if single else parallel.nodes,
        sharding=preset.sharding,
        offload=False,
        adapter=preset.adapter,
        quantization=preset.quantization,
    )


def total_processes(parallel: Parallel, devices: int) -> int:
    """Processes of a run on all nodes, where this machine has `devices` devices."""
    default = 1 if parallel.sharding is Sharding.none else devices
    return (parallel.processes or default) * parallel.nodes


def choose_preset(spec: Experiment, accelerators: int | None = None) -> PresetChoice:
    """What `parallel=auto` is on this machine, or one with so many accelerators; in a plan, on `plan.device`.

    Raises UserError where the model's shape is unknown, or another setting of `parallel` is set beside
    `auto`.
    """
    _check_only_auto(spec.parallel)
    device, count = local_device(0 if spec.parallel.device is DeviceType.cpu else accelerators)
    if spec.action is Action.plan and spec.plan.device is not None:
        device, count = get_device(spec.plan.device), 1
    processes = total_processes(spec.parallel, count)
    machine = f"{processes} x {device.name} ({device.gb:.0f} GB)"
    if model_shape(spec.model) is None:
        raise UserError(
            f"parallel=auto: the shape of model={spec.model.name} is not known here; {UNKNOWN_SHAPE_REMEDY}, "
            "or choose parallel=lora."
        )
    memory_estimate = first_fitting_preset(spec, device, processes, installed=True)
    if memory_estimate is None:
        last = list(candidate_presets(device, processes, installed=True))[-1]
        reason = f"parallel=auto is {last.name} on {machine}: nothing fits, and this needs the least."
        return PresetChoice(apply_preset(spec.parallel, last), reason)
    full = memory_estimate.parallel.adapter is Adapter.none
    why = "all weights are trained" if full else "training all weights would not fit"
    memory = f"{memory_estimate.peak / GB:.1f} GB of {memory_estimate.capacity / GB:.1f} on each device"
    reason = (
        f"parallel=auto is {memory_estimate.parallel.name} on {machine}: {why}, and it needs about {memory}."
    )
    return PresetChoice(memory_estimate.parallel, reason)


def _check_only_auto(parallel: Parallel) -> None:
    """Refuse a setting beside `auto`, which sets them all."""
    for key, value, default in (
        ("sharding", parallel.sharding, Sharding.ddp),  # the placeholder of conf/parallel/auto.yaml
        ("adapter", parallel.adapter, Adapter.none),
        ("quantization", parallel.quantization, Quantization.none),
    ):
        if value is not default:
            raise UserError(
                f"parallel.{key}={value.name}: parallel=auto chooses it; leave it out, "
                "or choose a preset, as parallel=lora."
            )


def resolve_auto(spec: Experiment, accelerators: int | None = None) -> Experiment:
    """The experiment with the preset that `parallel=auto` means here; any other one unchanged."""
    if spec.parallel.name != AUTO:
        return spec
    return replace(spec, parallel=choose_preset(spec, accelerators).parallel)
