"""Which process of how many this is, and what processes tell each other. A process by itself pays nothing for any of it.

Reads what torchrun and Slurm leave in the environment. Knows no model; torch is imported only where there are several processes.
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
    """Their names for CUDA_VISIBLE_DEVICES, told without torch: what that says, else what the driver lists."""
    said, present = os.environ.get("CUDA_VISIBLE_DEVICES"), len(_models())
    names = map(str, range(present)) if said is None else (one.strip() for one in said.split(","))
    return [one for one in names if one not in ("", "-1")][:present]


def accelerator_names() -> list[str]:
    """What the driver calls them, such as NVIDIA H100 80GB HBM3; one that is named otherwise than by its number: the first device's."""
    models = _models()
    return [
        models[int(one)] if one.isdigit() and int(one) < len(models) else models[0]
        for one in visible_device_ids()
    ]


def _models() -> list[str]:
    """Of all devices of this machine, in the driver's order."""
    found = []
    for file in sorted(DRIVER_GPUS.glob("*/information")):
        lines = file.read_text(errors="replace").splitlines()
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")] or [
            "an accelerator"
        ]
    return found


def processor_name() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()
