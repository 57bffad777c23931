"""Devices with their memory and speed: common accelerators, and those of this machine.

Asks the driver, not torch.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, replace

import psutil

from ..runtime import hardware
from ..runtime.errors import UserError

GB = 10**9
# Model FLOPs utilization, of the peak. On accelerators: MosaicML's llm-foundry
# (scripts/train/benchmarking/README.md) has 40 to 46 % for models of 1 to 7 billion parameters and rows of
# 512 to 4,096 tokens on H100s in bfloat16, with and without activation checkpointing. Other cards, short
# steps and slow networks reach less.
UTILIZATION = 0.40
CPU_UTILIZATION = 0.80  # docs/LOG.md: 154 of the 183 GFLOP/s that the processor reaches on large matrices
CPU_TFLOPS = 0.09  # of one core in float32: the same 183 GFLOP/s on two cores


@dataclass(frozen=True)
class Device:
    """One kind of device. `tflops` is the vendor's dense peak in bfloat16 with float32 accumulation."""

    name: str
    gb: float
    tflops: float
    driver_words: tuple[str, ...] = ()  # all of these are in the driver's name for it
    accelerator: bool = True

    @property
    def bytes(self) -> int:
        """Memory; GB are taken as 10**9 bytes, the smaller reading."""
        return int(self.gb * GB)

    @property
    def flops(self) -> float:
        """FLOPs per second that training is assumed to reach."""
        return self.tflops * 1e12 * (UTILIZATION if self.accelerator else CPU_UTILIZATION)


def local_cpu(*, free: bool = False) -> Device:
    """This machine's processors with its memory; with `free`, only the memory that is available now."""
    memory = psutil.virtual_memory()
    gb = (memory.available if free else memory.total) / GB
    return Device("cpu", gb, CPU_TFLOPS * hardware.available_cores(), accelerator=False)


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
LISTED_DEVICES = ("rtx4090", "a100-40gb", "l40s", "h100", "h200", "cpu")  # in a plan: one of each size


def get_device(name: str) -> Device:
    """The device of `plan.device`. Raises UserError, with all names, for an unknown one."""
    if name not in DEVICES:
        raise UserError(f"plan.device={name}: no such device is known; give one of {', '.join(DEVICES)}.")
    return DEVICES[name]


def local_device(accelerators: int | None = None) -> tuple[Device, int]:
    """(kind of device, how many) for a run on this machine; without an accelerator, the processors as one.

    Of several kinds it is the one with the least memory. `accelerators`: how many, where it is known already.
    """
    count = hardware.count_accelerators() if accelerators is None else accelerators
    if count == 0:
        return DEVICES["cpu"], 1
    devices = [_device_from_driver(name) for name in hardware.accelerator_names() or ["an accelerator"]]
    return min(devices, key=lambda device: device.gb), count


def _device_from_driver(driver_name: str) -> Device:
    """The device of a driver name; an unknown one has its own memory and the speed of the smallest."""
    for device in DEVICES.values():
        if device.driver_words and all(word in driver_name for word in device.driver_words):
            return device
    accelerators = [device for device in DEVICES.values() if device.accelerator]
    smallest = min(accelerators, key=lambda device: device.gb)
    memory = _smallest_memory()
    return replace(smallest, name=driver_name, gb=memory) if memory else smallest


def _smallest_memory() -> float | None:
    """GB of the smallest device that nvidia-smi lists, or None where it lists none."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    sizes = [int(word) * 2**20 / GB for word in output.split() if word.isdigit()]  # nvidia-smi prints MiB
    return min(sizes, default=None)
