"""The accelerators and the processor of this machine, without importing torch.

Reads CUDA_VISIBLE_DEVICES, /proc, the driver's own library and /dev, in this order.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

DRIVER_GPUS = Path("/proc/driver/nvidia/gpus")
DRIVER_LIBRARY = "libnvidia-ml.so.1"
DEVICE_FILES = Path("/dev")


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    """Model names of all devices of this machine, in the driver's order.

    WSL2 and sandboxes such as gVisor have no /proc/driver, but have the driver's library or its device files.
    """
    models = _proc_models() or list(_library_models(DRIVER_LIBRARY))
    files = [file for file in DEVICE_FILES.glob("nvidia*") if file.name.removeprefix("nvidia").isdigit()]
    return models or ["an accelerator"] * len(files)


def _proc_models() -> list[str]:
    models: list[str] = []
    for file in sorted(DRIVER_GPUS.glob("*/information")):
        lines = file.read_text(errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
        models += names or ["an accelerator"]
    return models


@cache
def _library_models(library: str) -> tuple[str, ...]:
    """What NVML says, the library behind nvidia-smi; nothing where it is missing or finds no driver.

    Its interface is in https://docs.nvidia.com/deploy/nvml-api; every call gives 0 where it worked.
    """
    try:
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2():
            return ()
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return ()
        models = tuple(_library_model(nvml, index) for index in range(count.value))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):  # no such library, or one of another age
        return ()
    return models


def _library_model(nvml: ctypes.CDLL, index: int) -> str:
    device, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) or nvml.nvmlDeviceGetName(
        device, name, len(name)
    ):
        return "an accelerator"
    return name.value.decode(errors="replace")


def processor_name() -> str:
    """The processor's name from /proc/cpuinfo, else from Python."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
