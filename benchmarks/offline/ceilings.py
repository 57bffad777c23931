"""A device's ceilings on random data: bytes a second of a copy, FLOPs a second of products, a launch.

python -m benchmarks.offline.ceilings OUT.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

SHAPES = {
    "8192^3": (8192, 8192, 8192),
    "8b mlp": (6144, 4096, 14336),
    "8b head": (6144, 4096, 128256),
    "1.5b mlp": (8192, 1536, 8960),
    "1.5b head": (8192, 1536, 151936),
    "rank 16": (6144, 4096, 16),
}
LAUNCHES = 2000


def median_seconds(work: Callable[[], object], repeats: int = 15, warm: int = 3) -> float:
    """Of `repeats` calls after `warm` ones, by CUDA events."""
    for _ in range(warm):
        work()
    seconds = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return median(seconds)


def measure() -> dict[str, Any]:
    """TB/s of a copy (read and written bytes), TFLOP/s of each product, microseconds of a launch."""
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(0)}
    found["copy_tb_s"] = _copy_rate()
    for name, (m, k, n) in SHAPES.items():
        a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        b = torch.randn(k, n, device="cuda", dtype=torch.bfloat16)
        seconds = median_seconds(lambda a=a, b=b: a @ b)
        rate = 2 * m * k * n / seconds / 1e12
        found[f"bf16 {name}"] = {"tflop_s": round(rate, 1), "ms": round(seconds * 1e3, 3)}
    return found | {"microseconds_a_launch": _launch_microseconds()}


def _copy_rate() -> float:
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    return round(2 * source.nbytes / median_seconds(lambda: target.copy_(source)) / 1e12, 3)


def _launch_microseconds() -> float:
    small = torch.ones(8, device="cuda")
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(LAUNCHES):
        small.add_(1)
    seconds = time.perf_counter() - began
    torch.cuda.synchronize()
    return round(seconds / LAUNCHES * 1e6, 2)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: the ceilings are not measured")
    Path(sys.argv[1]).write_text(json.dumps(measure(), indent=1) + "\n")
    print(Path(sys.argv[1]).read_text())
