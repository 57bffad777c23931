"""The machine and versions that were measured, and its GEMM rate. Imports torch only in a subprocess."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .cases import ROOT
from .process import THREADS, run, scratch

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "alignment-lab")
MIN_SPEEDUP = 1.2  # of bfloat16 over float32, for a user to choose it


def describe_machine() -> dict[str, Any]:
    """Processor, memory, versions and the commit that was measured."""
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": THREADS,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def current_commit() -> str | None:
    """The commit of the checkout, with `-dirty` where files were changed."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:  # a copy of the files on a machine without git
        return None
    return described.stdout.strip() or None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = fields.get("flags", "").split()
    shown_flags = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return (
        f"{fields.get('model name', platform.processor()).strip()} ({', '.join(shown_flags) or 'no avx512'})"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def measure_gemm() -> dict[str, float]:
    """GFLOP/s of a matrix product in float32 and in bfloat16, in a fresh process."""
    with scratch() as folder:
        rates: dict[str, float] = json.loads(
            run([sys.executable, "-m", "benchmarks.machine"], folder).output.splitlines()[-1]
        )
    return rates


def is_bf16_faster(rates: dict[str, float]) -> bool:
    """Whether a user who tunes TRL by hand computes in bfloat16 here."""
    return rates["bfloat16"] > MIN_SPEEDUP * rates["float32"]


def _measure() -> dict[str, float]:
    import time

    import torch

    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(1024, 1024, dtype=dtype) for _ in range(2))
        started, count = time.perf_counter(), -1
        while time.perf_counter() - started < 1:
            a @ b
            count += 1
            if count == 0:
                started = time.perf_counter()  # the first call prepares
        rates[str(dtype).removeprefix("torch.")] = round(
            count * 2 * 1024**3 / (time.perf_counter() - started) / 1e9, 1
        )
    return rates


if __name__ == "__main__":
    print(json.dumps(_measure()))
