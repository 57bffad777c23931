"""Where a process computes and in which dtype, and how much memory is free there.

Knows hardware and the `parallel` and `model` settings. Refuses to know any model's weights.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ..config import DeviceType, Dtype, Experiment
from ..distributed import ranks
from ..runtime import hardware
from ..runtime.errors import UserError
from ..runtime.files import cache_directory, keep, read_kept

if TYPE_CHECKING:
    import torch

MIN_SPEEDUP = 1.3  # of bfloat16 over float32 on a CPU, below which `auto` computes in float32


def device_and_dtype(spec: Experiment) -> tuple[torch.device, torch.dtype]:
    """This process's device and compute dtype.

    `auto` is an accelerator where torch sees one, and bfloat16 where that is faster than float32.
    """
    import torch

    cuda = torch.cuda.is_available() and spec.parallel.device is not DeviceType.cpu
    if spec.parallel.device is DeviceType.cuda and not cuda:
        raise UserError(
            "parallel.device=cuda: torch sees no accelerator here; use parallel.device=auto, "
            "or a machine that has one."
        )
    dtype = spec.model.dtype
    if dtype is Dtype.auto:
        use_bfloat16 = _has_bfloat16_units() if cuda else is_bfloat16_faster()
        dtype = Dtype.bfloat16 if use_bfloat16 else Dtype.float32
    device = torch.device("cuda", ranks.local_rank()) if cuda else torch.device("cpu")
    return device, torch.bfloat16 if dtype is Dtype.bfloat16 else torch.float32


def _has_bfloat16_units() -> bool:
    """Whether the accelerator multiplies bfloat16 itself: torch also counts T4 and V100, which emulate it."""
    import torch

    return torch.cuda.get_device_capability() >= (8, 0)


def is_bfloat16_faster() -> bool:
    """Whether this CPU multiplies bfloat16 matrices 1.3 times as fast as float32: measured once, then cached.

    Many CPUs have no instruction for it and are three to four times slower, whatever they report.
    """
    import torch

    file = cache_directory() / "bfloat16.json"
    key = f"{hardware.processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    speedups: dict[str, float] = read_kept(file) or {}
    if key not in speedups:
        speedups[key] = round(_matmul_seconds(torch.float32) / _matmul_seconds(torch.bfloat16), 2)
        keep(file, speedups)
    return speedups[key] >= MIN_SPEEDUP


def _matmul_seconds(dtype: torch.dtype) -> float:
    """Seconds of the fastest of five products of two 768 x 768 matrices."""
    import torch

    left, right = (torch.ones(768, 768, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def move(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The tensor on `device`. A copy to an accelerator starts from pinned memory: nothing waits for it."""
    if str(device).startswith("cuda") and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def free_memory(device: torch.device) -> int:
    """Free bytes on the accelerator; on a CPU, this process's share of the machine's available memory."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
