"""Devices with their memory and speed: those that people have, and what this machine has. No torch: the driver is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace

import psutil

from ..runtime import hardware
from ..runtime.errors import UserError

GB = 10**9
# Model FLOPs over the peak. On accelerators: MosaicML's llm-foundry (scripts/train/benchmarking/README.md) has 40 to 46 % for models of 1
# to 7 billion parameters and rows of 512 to 4,096 tokens on H100s in bfloat16, with and without activation checkpointing. Other cards,
# short steps and slow networks reach less.
UTILIZATION = 0.40
CPU_UTILIZATION = 0.80  # docs/LOG.md: 154 of the 183 GFLOP/s that the processor reaches on large matrices
CPU_TFLOPS = 0.09  # of one core in float32: the same 183 GFLOP/s on two cores


@dataclass(frozen=True)
class Device:
    """One kind of device. `tflops` is the dense peak in bfloat16 with float32 accumulation, as the maker gives it."""

    name: str
    gb: float
    tflops: float
    words: tuple[str, ...] = ()  # all of which are in the name that the driver has for it
    accelerator: bool = True

    @property
    def bytes(self) -> int:
        """Memory; GB as the maker counts them, the smaller reading."""
        return int(self.gb * GB)

    @property
    def flops(self) -> float:
        """What training is assumed to reach, FLOPs a second."""
        return self.tflops * 1e12 * (UTILIZATION if self.accelerator else CPU_UTILIZATION)


def local_cpu(*, free: bool = False) -> Device:
    """This machine's processors and its memory; with `free`, only what is free now."""
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Device(
        "cpu", (memory.available if free else memory.total) / GB, CPU_TFLOPS * cores, accelerator=False
    )


DEVICES = {
    device.name: device
    for device in (
        Device("rtx4090", 24, 165, ("4090",)),
        Device("a100-40gb", 40, 312, ("A100", "40GB")),
        Device("l40s", 48, 362, ("L40S",)),
        Device("a6000", 48, 155, ("RTX A6000",)),
        Device("a100", 80, 312, ("A100", "80GB")),
        Device("h100", 80, 989, ("H100",)),
        Device("h200", 141, 989, ("H200",)),
        local_cpu(),
    )
}
LISTED_DEVICES = ("rtx4090", "a100-40gb", "l40s", "h100", "h200", "cpu")  # one of each size


def get_device(name: str) -> Device:
    """The device that `plan.device` names. Raises UserError with all names for another one."""
    if name not in DEVICES:
        raise UserError(f"plan.device={name}: no such device is known; give one of {', '.join(DEVICES)}.")
    return DEVICES[name]


def local_device(accelerators: int | None = None) -> tuple[Device, int]:
    """The kind of device that a run on this machine gets, and how many there are; one without an accelerator: the processors."""
    count = hardware.count_accelerators() if accelerators is None else accelerators
    if count == 0:
        return DEVICES["cpu"], 1
    return min(
        (_by_driver(model) for model in hardware.accelerator_names() or ["an accelerator"]),
        key=lambda device: device.gb,
    ), count


def _by_driver(model: str) -> Device:
    """The device of this name; of one that is not in the table the memory is asked for, and the speed is the slowest one's."""
    for device in DEVICES.values():
        if device.words and all(word in model for word in device.words):
            return device
    smallest = min(
        (device for device in DEVICES.values() if device.accelerator), key=lambda device: device.gb
    )
    memory = _memory()
    return replace(smallest, name=model, gb=memory) if memory else smallest


def _memory() -> float | None:
    """GB of the smallest device that nvidia-smi lists, or None where it cannot say."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    sizes = [int(word) * 2**20 / GB for word in said if word.isdigit()]
    return min(sizes, default=None)
