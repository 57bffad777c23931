"""Which preset of conf/parallel fits a device, and what `parallel=auto` comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

from ..config import Action, Adapter, Experiment, Parallel, Quantization, Sharding
from ..config import DeviceType as Kind
from ..runtime.errors import UserError
from .devices import GB, Device, get_device, local_device
from .memory import DEEPSPEED, MemoryEstimate, estimate_memory
from .shape import UNKNOWN_SHAPE_REMEDY, experiment_parameters, model_shape

AUTO = "auto"
CPU_LIMIT = (
    2e9  # parameters; beyond it a step on processors takes minutes, and no advice is given that leads there
)
# From the least intrusive to the smallest: every weight trained before adapters, whole weights before cut ones, then 4 bits. The same
# dials as in conf/parallel; a test holds them to each other.
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
PACKAGES: dict[str, Callable[[Parallel], bool]] = {
    "deepspeed": lambda dials: dials.sharding in DEEPSPEED,
    "bitsandbytes": lambda dials: dials.quantization is not Quantization.none,
}


@dataclass(frozen=True)
class Choice:
    """What `parallel=auto` came to, and why, in a sentence."""

    parallel: Parallel
    reason: str


def candidates(device: Device, processes: int, *, installed: bool = False) -> Iterator[Parallel]:
    """The presets that make sense on so many devices, in order; with `installed`, only those whose packages are here."""
    for preset in PRESETS.values():
        alone = preset.sharding is Sharding.none
        whole = preset.adapter is not Adapter.none and preset.sharding is Sharding.ddp
        senseless = alone if processes > 1 else not (alone or whole)
        missing = installed and any(
            uses(preset) and find_spec(package) is None for package, uses in PACKAGES.items()
        )
        if is_supported(preset, device) and not senseless and not missing:
            yield preset


def is_supported(dials: Parallel, device: Device) -> bool:
    """Whether such a device can be used so: FSDP cuts 4-bit weights on accelerators only, and processors have nowhere to offload to."""
    return device.accelerator or not (
        dials.offload or (dials.sharding is Sharding.fsdp and dials.quantization is Quantization.nf4)
    )


def is_practical(spec: Experiment, device: Device) -> bool:
    """Whether anybody would want to wait for it."""
    known = experiment_parameters(spec)
    return device.accelerator or (known is not None and known.total <= CPU_LIMIT)


def first_fitting_preset(
    spec: Experiment, device: Device, processes: int, *, installed: bool = False
) -> MemoryEstimate | None:
    """What the first preset that fits needs; None where none does, or the model's shape is not known."""
    for preset in candidates(device, processes, installed=installed):
        need = estimate_memory(spec, apply_preset(spec.parallel, preset), device, processes)
        if need and need.fits:
            return need
    return None


def apply_preset(parallel: Parallel, preset: Parallel) -> Parallel:
    """The preset's dials, with the rest as it is: devices, machines, the adapter's size. One process needs no number."""
    alone = preset.sharding is Sharding.none
    return replace(
        parallel,
        name=preset.name,
        processes=None if alone else parallel.processes,
        nodes=1 if alone else parallel.nodes,
        sharding=preset.sharding,
        offload=False,
        adapter=preset.adapter,
        quantization=preset.quantization,
    )


def total_processes(parallel: Parallel, count: int) -> int:
    """Processes of a run where this machine has `count` devices."""
    return (parallel.processes or (1 if parallel.sharding is Sharding.none else count)) * parallel.nodes


def choose_preset(spec: Experiment, accelerators: int | None = None) -> Choice:
    """What `parallel=auto` is on this machine, or on one with so many accelerators; in a plan, on the device that it names.

    Raises UserError where it cannot be told.
    """
    _undecided(spec.parallel)
    device, count = local_device(0 if spec.parallel.device is Kind.cpu else accelerators)
    if spec.action is Action.plan and spec.plan.device is not None:
        device, count = get_device(spec.plan.device), 1
    processes = total_processes(spec.parallel, count)
    where = f"{processes} x {device.name} ({device.gb:.0f} GB)"
    if model_shape(spec.model) is None:
        raise UserError(
            f"parallel=auto: the shape of model={spec.model.name} is not known here; {UNKNOWN_SHAPE_REMEDY}, or choose parallel=lora."
        )
    found = first_fitting_preset(spec, device, processes, installed=True)
    if found:
        name = found.parallel.name
        full = found.parallel.adapter is Adapter.none
        why = "all weights are trained" if full else "training all weights would not fit"
        needed = f"{found.peak / GB:.1f} GB of {found.capacity / GB:.1f} on each device"
        return Choice(
            found.parallel, f"parallel=auto is {name} on {where}: {why}, and it needs about {needed}."
        )
    last = list(candidates(device, processes, installed=True))[-1]
    reason = f"parallel=auto is {last.name} on {where}: nothing fits, and this needs the least."
    return Choice(apply_preset(spec.parallel, last), reason)


def _undecided(parallel: Parallel) -> None:
    """Refuse a dial beside `auto`, which sets them all."""
    for key, value, free in (
        ("sharding", parallel.sharding, Sharding.ddp),  # the placeholder of conf/parallel/auto.yaml
        ("adapter", parallel.adapter, Adapter.none),
        ("quantization", parallel.quantization, Quantization.none),
    ):
        if value is not free:
            raise UserError(
                f"parallel.{key}={value.name}: parallel=auto chooses it; leave it out, or choose a preset, as parallel=lora."
            )


def resolve_auto(spec: Experiment, accelerators: int | None = None) -> Experiment:
    """The experiment with the dials that `parallel=auto` comes to here; unchanged where it says itself what it wants."""
    return (
        replace(spec, parallel=choose_preset(spec, accelerators).parallel)
        if spec.parallel.name == AUTO
        else spec
    )
