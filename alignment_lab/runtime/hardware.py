"""The accelerators and the processor of this machine, without importing torch.

Reads CUDA_VISIBLE_DEVICES, /proc and nothing else.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")


def count_accelerators() -> int:
    """How many NVIDIA devices this process may use."""
    return len(visible_device_ids())


def visible_device_ids() -> list[str]:
    """Device ids for CUDA_VISIBLE_DEVICES: those that the variable lists, else all that the driver lists."""
    variable, count = os.environ.get("CUDA_VISIBLE_DEVICES"), len(_driver_models())
    ids = map(str, range(count)) if variable is None else (part.strip() for part in variable.split(","))
    return [device_id for device_id in ids if device_id not in ("", "-1")][:count]


def accelerator_names() -> list[str]:
    """Model name of each visible device, such as NVIDIA H100 80GB HBM3.

    A device listed by UUID instead of by number gets the first device's name.
    """
    models = _driver_models()

    def name(device_id: str) -> str:
        return models[int(device_id)] if device_id.isdigit() and int(device_id) < len(models) else models[0]

    return [name(device_id) for device_id in visible_device_ids()]


def _driver_models() -> list[str]:
    """Model names of all devices of this machine, in the driver's order."""
    models: list[str] = []
    for file in sorted(DRIVER_GPUS.glob("*/information")):
        lines = file.read_text(errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
        models += names or ["an accelerator"]
    return models


def processor_name() -> str:
    """The processor's name from /proc/cpuinfo, else from Python."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
