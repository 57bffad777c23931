"""From a `model` setting to weights and tokenizer. Finding them needs no torch; what cannot be had is one sentence.

Weights are held in float32 and computed with in `model.dtype`: an update of 1e-6 is lost on a bfloat16 weight.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ..config import DeviceType, Dtype, Experiment
from ..distributed import ranks
from ..runtime import hardware
from ..runtime.errors import UserError
from ..runtime.files import cache_directory, read_json, write_json

if TYPE_CHECKING:
    import torch


def device_and_dtype(spec: Experiment) -> tuple[torch.device, torch.dtype]:
    """Where this process computes and in what: `auto` is an accelerator where torch sees one, and bfloat16 where it is faster."""
    import torch

    cuda = torch.cuda.is_available() and spec.parallel.device is not DeviceType.cpu
    if spec.parallel.device is DeviceType.cuda and not cuda:
        raise UserError(
            "parallel.device=cuda: torch sees no accelerator here; use parallel.device=auto, or a machine that has one."
        )
    wanted = spec.model.dtype
    if wanted is Dtype.auto:
        wanted = (
            Dtype.bfloat16 if (torch.cuda.is_bf16_supported() if cuda else is_bfloat16_faster()) else Dtype.float32
        )
    device = torch.device("cuda", ranks.local_rank()) if cuda else torch.device("cpu")
    return device, torch.bfloat16 if wanted is Dtype.bfloat16 else torch.float32


def is_bfloat16_faster() -> bool:
    """Whether this processor multiplies bfloat16 matrices at least 1.3 times as fast as float32: measured once, then remembered.

    Many have no instruction for it and are three to four times slower, whatever they report.
    """
    import torch

    file = cache_directory() / "bfloat16.json"
    key = f"{hardware.processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known = read_json(file) or {}
    if key not in known:
        known[key] = round(_multiplying(torch.float32) / _multiplying(torch.bfloat16), 2)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
    return known[key] >= 1.3


def _multiplying(dtype: torch.dtype) -> float:
    """Seconds of the fastest of five products of two matrices of 768 x 768."""
    import torch

    one, other = (torch.ones(768, 768, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def free_memory(device: torch.device) -> int:
    """Memory that is free on the device, or in this machine for each of its processes."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
